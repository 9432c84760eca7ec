"""The fork server that ranks are forked from: it has imported torch once, and started before anything else did.

`multiprocessing.forkserver.ensure_running` has no documentation; starting the server without a first child is what it is
for, and `tests/launcher/test_forkserver.py` fails if that changes.
"""

import multiprocessing
from multiprocessing import forkserver


def start() -> None:
    """Start the server now, and return while it is still importing."""
    multiprocessing.set_forkserver_preload(["launcher.preload"])
    forkserver.ensure_running()
