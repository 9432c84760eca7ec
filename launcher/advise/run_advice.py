"""Advice for a run, from its run directory."""

from collections.abc import Container

from launcher.advise.advice import Advice, Request, advise
from launcher.advise.measured import measure
from launcher.advise.placing import accepts
from launcher.errors import LaunchError
from launcher.plan.launch_plan import LaunchPlan
from launcher.run_dir.layout import RunDirLayout
from launcher.run_dir.reader import is_locked
from launcher.trace.recordings import load, load_running


def advise_run(run_dir: RunDirLayout, plan: LaunchPlan, request: Request, steps: Container[int] | None = None) -> Advice:
    """Predict the step of other layouts of a run that has ended, or that is going on on this machine.

    Args:
        run_dir, plan: of the run.
        request: which layouts.
        steps: learn from these steps of the script only.

    Raises:
        LaunchError: nothing was recorded, too little, or the request does not fit the run.
    """
    found = load_running(run_dir, plan) if is_locked(run_dir) else load(run_dir, plan, steps=steps)
    if found is None:
        raise LaunchError(
            f"{run_dir.path}: nothing is recorded here; advise needs a run under mimo-launch whose script trains with "
            "Schedule1F1B. Of a run that is going on, node 0's machine has the recordings"
        )
    try:
        measured = measure(plan, found, steps)
    except LaunchError as error:
        raise LaunchError(f"{run_dir.path}: {error}") from None
    return advise(measured, request, accepts(run_dir, plan))
