"""Names of dimensions that several axes form."""

import re

_AXIS = re.compile(r"(?:expt_)?gtp_remat|expt_[a-z]+|[a-z]+")


def axes_of_dimension(name: str) -> list[str]:
    """The axes of which the name of a mesh's dimension is made: `dp` and `gtp_remat` of `dp_gtp_remat`."""
    found: list[str] = _AXIS.findall(name)
    return found
