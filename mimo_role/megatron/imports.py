"""Megatron-Core, which need not be installed."""

from importlib import import_module
from typing import Any

from mimo_role.errors import ContextError


def imported(name: str) -> Any:
    """A module of Megatron-Core.

    Raises:
        ContextError: it cannot be imported.
    """
    try:
        return import_module(name)
    except ImportError as error:
        raise ContextError(
            f"{name} cannot be imported ({error}); install Megatron-Core with pip install 'mimo-launch[megatron]'"
        ) from None
