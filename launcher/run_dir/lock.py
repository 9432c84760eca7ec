"""Whether a run is going on in a run directory, by its lock."""

import fcntl
import os

from launcher.run_dir.layout import RunDirLayout


def is_locked(run_dir: RunDirLayout) -> bool:
    """Whether a run is going on in a run directory."""
    try:
        file = os.open(run_dir.lock_file, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(file)
    return False
