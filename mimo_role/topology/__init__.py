"""The grids of ranks of one world, and how they follow from the sizes of modules."""

from mimo_role.host.lazy_exports import lazy_exports

__getattr__, __dir__, __all__ = lazy_exports(__name__, __file__)
