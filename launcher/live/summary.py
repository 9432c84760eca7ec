"""The live view of a run that is going on, as `mimo-launch status` shows it."""

from launcher.errors import LaunchError
from launcher.formatting import printable
from launcher.live.status_line import status_line
from launcher.live.view import LiveView
from launcher.run_dir.layout import RunDirLayout
from launcher.stragglers.text import describe


def read_view(run_dir: RunDirLayout) -> LiveView | None:
    """The view in a run directory; `None` as long as there is none, or while it cannot be read.

    Raises:
        LaunchError: it was written by another version of mimo-launch.
    """
    try:
        text = run_dir.live_file.read_text(encoding="utf-8")
    except (OSError, ValueError):
        return None
    try:
        return LiveView.from_json(text)
    except LaunchError as error:
        raise LaunchError(f"{run_dir.live_file}: {error}") from None


def summary(view: LiveView) -> list[str]:
    """The status line and the stragglers, a line each; none before the first step."""
    if view.step is None:
        return []
    return [status_line(view), *(f"straggler: {printable(describe(each))}" for each in view.stragglers)]
