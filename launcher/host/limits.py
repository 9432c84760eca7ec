"""Limits of this machine or its container that keep a process from starting, with the command that shows each."""

import errno
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager

from launcher.errors import LaunchError

_NUMBERS = {errno.EMFILE: resource.RLIMIT_NOFILE, errno.EAGAIN: resource.RLIMIT_NPROC}
_HINTS = {
    errno.EMFILE: "the limit of open files is {limit} (ulimit -n); raise it",
    errno.ENFILE: "the machine has reached its limit of open files (sysctl fs.file-max)",
    errno.EAGAIN: "the limit of processes is {limit} (ulimit -u), or the container's (pids.max); raise it, or use fewer ranks",
    errno.ENOMEM: "there is no memory for another process; start fewer ranks on this machine",
    errno.ENOSPC: "the disk, or /dev/shm, is full",
    errno.ECONNRESET: "the process from which ranks are started (the fork server) has died",
}


_OWN_FILES = 40
_FILES_PER_RANK = 4
_soft_limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def allow_open_files(ranks: int) -> None:
    """Raise this process's soft limit of open files, if it is too low to follow so many ranks.

    Raises:
        LaunchError: the hard limit is too low, too.
    """
    needed = _OWN_FILES + _FILES_PER_RANK * ranks
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return
    if hard != resource.RLIM_INFINITY and hard < needed:
        raise LaunchError(
            f"the limit of open files is {hard} (ulimit -Hn), and mimo-launch needs {needed} for {ranks} ranks; "
            "raise it, in a container by --ulimit nofile=65536, or put fewer ranks on a machine"
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))


def original_open_files() -> int:
    """The soft limit that this process was started with, which is for its ranks."""
    return _soft_limit


def restore_open_files(soft: int) -> None:
    """Set the soft limit of a rank."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))


@contextmanager
def threads_as_os_errors() -> Iterator[None]:
    """Raise an `OSError` for a thread that cannot be started, as for a process. Python has a `RuntimeError` for it."""
    try:
        yield
    except RuntimeError as error:
        if "start new thread" not in str(error):
            raise
        raise OSError(errno.EAGAIN, explain(errno.EAGAIN)) from None


def explain(number: int) -> str:
    """The text of an error number, with the limit behind it where it is known."""
    hint = _HINTS.get(number)
    if hint is None:
        return os.strerror(number)
    limit = resource.getrlimit(_NUMBERS[number])[0] if number in _NUMBERS else None
    return f"{os.strerror(number)}: {hint.format(limit='unlimited' if limit == resource.RLIM_INFINITY else limit)}"
