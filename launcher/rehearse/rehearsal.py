"""A rehearsal of a job on this machine, from its start to its result."""

import json
import time
from collections.abc import Callable, Mapping
from contextlib import closing, suppress
from pathlib import Path

from launcher.agent.lifecycle import session
from launcher.console import Say
from launcher.coordination.node_identity import LocalNode
from launcher.errors import ConfigError, LaunchError
from launcher.host.server_process import new_agent_id
from launcher.plan.launch_plan import LaunchPlan
from launcher.rehearse.kind_result import KindResult
from launcher.rehearse.kinds import kinds_of
from launcher.rehearse.memory import MemoryResult, check_torch
from launcher.rehearse.rehearsed_rank import rehearsed_plan
from launcher.rehearse.result import RehearsalResult
from launcher.rehearse.runner import Runner
from launcher.rehearse.traffic import TrafficResult
from launcher.run_dir.layout import RunDirLayout
from launcher.run_dir.writer import RunDir
from mimo_role.host.files import write_whole


def rehearse(
    plan: LaunchPlan,
    config_text: str,
    *,
    jobs: int,
    steps: int,
    timeout_s: float,
    tensors: str | None,
    gpu_memory_gib: Mapping[str, float | None],
    say: Say,
    report: Callable[[KindResult], None],
) -> RehearsalResult:
    """Run the script once for each kind of rank, in a world of the plan's size without communication.

    Args:
        plan: of the job.
        config_text: from which it was made.
        jobs: processes at the same time.
        steps: training steps after which scripts end; 0: when they end by themselves.
        timeout_s: how long the process of a kind may take; 0: as long as it likes.
        tensors: count the memory of tensors that are `fake` or `real`; `None`: do not.
        gpu_memory_gib: by pool, the memory of one GPU in GiB, if it is known.
        say: prints a message for a user who waits.
        report: called for each kind when it has ended.

    Raises:
        ConfigError: the job runs a command.
        LaunchError: the installed torch cannot count memory; the run directory cannot be written, or is that of another
            rehearsal that is going on; a module of `runtime.preload` cannot be imported.
    """
    if tensors is not None:
        check_torch()
    if plan.entry.command is not None:
        raise ConfigError(
            "entry.command cannot be rehearsed, only entry.script and entry.module: it may not be a Python program"
        )
    began = time.time()
    run_id = new_agent_id()
    job, plan = plan, rehearsed_plan(plan)
    with (
        closing(_take_run_dir(plan, config_text, run_id)) as run_dir,
        session(plan, LocalNode(), run_id) as (
            node_directory,
            server,
        ),
    ):
        server.wait_for_modules(say)
        runner = Runner(plan, run_dir, node_directory, server, tensors=tensors, timeout_s=timeout_s)
        try:
            results = runner.run(kinds_of(plan.topology), jobs=jobs, steps=steps, report=report)
        except OSError as error:
            place = f"{error.filename}: " if error.filename else ""
            raise LaunchError(
                f"rehearsal: {place}{error.strerror or error}; free space, or choose another folder with run_dir=..."
            ) from None
        found = RehearsalResult(
            plan=job,
            results=results,
            memory=MemoryResult(plan=job, results=results, gpu_memory_gib=gpu_memory_gib),
            traffic=TrafficResult(job, results),
            seconds=time.time() - began,
            jobs=jobs,
            tensors=tensors,
        )
        try:
            write_whole(run_dir.rehearsal_file, json.dumps(found.as_dict(), indent=1))
        except OSError as error:
            say(f"{run_dir.rehearsal_file}: {error.strerror or error}; the results are printed only")
        return found


def _take_run_dir(plan: LaunchPlan, config_text: str, run_id: str) -> RunDir:
    """Take the run directory of rehearsals, with what marks it as one from the start on."""
    path = RunDirLayout(Path(plan.run_dir)).rehearsal.path
    run_dir = RunDir(path, config_text, plan.to_json(), run_id, run_id)
    with suppress(OSError):  # the runner reports it
        run_dir.rehearsed_files_dir.mkdir(exist_ok=True)
    return run_dir
