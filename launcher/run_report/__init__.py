"""A run as text and as one HTML page, and the layout of a plan as SVG: nothing needs a server or a network."""
