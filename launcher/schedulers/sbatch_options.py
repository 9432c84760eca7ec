"""The options of a pool for sbatch and srun, `pools.NAME.slurm` in the config, and which of them would break the job."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from launcher.errors import ConfigError
from launcher.formatting import printable, shortened
from launcher.plan.placement_warnings import PlanWarning
from launcher.schedulers.slurm_vocabulary import SBATCH, SRUN, SWITCHES, Command, alike, is_of_plugin, is_of_pyxis

LONGEST = 1024
"""The most characters that SLURM accepts in a name or comment."""

_LIMITED = {"account", "comment", "constraint", "job-name", "licenses", "mail-user", "qos", "reservation", "wckey"}
"""Options to which this applies; lists of nodes, for example, may be longer (seen with Slurm 22.05)."""

_WORDS = {"yes": True, "on": True, "no": False, "off": False}

_KINDS = {bool: "true or false", type(None): "null"}

OptionTexts = Mapping[str, str | None]
"""Options by their long names; `None` for one without a value."""


@dataclass(frozen=True, kw_only=True)
class PoolOptions:
    """The options of one pool, checked."""

    sbatch: OptionTexts
    srun: OptionTexts
    warnings: tuple[PlanWarning, ...]
    """Options that sbatch or srun will probably not accept."""


def check_options(pool: str, options: Mapping[str, Any]) -> PoolOptions:
    """The options of a pool as text.

    Raises:
        ConfigError: an option that mimo-launch sets itself, or that cannot be written in a script.
    """
    section = f"pools.{pool}.slurm"
    job = _given({name: value for name, value in options.items() if name != "srun"})
    step = _given(_step_options(f"{section}.srun", options.get("srun")))
    # sbatch would run the job script itself in the container, where there is no srun.
    boxed = {name: job.pop(name) for name in list(job) if is_of_pyxis(name)}
    if twice := sorted(boxed.keys() & step.keys()):
        raise ConfigError(f"{section}.{twice[0]}: {section}.srun has this option too; give it once")
    warnings = [*_review(section, SBATCH, job), *_review(section, SRUN, boxed), *_review(f"{section}.srun", SRUN, step)]
    texts = _texts(section, job, refused="\n\r\0")
    if _plain("requeue", options.get("requeue")) is False:
        texts["no-requeue"] = None
    _check_texts(section, texts)
    srun = _texts(section, boxed, refused="\0") | _texts(f"{section}.srun", step, refused="\0")
    return PoolOptions(sbatch=texts, srun=srun, warnings=tuple(warnings))


def review(pools: Mapping[str, PoolOptions]) -> Iterator[PlanWarning]:
    """The warnings of a job's pools, and options of plugins that differ between them.

    SLURM applies one value of such an option to all components of a job, and of a step (seen with 22.05).
    """
    for options in pools.values():
        yield from options.warnings
    for by_pool in (
        {pool: options.sbatch for pool, options in pools.items()},
        {pool: options.srun for pool, options in pools.items()},
    ):
        for name in filter(is_of_plugin, sorted({name for texts in by_pool.values() for name in texts})):
            values = {pool: _shown(texts, name) for pool, texts in by_pool.items()}
            if len(set(values.values())) > 1:
                listed = ", ".join(f"{value} in pools.{printable(pool)}" for pool, value in values.items())
                yield PlanWarning(
                    "plugin_option_differs",
                    f"slurm: {name} is {listed}; SLURM applies one value of a plugin's option to all pools of a step: "
                    "give all the same, or write a job script with an srun for each pool (docs/guides/slurm.md)",
                )


def seconds_of(limit: str) -> int | None:
    """A SLURM time limit in seconds: `90` and `90:00` are 90 minutes, `1-12` is 36 hours; `None` if it is not one.

    The forms are those of sbatch(1), `--time`.
    """
    match = re.fullmatch(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?", limit, re.ASCII)
    if match is None:
        return None
    days, first, second, third = (None if part is None else int(part) for part in match.groups())
    if days is not None:
        return ((days * 24 + (first or 0)) * 60 + (second or 0)) * 60 + (third or 0)
    if third is not None:
        return ((first or 0) * 60 + (second or 0)) * 60 + third
    return (first or 0) * 60 + (second or 0)


def _step_options(key: str, value: Any) -> Mapping[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise ConfigError(f"{key}: not a mapping of srun's options, such as {{label: true}}")
    return value


def _given(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options without those that are null, false or have no items."""
    plain = {name: _plain(name, value) for name, value in options.items()}
    return {name: value for name, value in plain.items() if value is not None and value is not False and value != []}


