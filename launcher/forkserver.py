"""multiprocessing's helper processes: the fork server that ranks are forked from, and the resource tracker.

The two `ensure_running` functions have no documentation; starting the helpers without a first child is what they are for,
and `tests/launcher/test_pieces.py` fails if that changes.
"""

import multiprocessing
from multiprocessing import forkserver, resource_tracker


def start_tracker() -> None:
    """Start the resource tracker, which must outlive the run's processes: call it before they have a run id to inherit."""
    resource_tracker.ensure_running()


def start() -> None:
    """Start the fork server, and return while it is still importing torch."""
    multiprocessing.set_forkserver_preload(["launcher.preload"])
    forkserver.ensure_running()
