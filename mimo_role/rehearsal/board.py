"""What the kinds of a rehearsal have sent, for those that are rehearsed after them."""

import hashlib
import os
import pickle
from pathlib import Path
from typing import Any


class Board:
    """Values by name, in the files of one folder."""

    def __init__(self, folder: Path) -> None:
        """`folder` exists, and is the same for all kinds of a rehearsal."""
        self._folder = folder

    def put(self, name: str, value: Any) -> None:
        """Store a value that can be pickled, in place of an earlier one."""
        path = self._path(name)
        beside = path.with_suffix(f".{os.getpid()}")
        beside.write_bytes(pickle.dumps(value))
        beside.replace(path)

    def get(self, name: str, default: Any = None) -> Any:
        """The value of a name; `default` if no kind has stored one."""
        try:
            return pickle.loads(self._path(name).read_bytes())
        except FileNotFoundError:
            return default

    def _path(self, name: str) -> Path:
        return self._folder / f"{hashlib.sha256(name.encode()).hexdigest()[:32]}.pickle"
