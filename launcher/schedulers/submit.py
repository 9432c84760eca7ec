"""Submits a plan to a scheduler, or shows what would be submitted."""

import sys
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from launcher.config.schema import PoolConfig
from launcher.errors import LaunchError
from launcher.formatting import counted
from launcher.plan.launch_plan import LaunchPlan
from launcher.run_dir.layout import RunDirLayout
from launcher.schedulers.app_def import over_shared_files, pools_in_order, self_contained
from launcher.schedulers.sbatch_script import Component, component
from launcher.schedulers.slurm_scheduler import NAME as SLURM
from launcher.schedulers.slurm_scheduler import MimoSlurmScheduler
from launcher.schedulers.submission import Submission
from launcher.schedulers.torchx_api import AppDef, Runner, get_scheduler_factories
from mimo_role import __version__

SESSION = "mimo"

_ENDS_WITH_THIS_PROCESS = "local_cwd"
_EXTRAS = dict.fromkeys(("kubernetes", "kubernetes_mcad"), 'install its client: pip install "mimo-launch[kubernetes]"')
"""What a missing package means, by scheduler."""

_Answer = TypeVar("_Answer")


@dataclass(frozen=True, kw_only=True)
class Request:
    """A plan to submit, and how."""

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
    """A job that a scheduler has accepted."""

    handle: str
    """Its name for `status`, `logs` and `cancel`."""
    folder: Path | None
    """The directory of the submission, where there is one."""


def schedulers() -> list[str]:
    """The names that `--to` takes."""
    return sorted(get_scheduler_factories())


def runner() -> Runner:
    """torchx's runner over its own schedulers."""
    return Runner(SESSION, get_scheduler_factories())


def submit(request: Request) -> Submitted:
    """Submit the plan.

    Raises:
        ConfigError: an option that would break the job.
        LaunchError: the submission cannot be written, or the scheduler does not accept it.
    """
    if request.to == _ENDS_WITH_THIS_PROCESS:
        raise LaunchError(f"--to {request.to}: torchx ends its local jobs when this program ends; use mimo-launch run")
    if request.to != SLURM:
        with closing(runner()) as torchx_runner:
            send = partial(torchx_runner.run, _app(request), request.to, cfg=_options(torchx_runner, request))
            return Submitted(str(_call(request.to, send)), None)
    components = _components(request)
    submission, plan, cwd = Submission.new(request.plan, request.config_text, snapshot=request.snapshot)
    with closing(_slurm_runner(components)) as torchx_runner:
        handle = torchx_runner.run(*_slurm_request(request, submission, plan, cwd))
    return Submitted(str(handle).rpartition("/")[2], submission.path)


def status_of(handle: str) -> str:
    """The state of a job of torchx's own schedulers, as torchx prints it.

    Raises:
        LaunchError: there is no such job, or torchx cannot reach the scheduler.
    """
    with closing(runner()) as torchx_runner:
        found = _call(handle.partition(":")[0], partial(torchx_runner.status, handle))
    if found is None:
        raise LaunchError(f"{handle}: torchx finds no such job")
    return str(found)


def cancel(handle: str) -> None:
    """Cancel a job of torchx's own schedulers.

    Raises:
        LaunchError: torchx cannot cancel it.
    """
    with closing(runner()) as torchx_runner:
        _call(handle.partition(":")[0], partial(torchx_runner.cancel, handle))


def dry_run(request: Request) -> str:
    """What would be submitted, as text. Nothing is written; paths are those of a submission named DRY-RUN.

    Raises:
        ConfigError: an option that would break the job.
        LaunchError: the scheduler does not accept it.
    """
    if request.to != SLURM:
        with closing(runner()) as torchx_runner:
            make = partial(torchx_runner.dryrun, _app(request), request.to, cfg=_options(torchx_runner, request))
            return str(_call(request.to, make))
    submission = Submission(RunDirLayout(Path(request.plan.run_dir)).jobs_dir / "DRY-RUN")
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


def _slurm_request(request: Request, submission: Submission, plan: LaunchPlan, cwd: Path) -> tuple[AppDef, str, dict[str, str]]:
    command = [*_program(), "run", str(submission.plan_file), *(["--verbose"] if plan.verbose else [])]
    app = over_shared_files(plan, pools_in_order(plan, request.pools), command)
    size = f"{counted(plan.topology.world_size, 'rank')} on {counted(len(plan.nodes), 'node')}"
    title = f"{plan.name}: {size}, topology {plan.topology.digest[:12]}; by mimo-launch {__version__}"
    return app, SLURM, {"job_dir": str(submission.path), "cwd": str(cwd), "title": title}


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
    """The command that starts this same installation on a node.

    As a module it might import another `launcher` from the working directory.
    """
    script = Path(sys.executable).with_name("mimo-launch")
    return [str(script)] if script.exists() else [sys.executable, "-m", "mimo_launch"]


def _call(scheduler: str, function: Callable[[], _Answer]) -> _Answer:
    """Call torchx; what its schedulers raise becomes a message."""
    try:
        return function()
    except LaunchError:
        raise
    except ImportError as error:
        package = _EXTRAS.get(scheduler, "torchx needs another package for it")
        raise LaunchError(f"--to {scheduler}: {error}; {package}") from error
    except Exception as error:
        raise LaunchError(f"--to {scheduler}: {type(error).__name__}: {(str(error) or 'failed').splitlines()[0]}") from error
