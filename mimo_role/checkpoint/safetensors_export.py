"""The weights of a checkpoint as safetensors files, without a job."""

import json
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

import torch
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from mimo_role.checkpoint import folders
from mimo_role.checkpoint.contents import is_weight, load_alone
from mimo_role.errors import CheckpointError

_INDEX = "model.safetensors.index.json"


def export_safetensors(
    folder: str | os.PathLike[str],
    path: str | os.PathLike[str],
    step: int | None = None,
    *,
    modules: Iterable[str] | None = None,
    rename: Callable[[str], str | None] = lambda name: name,
    max_file_gib: float = 5.0,
) -> list[Path]:
    """Write the weights of a checkpoint as safetensors, each whole and under its name in the checkpoint.

    It needs no job and no GPU, and memory for one file. Under a job, call it on one rank. Files are named as Hugging
    Face's libraries name them: `model.safetensors`, or `model-00001-of-00003.safetensors` with
    `model.safetensors.index.json`.

    Args:
        folder: as in `save`.
        path: a folder for the files. Files of these names in it are replaced.
        step: by default the last.
        modules: only the weights of these modules; by default all. Optimizer states are never written.
        rename: the name in the files of a weight of the checkpoint; `None` to leave it out.
        max_file_gib: above this size, a file holds a single tensor only.

    Returns:
        The files with tensors.

    Raises:
        CheckpointError: the package safetensors is missing, or there is no complete checkpoint, or no such module in
            it.
    """
    try:
        from safetensors.torch import save_file
    except ImportError as error:
        raise CheckpointError(
            "export_safetensors needs the package safetensors: pip install mimo-launch[checkpoint]"
        ) from error
    saved = folders.find(Path(folder), step)
    if saved is None:
        raise CheckpointError(f"{folder}: there is no checkpoint")
    stored = {name: each for name, each in _tensors_of(saved.path, modules).items() if rename(name) is not None}
    parts = list(_parts(stored, max_file_gib * 2**30))
    target = Path(path)
    target.mkdir(parents=True, exist_ok=True)
    files = []
    for number, names in enumerate(parts, 1):
        name = f"model-{number:05}-of-{len(parts):05}.safetensors" if len(parts) > 1 else "model.safetensors"
        weights = {key: torch.empty(stored[key].size, dtype=stored[key].properties.dtype) for key in names}
        load_alone(weights, saved.path)
        save_file({str(rename(key)): weight for key, weight in weights.items()}, target / name, metadata={"format": "pt"})
        files.append(target / name)
    if len(parts) > 1:
        renamed = [[str(rename(name)) for name in names] for names in parts]
        _write_index(target / _INDEX, stored, dict(zip(files, renamed, strict=True)))
    return files


def _tensors_of(path: Path, modules: Iterable[str] | None) -> dict[str, TensorStorageMetadata]:
    """The weights in a checkpoint, by name."""
    everything = FileSystemReader(path).read_metadata().state_dict_metadata
    found = {name: stored for name, stored in sorted(everything.items()) if is_weight(name)}
    there = {name.partition(".")[0] for name in found}
    asked = there if modules is None else set(modules)
    if unknown := sorted(asked - there):
        raise CheckpointError(f"{path} has no module {unknown[0]!r}; it has {', '.join(sorted(there))}")
    return {
        name: stored
        for name, stored in found.items()
        if name.partition(".")[0] in asked and isinstance(stored, TensorStorageMetadata)
    }


def _bytes_of(stored: TensorStorageMetadata) -> int:
    return math.prod(stored.size) * stored.properties.dtype.itemsize


def _parts(stored: Mapping[str, TensorStorageMetadata], limit: float) -> Iterator[list[str]]:
    """The names of each file's tensors."""
    part: list[str] = []
    size = 0
    for name, each in stored.items():
        if part and size + _bytes_of(each) > limit:
            yield part
            part, size = [], 0
        part.append(name)
        size += _bytes_of(each)
    yield part


def _write_index(path: Path, stored: Mapping[str, TensorStorageMetadata], parts: Mapping[Path, list[str]]) -> None:
    index = {
        "metadata": {"total_size": sum(map(_bytes_of, stored.values()))},
        "weight_map": {name: file.name for file, names in parts.items() for name in names},
    }
    path.write_text(f"{json.dumps(index, indent=2)}\n", encoding="utf-8")