def _plain(name: str, value: Any) -> Any:
    """`True` or `False` for the words that YAML reads so, if the option has no value that may be such a word."""
    return _WORDS.get(value.lower(), value) if name in SWITCHES and isinstance(value, str) else value


def _review(section: str, command: Command, options: Mapping[str, Any]) -> Iterator[PlanWarning]:
    for name in options:
        if (problem := _problem(section, command, name)) is not None:
            yield PlanWarning("unknown_slurm_option", f"{printable(f'{section}.{name}')}: {problem}")


def _problem(section: str, command: Command, name: str) -> str | None:
    """Why sbatch or srun will probably not accept an option; `None` if it is known, or may be one of a plugin.

    Raises:
        ConfigError: mimo-launch sets it itself, or it is not a long option at all.
    """
    key = printable(f"{section}.{name}")
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9]*([-_][A-Za-z0-9]+)*", name, re.ASCII) or len(name) == 1:
        close = alike(name)
        hint = f"did you mean {close!r}?" if close is not None else f"write {command.name}'s long name without the dashes"
        raise ConfigError(f"{key}: not the long name of an {command.name} option; {hint}")
    other = SRUN if command is SBATCH else SBATCH
    if (meant := command.completed(name)) in command.ours:
        what = "mimo-launch sets this option itself" if meant == name else f"short for {meant}, which mimo-launch sets itself"
        raise ConfigError(f"{key}: {what} ({command.ours[meant]}); leave it out")
    if meant in command.options:
        return None
    if name in other.ours:
        raise ConfigError(f"{key}: mimo-launch sets this option of {other.name} itself ({other.ours[name]}); leave it out")
    if name in other.options:
        place = f"{section}.srun" if other is SRUN else section.removesuffix(".srun")
        return f"an option of {other.name}, not of {command.name}; write it under {printable(place)}"
    close = alike(name)
    return None if close is None else f"no known option of {command.name}; did you mean {close!r}? It is passed on unchanged"


def _texts(section: str, options: Mapping[str, Any], *, refused: str) -> dict[str, str | None]:
    """Options as text that has none of the refused characters."""
    return {name: _value(f"{section}.{name}", value, refused) for name, value in options.items()}


def _value(key: str, value: Any, refused: str) -> str | None:
    key = printable(key)
    if value is True:
        return None
    if isinstance(value, Mapping):
        raise ConfigError(f"{key}: an option's value cannot be a mapping; write text, a number, true or a list")
    items = value if isinstance(value, list) else [value]
    for item in items:
        if isinstance(item, bool) or not isinstance(item, str | int | float):
            raise ConfigError(f"{key}: {_KINDS.get(type(item), 'a collection')} in a list; items must be text or numbers")
    text = ",".join(map(str, items))
    if any(character in text for character in refused):
        found = "a zero byte" if "\0" in text else "a line break"
        raise ConfigError(f"{key}: an option of a job script cannot contain {found}")
    return text


def _shown(texts: OptionTexts, name: str) -> str:
    if name not in texts:
        return "not given"
    value = texts[name]
    return "given" if value is None else printable(shortened(value))


def _check_texts(section: str, texts: OptionTexts) -> None:
    """Check what does not depend on one option's name alone."""
    if {"requeue", "no-requeue"} <= texts.keys():
        raise ConfigError(f"{section}: requeue and no-requeue contradict each other")
    if (texts.get("signal") or "").upper().startswith("B:"):
        raise ConfigError(f"{section}.signal={texts['signal']}: B: signals the job script only, not the ranks")
    for name in sorted(_LIMITED & texts.keys()):
        if len(texts[name] or "") > LONGEST:
            raise ConfigError(f"{section}.{name}: {len(texts[name] or '')} characters; sbatch accepts {LONGEST}")
