"""Resolves the path of each folder once, while torch is imported.

Registering an operator records the line of code that does so. For the first one, `inspect.getmodule` resolves the path of
every module that has been imported: a thousand paths of nine parts, a twentieth of the import. Most are in few folders.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any


@contextmanager
def folders_resolved_once() -> Iterator[None]:
    """Let `os.path.realpath` remember folders within the block, in which no folder may be replaced."""
    resolve = os.path.realpath
    folder_of = lru_cache(maxsize=None)(resolve)
    is_open = True

    def realpath(filename: Any, **settings: Any) -> Any:
        if not is_open or settings or not isinstance(filename, str) or not filename.startswith(os.sep):
            return resolve(filename, **settings)
        folder, name = os.path.split(filename)
        if name in ("", os.curdir, os.pardir):
            return resolve(filename)
        path = os.path.join(folder_of(folder), name)  # noqa: PTH118
        return resolve(path) if os.path.islink(path) else path  # noqa: PTH114

    os.path.realpath = realpath
    try:
        yield
    finally:
        os.path.realpath = resolve
        is_open = False  # a module may keep the function
