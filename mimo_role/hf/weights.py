"""Weights of models of transformers: random ones, and files of safetensors."""

import copy
import hashlib
import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.tensor import DTensor, distribute_tensor

from mimo_role.checkpoint.safetensors_export import export_safetensors
from mimo_role.errors import CheckpointError, HfError
from mimo_role.hf.building import build_on_meta, is_tied
from mimo_role.hf.families import family_of
from mimo_role.hf.family import Config, Model


def stored_tensors(part: nn.Module) -> dict[str, torch.Tensor]:
    """Parameters, tied ones once, and the buffers that files have, by name."""
    every = dict(part.named_parameters(remove_duplicate=False))
    buffers = {name: tensor for name, tensor in part.state_dict(keep_vars=True).items() if name not in every}
    return dict(part.named_parameters()) | buffers


def stored_names(model: Model, names: list[str]) -> dict[str, str]:
    """By parameter of a model, its name in the files that `save_pretrained` writes.

    Raises:
        HfError: parameters that are stored in another form.
    """
    from transformers.core_model_loading import revert_weight_conversion

    # Told apart by their length, which a change of names alone leaves.
    marked = {name: torch.empty(number, device="meta") for number, name in enumerate(names)}
    reverted = revert_weight_conversion(model, marked)
    found = {
        names[len(tensor)]: stored for stored, tensor in reverted.items() if tensor.dim() == 1 and len(tensor) < len(names)
    }
    if len(found) != len(names) or len(reverted) != len(names):
        raise HfError("transformers stores some of these parameters in another form; convert the files first")
    return found


def load_pretrained(
    parts: nn.ModuleDict, names: Mapping[str, str], path: str | os.PathLike[str], tied: Mapping[str, str]
) -> None:
    """Read this rank's weights from files of safetensors: of each tensor no more than its own share, in place.

    Args:
        parts: this rank's modules.
        names: by parameter, its name in the files.
        path: a folder with the files, as `save_pretrained` writes them.
        tied: parameters which the files need not have, and the one with the same values.

    Raises:
        CheckpointError: no files, or a missing or unlike tensor.
    """
    folder = Path(path)
    if not any(folder.glob("*.safetensors")):
        raise CheckpointError(f"{folder}: no .safetensors files; pass a folder that save_pretrained has written")
    stored = HuggingFaceStorageReader(os.fspath(folder)).read_metadata().state_dict_metadata
    wanted: dict[str, Any] = {}
    later: dict[str, Any] = {}
    for part in parts.values():
        for name, parameter in stored_tensors(part).items():
            key = names[name]
            if key not in stored and name in tied:
                key = names[tied[name]]
            tensor = stored.get(key)
            if not isinstance(tensor, TensorStorageMetadata):
                raise CheckpointError(f"{folder} has no tensor {key!r}")
            if tensor.size != parameter.shape:
                raise CheckpointError(f"{folder}: {key!r} has the shape {list(tensor.size)}, not {list(parameter.shape)}")
            (later if key in wanted else wanted)[key] = parameter.detach()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")  # each rank reads for itself
        for values in filter(None, (wanted, later)):
            load(values, storage_reader=HuggingFaceStorageReader(os.fspath(folder)), no_dist=True)


def initialize(part: nn.Module, whole: Model, seed: int, aliases: Mapping[str, str]) -> None:
    """Random weights as transformers initializes them, the same in every layout. It takes memory for one layer more.

    Args:
        part: this rank's.
        whole: the whole model, on the meta device.
        seed: with the name of a layer, the seed of its values.
        aliases: layers that get the values of another one, by name.
    """
    for name, module in part.named_modules():
        own = dict(module.named_parameters(recurse=False))
        if not own:
            continue
        source = aliases.get(name, name)
        layer = copy.deepcopy(whole.get_submodule(source))
        for child, _ in list(layer.named_children()):
            setattr(layer, child, None)
        layer.to_empty(device="cpu")
        digest = hashlib.sha256(f"{seed} {source}".encode()).digest()
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed(int.from_bytes(digest[:8], "little") >> 1)
            for parameter in layer.parameters():  # transformers leaves some as they are
                parameter.zero_()
            whole._init_weights(layer)
        for key, parameter in own.items():
            _assign(parameter, layer.get_parameter(key).detach())


def _assign(parameter: torch.Tensor, whole: torch.Tensor) -> None:
    """Take this rank's share of a whole tensor."""
    whole = whole.to(parameter.device, parameter.dtype)
    with torch.no_grad():
        if isinstance(parameter, DTensor):
            own = distribute_tensor(whole, parameter.device_mesh, parameter.placements, src_data_rank=None)
            parameter.to_local().copy_(own.to_local())
        else:
            parameter.copy_(whole)


def export_pretrained(
    config: Config, folder: str | os.PathLike[str], path: str | os.PathLike[str], step: int | None = None
) -> list[Path]:
    """Write the weights of a checkpoint of `mimo_role.checkpoint.save` as `from_pretrained` reads them, with the config.

    It needs no job and no GPU. Under a job, call it on one rank.

    Args:
        config: the whole model's.
        folder: as in `mimo_role.checkpoint.save`.
        path: a folder for the files.
        step: by default the last.

    Returns:
        The files with tensors.

    Raises:
        CheckpointError: there is no complete checkpoint.
        HfError: no family is known for the config, or transformers stores parameters in another form.
    """
    family = family_of(config)
    model = build_on_meta(config, family, torch.float32)
    names = stored_names(model, list(model.state_dict()))
    tied = f"{family.head}.weight" if is_tied(model, family) else None

    def renamed(name: str) -> str | None:
        own = name.partition(".")[2]
        return None if own == tied else names.get(own)

    files = export_safetensors(folder, path, step, rename=renamed)
    config = copy.deepcopy(config)
    config.architectures = [type(model).__name__]
    config.save_pretrained(path)
    return files
