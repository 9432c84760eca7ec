"""Several scripts in the same processes, each in a separate world: processes start only once."""

import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any, NamedTuple

import torch.distributed as dist
from torch.distributed import PrefixStore, TCPStore

import mimo_role
from mimo_role import Topology
from mimo_role.host import environ
from mimo_role.testing import run_ranks

LIMIT_S = 30.0
"""Of each wait."""


class Job(NamedTuple):
    """A script, and the world in which it runs."""

    script: Callable[..., None]
    """Called with a list, to which it appends what it finds, and the arguments."""
    topology: Topology
    args: tuple[Any, ...] = ()


class Outcome(NamedTuple):
    """The result of a job on one rank."""

    found: list[Any]
    error: str
    """What the script raised; empty if nothing."""
    at_shutdown: str
    """What `mimo_role.shutdown()` raised after it."""
    seconds: float

    @property
    def errors(self) -> str:
        """Both."""
        return self.error + self.at_shutdown


def run_jobs(*jobs: Job, timeout_s: float = 100.0, preload: Sequence[str] = ()) -> list[list[Outcome]]:
    """For each job, the outcomes of its ranks. `preload` as for `run_ranks`."""
    worlds = [job.topology.world_size for job in jobs]
    ranks = run_ranks(_run_each, max(worlds), jobs, timeout_s=timeout_s, preload=preload)
    return [[own[at] for own in ranks[:world]] for at, world in enumerate(worlds)]


def _run_each(jobs: tuple[Job, ...]) -> list[Outcome | None]:
    rank = environ.rank()
    store = TCPStore("127.0.0.1", int(environ.get("MASTER_PORT")), timeout=timedelta(seconds=100))
    return [
        _run(job, rank, PrefixStore(f"job {number}", store)) if rank < job.topology.world_size else None
        for number, job in enumerate(jobs)
    ]


def _run(job: Job, rank: int, store: dist.Store) -> Outcome:
    dist.init_process_group("gloo", store=store, rank=rank, world_size=job.topology.world_size)
    began, found, error, at_shutdown = time.monotonic(), [], "", ""
    try:
        mimo_role.init(job.topology, timeout_s=LIMIT_S)
        job.script(found, *job.args)
    except Exception as problem:
        error = f"{type(problem).__name__}: {problem}"
    try:
        mimo_role.shutdown()
    except Exception as problem:
        at_shutdown = f"{type(problem).__name__}: {problem}"
    seconds = time.monotonic() - began
    dist.destroy_process_group()
    return Outcome(found, error, at_shutdown, seconds)
