"""From a plan to a submitted job, or to what would be sent."""

import sys
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from torchx.runner.api import Runner
from torchx.schedulers import get_scheduler_factories
from torchx.specs import AppDef

from launcher.config.schema import PoolConfig
from launcher.errors import LaunchError
from launcher.plan.launch_plan import LaunchPlan
from launcher.plan.render import count
from launcher.schedulers.app_def import over_shared_files, pools_in_order, self_contained
from launcher.schedulers.sbatch_script import Component, component
from launcher.schedulers.slurm_scheduler import NAME as SLURM
from launcher.schedulers.slurm_scheduler import MimoSlurmScheduler, create_scheduler
from launcher.schedulers.submission import Submission
from mimo_role import __version__

SESSION = "mimo"

_ENDS_WITH_US = "local_cwd"

_Answer = TypeVar("_Answer")


@dataclass(frozen=True, kw_only=True)
class Request:
    """What is to be submitted, and how."""

    plan: LaunchPlan
    pools: Mapping[str, PoolConfig]
    config_text: str
    to: str
    """The scheduler's name."""
    snapshot: bool = False
    """Whether the job runs a copy of the code."""
    image: str | None = None
    """The container image, for schedulers that run one."""
    options: tuple[str, ...] = ()
    """`key=value` for the scheduler."""


@dataclass(frozen=True)
class Submitted:
    """A job that a scheduler has taken."""

    handle: str
    """By which `status`, `logs` and `cancel` know it."""
    folder: Path | None
    """The submission's folder, where there is one."""


def schedulers() -> list[str]:
    """The names that `--to` takes."""
    return sorted(get_scheduler_factories())


def runner() -> Runner:
    """torchx's runner over its own schedulers, with SLURM's replaced by ours."""
    return Runner(SESSION, {**get_scheduler_factories(), SLURM: create_scheduler})


def submit(request: Request) -> Submitted:
    """Hand the plan to the scheduler.

    Raises:
        ConfigError: an option that would break the job.
        LaunchError: it cannot be written, or the scheduler refuses.
    """
    if request.to == _ENDS_WITH_US:
        raise LaunchError(f"--to {request.to}: torchx ends its local jobs with this program; use mimo-launch run")
    if request.to != SLURM:
        with closing(runner()) as torchx_runner:
            send = partial(torchx_runner.run, _app(request), request.to, cfg=_options(torchx_runner, request))
            return Submitted(str(_ask(request.to, send)), None)
    components = _components(request)
    submission, plan, folder = Submission.new(request.plan, request.config_text, snapshot=request.snapshot)
    with closing(_slurm_runner(components)) as torchx_runner:
        handle = torchx_runner.run(*_slurm_request(request, submission, plan, folder))
    return Submitted(str(handle).rpartition("/")[2], submission.folder)


def status_of(handle: str) -> str:
    """What torchx says of a job of its own schedulers.

    Raises:
        LaunchError: there is no such job, or torchx cannot ask.
    """
    with closing(runner()) as torchx_runner:
        found = _ask(handle.partition(":")[0], partial(torchx_runner.status, handle))
    if found is None:
        raise LaunchError(f"{handle}: torchx knows no such job")
    return str(found)


def cancel(handle: str) -> None:
    """End a job of torchx's own schedulers.

    Raises:
        LaunchError: torchx cannot.
    """
    with closing(runner()) as torchx_runner:
        _ask(handle.partition(":")[0], partial(torchx_runner.cancel, handle))


def dry_run(request: Request) -> str:
    """What would be sent, as text. Nothing is written; paths are those of a submission called DRY-RUN.

    Raises:
        ConfigError: an option that would break the job.
        LaunchError: the scheduler refuses.
    """
    if request.to != SLURM:
        with closing(runner()) as torchx_runner:
            make = partial(torchx_runner.dryrun, _app(request), request.to, cfg=_options(torchx_runner, request))
            return str(_ask(request.to, make))
    submission = Submission(Path(request.plan.run_dir) / "jobs" / "DRY-RUN")
    with closing(_slurm_runner(_components(request))) as torchx_runner:
        return str(torchx_runner.dryrun(*_slurm_request(request, submission, request.plan, Path.cwd())))


def _components(request: Request) -> list[Component]:
    return [
        component(pool.pool, pool.nodes, pool.procs, pool.config.slurm, request.plan.runtime.warning_s)
        for pool in pools_in_order(request.plan, request.pools)
    ]


def _slurm_runner(components: list[Component]) -> Runner:
    def create(session_name: str, **_: object) -> MimoSlurmScheduler:
        return MimoSlurmScheduler(session_name, components)

    return Runner(SESSION, {SLURM: create})


def _slurm_request(
    request: Request, submission: Submission, plan: LaunchPlan, folder: Path
) -> tuple[AppDef, str, dict[str, str]]:
    command = [*_program(), "run", str(submission.plan_file), *(["--verbose"] if plan.verbose else [])]
    app = over_shared_files(plan, pools_in_order(plan, request.pools), command)
    size = f"{count(plan.topology.world_size, 'rank')} on {count(len(plan.nodes), 'node')}"
    title = f"{plan.name}: {size}, topology {plan.topology.digest[:12]}; by mimo-launch {__version__}"
    return app, SLURM, {"job_dir": str(submission.folder), "cwd": str(folder), "title": title}


def _app(request: Request) -> AppDef:
    return self_contained(request.plan, pools_in_order(request.plan, request.pools), request.image or "", Path.cwd())


def _options(torchx_runner: Runner, request: Request) -> dict[str, Any]:
    """`--option` as torchx reads it.

    Raises:
        LaunchError: an option that the scheduler does not have.
    """
    known = torchx_runner.scheduler_run_opts(request.to)
    for option in request.options:
        name, equals, _ = option.partition("=")
        if not equals or known.get(name) is None:
            names = ", ".join(key for key, _ in known)
            raise LaunchError(f"--option {option}: {request.to} takes NAME=VALUE with the names {names}")
    config: dict[str, Any] = {}
    for option in request.options:
        config |= known.cfg_from_str(option)
    return config


def _program() -> list[str]:
    """How the nodes start this same installation; as a module it might meet another `launcher` in the current folder."""
    script = Path(sys.executable).with_name("mimo-launch")
    return [str(script)] if script.exists() else [sys.executable, "-m", "launcher"]


def _ask(scheduler: str, ask: Callable[[], _Answer]) -> _Answer:
    """What torchx's schedulers raise, as a message."""
    try:
        return ask()
    except LaunchError:
        raise
    except ImportError as error:
        raise LaunchError(f"--to {scheduler}: {error}; torchx needs another package for it") from error
    except Exception as error:
        raise LaunchError(f"--to {scheduler}: {type(error).__name__}: {(str(error) or 'failed').splitlines()[0]}") from error
