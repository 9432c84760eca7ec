"""A package, so that another package of this name on the path is not imported in its place."""
