"""The families that are known, one in each file."""

from mimo_role.errors import HfError
from mimo_role.hf.families import idefics3, llava, qwen2_audio, qwen_vl
from mimo_role.hf.family import Config, Family

_FAMILIES: dict[str, Family] = {}


def register(family: Family) -> None:
    """Add a family, or replace one with the same model types."""
    _FAMILIES.update(dict.fromkeys(family.model_types, family))


def family_of(config: Config) -> Family:
    """The family of a config.

    Raises:
        HfError: none is known.
    """
    found = _FAMILIES.get(config.model_type)
    if found is None:
        raise HfError(
            f"no family is known for model_type {config.model_type!r}, only for {', '.join(sorted(_FAMILIES))}; "
            "describe it with mimo_role.hf.Family and pass it to mimo_role.hf.register"
        )
    return found


for _family in (
    idefics3.IDEFICS3,
    idefics3.SMOLVLM,
    llava.FAMILY,
    qwen2_audio.FAMILY,
    qwen_vl.QWEN2_5,
    qwen_vl.QWEN3,
):
    register(_family)
