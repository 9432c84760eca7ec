"""The sbatch options of a pool, `pools.NAME.slurm` in the config, and which of them would break the job."""

import difflib
import re
from collections.abc import Mapping
from typing import Any

from launcher.config.literals import text_of
from launcher.errors import ConfigError
from launcher.formatting import printable

LONGEST = 1024
"""The most characters that sbatch accepts in a name or comment."""

_OURS = {
    "nodes": "pools set it",
    "ntasks": "mimo-launch starts one task per node, which starts the ranks",
    "ntasks-per-node": "mimo-launch starts one task per node, which starts the ranks",
    "ntasks-per-core": "mimo-launch starts one task per node, which starts the ranks",
    "ntasks-per-gpu": "mimo-launch starts one task per node, which starts the ranks",
    "ntasks-per-socket": "mimo-launch starts one task per node, which starts the ranks",
    "clusters": "status, logs and cancel use the cluster of this machine",
    "cluster-constraint": "status, logs and cancel use the cluster of this machine",
    "gpus-per-task": "the one task of a node starts all its ranks; use gpus-per-node or gres",
    "output": "output goes to the run directory",
    "error": "output goes to the run directory",
    "open-mode": "output is appended to, so that a requeue does not overwrite it",
    "chdir": "the job runs in the directory where it was submitted",
    "export": "variables are set by env in the config",
    "export-file": "variables are set by env in the config",
    "array": "a job is one run; submit it several times with different run_dirs",
    "wrap": "mimo-launch writes the job script",
    "parsable": "mimo-launch reads sbatch's output",
    "wait": "mimo-launch logs JOB --follow waits",
    "test-only": "use --dry-run",
    "ignore-pbs": "mimo-launch writes the job script",
    "quiet": "mimo-launch reads sbatch's output",
    "help": "it is not an option of a job",
    "usage": "it is not an option of a job",
    "version": "it is not an option of a job",
}

_KNOWN = re.findall(
    r"\S+",
    """
    account acctg-freq batch bb bbf begin cluster-constraint clusters comment constraint container container-id
    contiguous core-spec cores-per-socket cpu-freq cpus-per-gpu cpus-per-task deadline delay-boot dependency
    distribution exclude exclusive extra extra-node-info get-user-env gid gpu-bind gpu-freq gpus gpus-per-node
    gpus-per-socket gpus-per-task gres gres-flags hint hold job-name kill-on-invalid-dep licenses mail-type mail-user
    mcs-label mem mem-bind mem-per-cpu mem-per-gpu mincpus network nice no-kill no-requeue nodefile nodelist
    ntasks-per-core ntasks-per-gpu ntasks-per-socket oom-kill-step oversubscribe overcommit partition power prefer
    priority profile propagate qos reboot requeue reservation resv-ports segment signal sockets-per-node spread-job
    stepmgr switches thread-spec threads-per-core time time-min tmp tres-bind tres-per-task uid use-min-nodes
    wait-all-nodes wckey x11
    """,
)
"""sbatch's long options as of Slurm 24.11, to detect misspellings; unknown ones that are not close to any pass."""

_KINDS = {bool: "true or false", type(None): "null"}


def check_options(pool: str, options: Mapping[str, Any]) -> dict[str, str | None]:
    """A pool's sbatch options as text; `None` for one without a value.

    Raises:
        ConfigError: an option that mimo-launch sets itself, that cannot be written in a script, or that is probably misspelt.
    """
    found = {
        name: _value(f"pools.{pool}.slurm.{name}", value)
        for name, value in options.items()
        if _check_name(f"pools.{pool}.slurm.{name}", name) and value is not None and value is not False
    }
    if options.get("requeue") is False:
        found["no-requeue"] = None
    if {"requeue", "no-requeue"} <= found.keys():
        raise ConfigError(f"pools.{pool}.slurm: requeue and no-requeue contradict each other")
    if (found.get("signal") or "").upper().startswith("B:"):
        raise ConfigError(f"pools.{pool}.slurm.signal={found['signal']}: B: signals the job script only, not the ranks")
    return found


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


def _check_name(key: str, name: str) -> bool:
    key = printable(key)
    if not re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", name, re.ASCII):
        close = difflib.get_close_matches(name.lstrip("-").replace("_", "-").lower(), _KNOWN, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else "; write sbatch's long name without the dashes"
        raise ConfigError(f"{key}: not the long name of an sbatch option{hint}")
    if name in _OURS:
        raise ConfigError(f"{key}: mimo-launch sets this option itself ({_OURS[name]}); leave it out")
    if name not in _KNOWN and (close := difflib.get_close_matches(name, [*_KNOWN, *_OURS], n=1, cutoff=0.8)):
        raise ConfigError(f"{key}: not an sbatch option; did you mean {close[0]!r}?")
    return True


def _value(key: str, value: Any) -> str | None:
    if value is True:
        return None
    if isinstance(value, Mapping):
        raise ConfigError(f"{key}: an option's value cannot be a mapping; write text, a number, true or a list")
    items = value if isinstance(value, list) else [value]
    for item in items:
        if isinstance(item, bool) or not isinstance(item, str | int | float):
            raise ConfigError(f"{key}: {_KINDS.get(type(item), 'a collection')} in a list; items must be text or numbers")
    text = ",".join(map(text_of, items))
    if any(character in text for character in "\n\r\0"):
        raise ConfigError(f"{key}: an option of a job script cannot contain a line break")
    if len(text) > LONGEST:
        raise ConfigError(f"{key}: {len(text)} characters; sbatch accepts {LONGEST}")
    return text
