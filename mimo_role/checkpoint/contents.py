"""What is in a checkpoint beside weights and optimizer state, and under which names."""

import io
import pickle
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.state_dict_loader import load

from mimo_role.checkpoint.optimizer_state import PREFIX, Settings
from mimo_role.errors import CheckpointError

MANIFEST = "mimo/manifest"
_PER_RANK = "mimo/rank"


@dataclass(frozen=True)
class Manifest:
    """What a checkpoint has once."""

    topology_digest: str
    settings: Mapping[str, Settings]
    """What the optimizer's group of each parameter was set to."""
    extra: bytes

    def packed(self) -> bytes:
        return packed(vars(self), "the manifest")

    @classmethod
    def read(cls, path: Path) -> "Manifest":
        """The manifest of a complete checkpoint.

        Raises:
            CheckpointError: it was not saved by `mimo_role.checkpoint`.
        """
        if MANIFEST not in FileSystemReader(path).read_metadata().state_dict_metadata:
            raise CheckpointError(f"{path} was not saved by mimo_role.checkpoint; read it with torch.distributed.checkpoint")
        found: dict[str, Any] = {MANIFEST: b""}
        try:
            load_alone(found, path)
            return cls(**unpacked(found[MANIFEST]))
        except (CheckpointException, Exception) as error:  # damaged bytes raise anything
            raise CheckpointError(f"{path}: its manifest cannot be read: {type(error).__name__}: {error}") from error


def per_rank_name(rank: int) -> str:
    """Where the values of one rank are."""
    return f"{_PER_RANK}{rank}"


def is_per_rank(name: str) -> bool:
    """Whether these are the values of a rank."""
    return name.startswith(_PER_RANK)


def is_weight(name: str) -> bool:
    """Whether this is a value of a module."""
    return not name.startswith((PREFIX, MANIFEST, _PER_RANK))


def is_state(name: str) -> bool:
    """Whether this is a value of a module or of an optimizer."""
    return is_weight(name) or name.startswith(PREFIX)


def load_alone(state: dict[str, Any], path: Path) -> None:
    """DCP's load in this process only, whether or not it is in a job."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled", UserWarning)
        load(state, storage_reader=FileSystemReader(path), no_dist=True)


def packed(value: Any, what: str) -> bytes:
    """Any picklable value as bytes.

    Raises:
        CheckpointError: it cannot be pickled.
    """
    stream = io.BytesIO()
    try:
        torch.save(value, stream)
    except (pickle.PicklingError, TypeError, AttributeError, RuntimeError) as error:
        raise CheckpointError(f"{what} cannot be pickled ({error}); of objects pass what their state_dict() returns") from error
    return stream.getvalue()


def unpacked(value: bytes) -> Any:
    """The value that was packed; tensors are on the CPU."""
    return torch.load(io.BytesIO(value), map_location="cpu", weights_only=False)


def difference(own: Any, other: Any, at: str) -> str | None:
    """Where two values first differ, as text such as `extra['lr']: 0.1 and 0.2`; `None` if they are equal."""
    if isinstance(own, torch.Tensor) and isinstance(other, torch.Tensor):
        is_equal = own.shape == other.shape and own.dtype == other.dtype and torch.equal(own.cpu(), other.cpu())
        return None if is_equal else f"{at}: tensors that differ"
    if isinstance(own, Mapping) and isinstance(other, Mapping) and own.keys() == other.keys():
        parts = ((own[key], other[key], f"{at}[{key!r}]") for key in own)
    elif isinstance(own, list | tuple) and type(own) is type(other) and len(own) == len(other):
        parts = ((one, two, f"{at}[{number}]") for number, (one, two) in enumerate(zip(own, other, strict=True)))
    else:
        is_equal = packed(own, at) == packed(other, at) or bool(own == other)
        return None if is_equal else f"{at}: {own!r} and {other!r}"
    return next((found for one, two, place in parts if (found := difference(one, two, place))), None)
