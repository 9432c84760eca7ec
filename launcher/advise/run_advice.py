"""Advice for a run or a rehearsal, from its run directory."""

from collections.abc import Container, Iterator
from contextlib import contextmanager

from launcher.advise.advice import Advice, Request, advise
from launcher.advise.measured import Measured, measure
from launcher.advise.placing import accepts
from launcher.advise.rehearsal_record import ranks_meet
from launcher.advise.rehearsed import measure_rehearsal
from launcher.errors import LaunchError
from launcher.plan.launch_plan import LaunchPlan
from launcher.run_dir.layout import RunDirLayout
from launcher.run_dir.lock import is_locked
from launcher.run_dir.rehearsal_result import is_rehearsal
from launcher.trace.recordings import load, load_running


def advise_run(run_dir: RunDirLayout, plan: LaunchPlan, request: Request, steps: Container[int] | None = None) -> Advice:
    """Predict the step of other layouts of a run that has ended, or that is going on on this machine, or was rehearsed.

    Args:
        run_dir, plan: of the run or the rehearsal.
        request: which layouts.
        steps: learn from these steps of the script only.

    Raises:
        LaunchError: nothing was recorded, too little, or the request does not fit the run.
    """
    measured = _of_rehearsal(run_dir, plan, steps) if is_rehearsal(run_dir) else _of_run(run_dir, plan, steps)
    return advise(measured, request, accepts(run_dir, plan))


def _of_run(run_dir: RunDirLayout, plan: LaunchPlan, steps: Container[int] | None) -> Measured:
    found = load_running(run_dir, plan) if is_locked(run_dir) else load(run_dir, plan, steps=steps)
    if found is None:
        raise LaunchError(
            f"{run_dir.path}: nothing is recorded here; advise needs a run under mimo-launch whose script trains with "
            "Schedule1F1B. Of a run that is going on, node 0's machine has the recordings"
        )
    with _named(run_dir):
        return measure(plan, found, steps)


def _of_rehearsal(run_dir: RunDirLayout, plan: LaunchPlan, steps: Container[int] | None) -> Measured:
    meets = ranks_meet(run_dir)
    found = load(run_dir, plan, steps=steps)
    if found is None:
        raise LaunchError(
            f"{run_dir.path}: nothing is recorded in this rehearsal; advise needs a script that trains with Schedule1F1B, and "
            "room in /dev/shm"
        )
    with _named(run_dir):
        return measure_rehearsal(plan, found, meets=meets, script_steps=steps)


@contextmanager
def _named(run_dir: RunDirLayout) -> Iterator[None]:
    """Errors begin with the run directory."""
    try:
        yield
    except LaunchError as error:
        raise LaunchError(f"{run_dir.path}: {error}") from None
