"""A process's place in a SLURM job step, from environment variables.

`MIMO_DETECT=off` in the environment turns this off: the process then counts as not started by SLURM.
Names of variables: srun(1), "OUTPUT ENVIRONMENT VARIABLES". Host lists: slurm.conf(5), "NodeName".
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product
from math import prod

from mimo_role.errors import EnvironError

DETECT = "MIMO_DETECT"

_NOT_A_TASK = {4294967290, 4294967291, 4294967292, 4294967293}
"""SLURM's reserved step numbers: the interactive, batch and external step, and a step that is pending."""

_FIRST_PORT, _PORTS = 15000, 17000
"""Ports below those that the kernel assigns to outgoing connections (32768 and up)."""

_MOST_HOSTS = 100_000


@dataclass(frozen=True, kw_only=True)
class SlurmTask:
    """One task of a job step that srun started."""

    job_id: str
    step_id: str
    task: int
    """Its number in the step, over all components of a heterogeneous job."""
    tasks: int
    node: int
    """The number of its node in the step."""
    nodes: int
    local_task: int
    """Its number on its node."""
    hosts: tuple[str, ...]
    """The names of the step's nodes, in the order of their numbers."""
    restarts: int
    """The number of times that the job has been requeued."""

    @property
    def port(self) -> int:
        """A port that differs between jobs, steps, and requeues of one job."""
        seed = int(self.job_id) * 31 + int(self.step_id) * 7 + self.restarts
        return _FIRST_PORT + seed % _PORTS

    def to_environ(self) -> dict[str, str]:
        """torch's variables for a script that srun starts once per rank."""
        return {
            "RANK": str(self.task),
            "WORLD_SIZE": str(self.tasks),
            "LOCAL_RANK": str(self.local_task),
            "MASTER_ADDR": self.hosts[0],
            "MASTER_PORT": str(self.port),
        }


def job_of(environ: Mapping[str, str]) -> str | None:
    """The id of the process's SLURM job, whether it is a task or not; `None` outside of a job or with detection off."""
    return environ.get("SLURM_JOB_ID") if _is_on(environ) else None


def task_of(environ: Mapping[str, str]) -> SlurmTask | None:
    """The process's place in its job step; `None` if srun has not started it, or with detection off.

    Raises:
        EnvironError: a variable of SLURM's that is missing or malformed.
    """
    if not _is_on(environ) or "SLURM_JOB_ID" not in environ or "SLURM_STEP_ID" not in environ:
        return None
    step_id = _number(environ, "SLURM_STEP_ID")
    if step_id in _NOT_A_TASK:
        return None
    return SlurmTask(
        job_id=str(_number(environ, "SLURM_JOB_ID")),
        step_id=str(step_id),
        task=_number(environ, "SLURM_PROCID"),
        tasks=_number(environ, "SLURM_NTASKS"),
        node=_number(environ, "SLURM_NODEID"),
        nodes=_number(environ, "SLURM_NNODES"),
        local_task=_number(environ, "SLURM_LOCALID"),
        hosts=tuple(_hosts_of_step(environ)),
        restarts=restarts_of(environ),
    )


def restarts_of(environ: Mapping[str, str]) -> int:
    """The number of times that SLURM has requeued the process's job; 0 outside of a job or with detection off."""
    return _number(environ, "SLURM_RESTART_COUNT") if _is_on(environ) and "SLURM_RESTART_COUNT" in environ else 0


def _hosts_of_step(environ: Mapping[str, str]) -> list[str]:
    """The step's nodes in the order of SLURM_NODEID.

    In a heterogeneous job SLURM counts component by component, but sorts the step's list (seen with 22.05).
    """
    name = "SLURM_STEP_NODELIST" if "SLURM_STEP_NODELIST" in environ else "SLURM_JOB_NODELIST"
    hosts = expand(environ.get(name, ""))
    if not hosts:
        raise EnvironError(name, f"names no node; {DETECT}=off ignores SLURM's variables")
    components = _number(environ, "SLURM_HET_SIZE") if "SLURM_HET_SIZE" in environ else 0
    in_order: list[str] = []
    for index in range(components):
        # srun without a job script only sets the older name.
        for group in ("HET", "PACK"):
            if (listed := environ.get(f"SLURM_JOB_NODELIST_{group}_GROUP_{index}")) is not None:
                in_order += expand(listed)
                break
    in_step = set(hosts)
    found = [host for host in in_order if host in in_step]
    return found if len(found) == len(hosts) else hosts


def expand(hostlist: str) -> list[str]:
    """The names in a SLURM host list, in its order: `n[1-3,07-08],x` -> n1, n2, n3, n07, n08, x.

    Raises:
        EnvironError: not a host list.
    """
    hosts: list[str] = []
    for item in _items(hostlist):
        parts = re.split(r"\[([^\[\]]*)\]", item)
        if any("[" in part or "]" in part for part in parts):
            raise EnvironError("SLURM host list", f"unbalanced brackets: {hostlist!r}")
        choices = [_numbers(part, hostlist) if index % 2 else [part] for index, part in enumerate(parts)]
        if len(hosts) + prod(map(len, choices)) > _MOST_HOSTS:
            raise EnvironError("SLURM host list", f"more than {_MOST_HOSTS} names: {hostlist[:80]!r}")
        hosts += ("".join(chosen) for chosen in product(*choices))
    return hosts


def _items(hostlist: str) -> list[str]:
    """The parts between commas that are not in brackets."""
    return re.findall(r"(?:[^,\s\[]|\[[^\]]*\]?)+", hostlist)


def _numbers(ranges: str, hostlist: str) -> list[str]:
    found: list[str] = []
    for part in ranges.split(","):
        match = re.fullmatch(r"(\d{1,9})(?:-(\d{1,9}))?", part, re.ASCII)
        if match is None:
            raise EnvironError("SLURM host list", f"{part!r} is not a number or a range of numbers: {hostlist!r}")
        first, last = match[1], match[2] or match[1]
        if int(last) < int(first):
            raise EnvironError("SLURM host list", f"the range {part!r} is descending: {hostlist!r}")
        if int(last) - int(first) >= _MOST_HOSTS:
            raise EnvironError("SLURM host list", f"more than {_MOST_HOSTS} names: {hostlist[:80]!r}")
        found += (str(number).zfill(len(first)) for number in range(int(first), int(last) + 1))
    return found


def _is_on(environ: Mapping[str, str]) -> bool:
    return environ.get(DETECT, "on").lower() not in ("off", "0", "false", "no")


def _number(environ: Mapping[str, str], name: str) -> int:
    value = environ.get(name)
    if value is None:
        raise EnvironError(name, f"not set in a job step of SLURM's; {DETECT}=off ignores SLURM's variables")
    if not value.isascii() or not value.isdigit():
        raise EnvironError(name, f"{value!r} is not a whole number; {DETECT}=off ignores SLURM's variables")
    return int(value)
