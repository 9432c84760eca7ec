"""The two processes below mimo-launch from which a node's ranks are started: the reaper, and below it the fork server.

They start without the job, which `assign` gives them, so that the fork server can import torch while the job is planned.
"""

import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import launcher
from launcher.host import reaper
from launcher.host.preload_list import PreloadList
from launcher.host.server_channel import Channel
from mimo_role.host import environ

PROGRAM = str(Path(launcher.__path__[0], "worker", "program.py"))
_HUGE_PAGES = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
"""Lets `malloc` ask for huge pages (madvise(2)), where the system leaves that to programs. A fork copies the page table, in
which a huge page has one entry in place of 512: it takes half the time."""


class ServerJob(NamedTuple):
    """What both processes need to know of the job."""

    grace_s: float
    """Between SIGTERM and SIGKILL, for what is left once mimo-launch has ended."""
    directory: Path
    """The node directory, which the reaper removes."""
    preload: PreloadList | None = None
    """What the server imports for all ranks, after torch."""


def new_agent_id() -> str:
    """A name for a run of this process that begins now, unique on this machine. Later runs are sorted behind earlier ones."""
    return f"{time.strftime('%Y%m%dT%H%M%S', time.gmtime())}-{os.getpid()}"


def interpreter() -> list[str]:
    """The command of a new interpreter with the options of this one. Like torchrun's ranks it writes output at once (`-u`):
    C code too."""
    return [sys.executable, "-u", *subprocess._args_from_interpreter_flags()]  # type: ignore[attr-defined]


class ServerProcess:
    """A reaper and its fork server."""

    def __init__(self, agent_id: str, variables: Mapping[str, str], *, preload: bool) -> None:
        """Start both, and return while the server still imports torch.

        Args:
            agent_id: of the run.
            variables: the environment of both, in which torch is imported. It gets `GLIBC_TUNABLES` if it has none.
            preload: whether the server imports torch, and forks ranks.

        Raises:
            OSError: no process can be started.
        """
        if preload and _copies_small_pages():
            variables = {**_HUGE_PAGES, **variables}
        ours, theirs = socket.socketpair()
        with theirs:
            server = [*interpreter(), PROGRAM, "serve", str(theirs.fileno()), "preload" if preload else "bare"]
            command = [sys.executable, "-I", "-S", reaper.__file__, agent_id, str(theirs.fileno()), *server]
            try:
                self.reaper = subprocess.Popen(
                    command, stdin=subprocess.PIPE, pass_fds=(theirs.fileno(),), start_new_session=True, env=variables
                )
            except BaseException:
                ours.close()
                raise
        self.channel = Channel(ours)
        """To the fork server."""

    def assign(self, job: ServerJob) -> None:
        """Give both the job, once, and the fork server this process's environment.

        If one of them has been killed, the next request to the server finds that.
        """
        with suppress(BrokenPipeError):
            assert self.reaper.stdin is not None, "it is a pipe"
            self.reaper.stdin.write(reaper.job(job.grace_s, str(job.directory)))
            self.reaper.stdin.flush()
        preload = None if job.preload is None else job.preload.to_json()
        self.channel.send({"environ": dict(environ.variables()), "preload": preload})

    def end(self, timeout_s: float | None = None) -> None:
        """End both, and all that they have started. The reaper removes the job's node directory.

        Args:
            timeout_s: how long to wait until that is done; by default without a limit.
        """
        self.channel.close()  # the server exits while the reaper looks for other processes
        with suppress(subprocess.TimeoutExpired):
            self.reaper.communicate(timeout=timeout_s)  # it waits for the end of its input

    def kill(self) -> None:
        """End the reaper at once; the fork server has ended."""
        self.channel.close()
        self.reaper.kill()
        self.reaper.communicate()


def _copies_small_pages() -> bool:
    """Whether a write to a huge page that processes share copies 4 KiB of it. Before Linux 5.8 it copied 2 MiB."""
    found = re.match(r"(\d+)\.(\d+)", os.uname().release)
    return found is not None and (int(found[1]), int(found[2])) >= (5, 8)
