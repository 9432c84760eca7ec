"""Environment variables of this process. No other file uses `os.environ`."""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mimo_role.errors import EnvironError
from mimo_role.host.slurm import SlurmTask, job_of, restarts_of, task_of

TOPOLOGY = "MIMO_TOPOLOGY"
TOPOLOGY_DIGEST = "MIMO_TOPOLOGY_DIGEST"
ROLE = "MIMO_ROLE"
LAYOUT = "MIMO_LAYOUT"
MODULES = "MIMO_MODULES"
HAS_LANGUAGE_MODULE = "MIMO_HAS_LANGUAGE_MODULE"
HAS_MODALITY_MODULES = "MIMO_HAS_MODALITY_MODULES"
COORDS = "MIMO_COORDS"
RUN_DIR = "MIMO_RUN_DIR"
RUN_ID = "MIMO_RUN_ID"
BACKEND = "MIMO_BACKEND"
TIMEOUT_S = "MIMO_TIMEOUT_S"
GROUPS = "MIMO_GROUPS"
RESTART_COUNT = "MIMO_RESTART_COUNT"
NODE = "MIMO_NODE"
GRACE_S = "MIMO_GRACE_S"
WARNING_S = "MIMO_WARNING_S"
NODE_DIR = "MIMO_NODE_DIR"


def is_set() -> bool:
    """Whether this process's environment has the contract's variables."""
    return TOPOLOGY in os.environ


def export(values: Mapping[str, str]) -> list[str]:
    """Set variables for this process and its children; return the names of those that were not set before."""
    added = [name for name in values if name not in os.environ]
    os.environ.update(values)
    return added


def replace(values: Mapping[str, str]) -> None:
    """Make this the whole environment."""
    os.environ.clear()
    os.environ.update(values)


@contextmanager
def defaults(values: Mapping[str, str]) -> Iterator[None]:
    """Set the variables that are not set, within a block."""
    added = export({name: value for name, value in values.items() if name not in os.environ})
    try:
        yield
    finally:
        withdraw(added)


def withdraw(names: Iterable[str]) -> None:
    """Unset variables."""
    for name in names:
        os.environ.pop(name, None)


@contextmanager
def without(matches: Callable[[str], bool]) -> Iterator[None]:
    """Unset the variables whose names match, within a block."""
    taken = {name: value for name, value in os.environ.items() if matches(name)}
    withdraw(taken)
    try:
        yield
    finally:
        os.environ.update(taken)


@contextmanager
def noting_reads() -> Iterator[dict[str, str | None]]:
    """The variables that Python code reads within a block by their names, each with the first value that it gets.

    Whoever copies the environment reads none of them by its name. What C code reads is not noted.
    """
    kind: Any = type(os.environ)
    read_one, read_names = kind.__getitem__, kind.__iter__
    found: dict[str, str | None] = {}
    copied: list[str] = []

    def note(environ: Any, name: str) -> Any:
        is_copied = copied == [name]
        try:
            value = read_one(environ, name)
        except KeyError:
            found.setdefault(name, None)
            raise
        if not is_copied:
            found.setdefault(name, value)
        return value

    def names(environ: Any) -> Iterator[str]:
        for name in read_names(environ):
            copied[:] = [name]
            yield name
        copied.clear()

    kind.__getitem__, kind.__iter__ = note, names
    try:
        yield found
    finally:
        kind.__getitem__, kind.__iter__ = read_one, read_names


def rank() -> int | None:
    """`RANK`, if it is set.

    Raises:
        EnvironError: it is not a number.
    """
    return whole_number(os.environ, "RANK")


def local_rank() -> int:
    """`LOCAL_RANK`; 0 if it is not set.

    Raises:
        EnvironError: it is not a number.
    """
    return whole_number(os.environ, "LOCAL_RANK") or 0


def local_world_size() -> int:
    """`LOCAL_WORLD_SIZE`, the number of ranks on this node; 1 if it is not set.

    Raises:
        EnvironError: it is not a number.
    """
    return whole_number(os.environ, "LOCAL_WORLD_SIZE") or 1


def world_size() -> int | None:
    """`WORLD_SIZE`, if it is set.

    Raises:
        EnvironError: it is not a number.
    """
    return whole_number(os.environ, "WORLD_SIZE")


def slurm_task() -> SlurmTask | None:
    """This process's place in a SLURM job step, if srun started it.

    Raises:
        EnvironError: a SLURM variable is missing or malformed.
    """
    return task_of(os.environ)


def slurm_job() -> str | None:
    """The id of this process's SLURM job."""
    return job_of(os.environ)


def slurm_restarts() -> int:
    """The number of times that SLURM has requeued this process's job."""
    return restarts_of(os.environ)


def elastic_restarts() -> int:
    """The number of times that torchelastic's agent has restarted the ranks."""
    return whole_number(os.environ, "TORCHELASTIC_RESTART_COUNT") or 0


def threads() -> int | None:
    """`MKL_NUM_THREADS`, else `OMP_NUM_THREADS`, of whose list the first number counts, as for torch; `None` if none is set."""
    for name in ("MKL_NUM_THREADS", "OMP_NUM_THREADS"):
        first = os.environ.get(name, "").partition(",")[0].strip()
        if first.isascii() and first.isdigit() and int(first) > 0:
            return int(first)
    return None


def is_on_one_host() -> bool:
    """Whether all ranks run on this machine, as far as variables show.

    Raises:
        EnvironError: `WORLD_SIZE` or `LOCAL_WORLD_SIZE` is not a number.
    """
    ranks = whole_number(os.environ, "LOCAL_WORLD_SIZE")
    return ranks is not None and ranks == whole_number(os.environ, "WORLD_SIZE")


def variables() -> Mapping[str, str]:
    """This process's environment."""
    return os.environ


def get(name: str) -> str | None:
    """One variable of this process's environment."""
    return os.environ.get(name)


def node_dir() -> Path | None:
    """The node directory (`host/node_dir.py`); `None` outside mimo-launch."""
    value = os.environ.get(NODE_DIR)
    return Path(value) if value else None


def missing_for_join() -> list[str]:
    """The variables that torch's `env://` rendezvous needs and this process lacks."""
    return [name for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]


def whole_number(environ: Mapping[str, str], name: str) -> int | None:
    """A variable that is a number; `None` where it is not set.

    Raises:
        EnvironError: it is not a number.
    """
    value = environ.get(name)
    if value is None:
        return None
    if not value.isascii() or not value.isdigit():
        raise EnvironError(name, f"{value!r} is not a whole number")
    return int(value)
