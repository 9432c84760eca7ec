"""What is refused of a model in a layout, since its numbers would be other than those of one process."""

import copy
from collections.abc import Collection, Iterator, Mapping
from fnmatch import fnmatch

import torch
from torch import nn

from mimo_role.errors import HfError
from mimo_role.hf.building import PassThrough
from mimo_role.hf.family import Config, Family, Model
from mimo_role.topology.grid import RankGrid

_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def check_family(model: Model, family: Family) -> None:
    """
    Raises:
        HfError: a path that the model does not have, a parameter that none of them leads to, or levels that cannot be added.
    """
    what = f"family {family.model_types[0]!r}"
    paths = {"language": family.language, "head": family.head}
    for name, encoder in family.encoders.items():
        if isinstance(encoder.paths, str):
            raise HfError(f"{what}: paths of {name!r} is a text; it is a list, such as [{encoder.paths!r}]")
        paths |= {f"path {number} of {name!r}": path for number, path in enumerate(encoder.paths)}
        paths[f"tower of {name!r}"] = encoder.tower
        layers = list(encoder.levels(model.config))
        if layers != list(range(len(layers))):
            raise HfError(f"{what}: levels of {name!r} are {layers}; they are added after layers 0, 1, ..., one after each")
    if sum(bool(encoder.levels(model.config)) for encoder in family.encoders.values()) > 1:
        raise HfError(f"{what}: several encoders have levels; one may")
    for field, path in paths.items():
        try:
            model.get_submodule(path)
        except AttributeError as error:
            raise HfError(f"{what}: {field} is {path!r}, which is no module of the model: {error}") from None
    for parameter, _ in model.named_parameters():
        if not parameter.startswith(tuple(f"{path}." for path in paths.values())):
            raise HfError(
                f"{what}: {parameter} is in none of the paths; add its module to those of an encoder (a parameter outside of "
                "the modules, such as image_newline of some models, cannot be placed)"
            )


def check_frozen(model: Model, freeze: Collection[str]) -> None:
    """
    Raises:
        HfError: a pattern that no parameter has.
    """
    names = [name for name, _ in model.named_parameters(remove_duplicate=False)]
    for pattern in freeze:
        if not any(fnmatch(name, pattern) for name in names):
            raise HfError(f"freeze: no parameter is named {pattern!r}; one is named, for example, {names[0]}")


def check_layout(model: Model, family: Family, grids: Mapping[str, RankGrid], fsdp: Collection[str]) -> None:
    """
    Raises:
        HfError: a module of the model cannot be divided as its grid has it.
    """
    paths = {name: encoder.tower for name, encoder in family.encoders.items()} | {"language": family.language}
    for name, path in paths.items():
        part = model.get_submodule(path)
        tp = grids[name].axis_size("tp")
        _check_random(name, part.config, tp, name in fsdp)
        if any(isinstance(module, _BATCH_NORMS) for module in part.modules()):
            raise HfError(f"{name}: {type(part).__name__} normalizes over the samples of a batch, which lanes divide")
    text = model.get_submodule(family.language)
    _check_heads(text.config, grids["language"].axis_size("tp"))
    if grids["language"].axis_size("cp") > 1:
        _check_windows(text.config)
    if grids["language"].axis_size("pp") > 1:
        _check_stages(text)


def _check_heads(config: Config, tp: int) -> None:
    for key in ("num_attention_heads", "num_key_value_heads"):
        heads = getattr(config, key, None) or tp
        if heads % tp:
            raise HfError(f"modules.language.tp={tp} does not divide {key}={heads}")


def _check_random(module: str, config: Config, tp: int, is_sharded: bool) -> None:
    """Copies of activations on tp ranks need equal random numbers, and ranks that skip a layer leave its collectives."""
    for key, value in _above_zero(config, "drop"):
        if tp > 1:
            raise HfError(f"modules.{module}.tp={tp}: {key}={value:g} draws other numbers on each rank; set it to 0, or use dp")
        if is_sharded and "layerdrop" in key:
            raise HfError(f"fsdp of {module!r}: {key}={value:g} skips other layers on each rank; set it to 0")


def _above_zero(config: Config, word: str) -> Iterator[tuple[str, float]]:
    for key, value in config.to_dict().items():
        if word in key and isinstance(value, int | float) and not isinstance(value, bool) and value > 0:
            yield key, value


def _check_windows(config: Config) -> None:
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"]) - {"full_attention"}
    if getattr(config, "sliding_window", None) and "layer_types" not in config.to_dict():
        kinds.add("sliding_attention")
    if kinds:
        raise HfError(f"modules.language.cp: layers of {config.model_type!r} have {', '.join(sorted(kinds))}; set cp to 1")


def _check_stages(text: Model) -> None:
    """A later stage gets hidden states as if they were embeddings: without its layers, the model has to return them."""
    empty = copy.deepcopy(text)
    empty.embed_tokens, empty.norm = None, nn.Identity()
    empty.layers = nn.ModuleList(PassThrough() for _ in empty.layers)
    hidden = torch.arange(1, 2 * text.config.hidden_size + 1, dtype=torch.float32).view(1, 2, -1)
    is_plain = not any(True for _ in empty.parameters())
    if not is_plain or not torch.equal(empty(inputs_embeds=hidden, use_cache=False).last_hidden_state, hidden):
        raise HfError(
            f"modules.language.pp: {type(text).__name__} changes embeddings before its first layer or after its last, as each "
            "of its stages would; set pp to 1"
        )
