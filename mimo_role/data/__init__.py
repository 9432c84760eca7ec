"""The samples of each step, read on the ranks that need them."""

from mimo_role.host.lazy_exports import lazy_exports

__getattr__, __dir__, __all__ = lazy_exports(__name__, __file__)
