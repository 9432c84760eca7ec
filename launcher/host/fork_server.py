"""The agent's side of the fork server, the process from which the ranks of a node are started.

The agent starts the reaper, which starts the fork server, which starts the ranks (`launcher/worker/program.py`).
"""

import os
import signal
import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

from launcher.errors import LaunchError
from launcher.host import limits, reaper
from launcher.host.preload_list import PreloadList
from launcher.host.reaper import state_of
from launcher.host.server_channel import Channel
from launcher.host.server_process import ServerJob, ServerProcess
from mimo_role.host import environ

UNKNOWN_EXIT = 255
"""The exit code of ranks whose fork server has died."""
_INTERVAL_S = 1.0
_PATIENCE_S = 20.0
"""How long an import may take before a message names the module."""
_STOPPED_POLLS = 5
"""Polls before a stopped fork server is killed: exit codes and new ranks depend on it."""


@dataclass(frozen=True)
class Request:
    """What a rank's process runs."""

    kind: str
    """`run` and `rehearse`: a forked process, the main program of `words`; `exec`: a command."""
    words: tuple[str, ...]


class ForkServer:
    """The reaper and the fork server of one node. It is safe to use from several threads."""

    def __init__(self, agent_id: str, job: ServerJob, started: ServerProcess, *, preload: bool) -> None:
        """Give the job to both, and return while the server still imports torch.

        Args:
            agent_id: of the run. Processes that the run starts have it in their environment.
            job: what they need to know.
            started: both.
            preload: whether the server imports torch, and forks ranks.

        Raises:
            RuntimeError: no thread can be started.
        """
        self._agent_id, self._job, self._preload = agent_id, job, preload
        self._lock = threading.RLock()
        self._process = started
        try:
            self._process.assign(job)
            reaper.adopt_orphans()  # those of a reaper that is killed
            threading.Thread(target=self._kill_if_stopped, name="mimo-launch fork server", daemon=True).start()
        except BaseException:
            self.close()
            raise

    @property
    def has_died(self) -> bool:
        """Whether the server has exited: the exit codes of its ranks are then unknown."""
        with self._lock:
            self._channel.receive()
            return self._channel.is_closed

    def wait_for_modules(self, say: Callable[[str], None]) -> None:
        """Wait until the server has imported the modules, if there are any.

        Args:
            say: prints a message for a user who waits, or about a module that is left to the ranks.

        Raises:
            LaunchError: one that the user has listed cannot be imported, or does not fit a fork; or the server has ended.
        """
        if not self._preload or self._job.preload is None:
            return
        modules, channel = self._job.preload.modules, self._channel
        at, since, shown = channel.importing, time.monotonic(), None
        while channel.imported < len(modules) and channel.refusal is None and not channel.is_closed:
            with self._lock:
                channel.receive(timeout_s=_PATIENCE_S)
            if at != channel.importing:
                at, since = channel.importing, time.monotonic()
            elif at is not None and at != shown and time.monotonic() - since >= _PATIENCE_S:
                say(f"still importing '{modules[at].name}' ({modules[at].key})")
                shown = at
        if channel.imported < len(modules):
            self._take_refusal(self._job.preload, say)

    def _take_refusal(self, preload: PreloadList, say: Callable[[str], None]) -> None:
        at = self._channel.importing
        if at is None and not any(module.is_listed for module in preload.modules):
            return  # it has ended while it imported torch: the start of a rank reports it
        module = preload.modules[-1 if at is None else at]
        reason = self._channel.refusal or (
            f"{module.key}: the process that imports modules for all ranks ended while it imported '{module.name}'; "
            f"python -c 'import {module.name}' may show why; or {module.cure}"
        )
        if module.is_listed:
            raise LaunchError(reason)
        say(f"{reason}, as they do now")
        with self._lock:
            while not self._channel.is_closed:
                self._channel.receive(timeout_s=None)
            self._job = self._job._replace(preload=preload.without_automatic())
        try:
            self.restart_if_dead()
        except OSError as error:
            raise LaunchError(f"no process can be started: {limits.explain(error.errno or 0)}") from None
        self.wait_for_modules(say)

    def start_rank(self, request: Request, variables: Mapping[str, str], streams: Sequence[int]) -> int:
        """Start a process, and return its id.

        Args:
            request: what it runs.
            variables: its whole environment.
            streams: the descriptors of its standard input, output and error. The caller closes them.

        Raises:
            OSError: the server has died, or could not start the process.
        """
        with self._lock:
            own = {"environ": dict(variables), "open_files": limits.original_open_files()}
            answer = self._channel.ask({"kind": request.kind, "words": request.words, **own}, streams)
        if "error" in answer:
            raise OSError(answer["error"], limits.explain(answer["error"]))
        return int(answer["pid"])

    def exit_code(self, pid: int) -> int | None:
        """The exit code of a rank, negative for a signal; `None` while it runs."""
        with self._lock:
            self._channel.receive()
            return self._channel.codes.get(pid, UNKNOWN_EXIT if self._channel.is_closed else None)

    def wait_for_ends(self, pids: Collection[int], timeout_s: float) -> None:
        """Wait until all of some ranks have ended, at most for a time. If they had ended before, it waits that long."""
        deadline = time.monotonic() + timeout_s
        while (left_s := deadline - time.monotonic()) > 0 and not self._channel.is_closed:
            if not self._channel.wait(left_s):
                return
            with self._lock:
                self._channel.receive()
            if self._channel.codes.keys() >= set(pids):
                return
        time.sleep(max(0.0, deadline - time.monotonic()))

    def end_leftovers(self) -> list[int]:
        """End what earlier ranks have started and left; return the processes that could not be killed."""
        with self._lock:
            while not self._channel.server and not self._channel.is_closed:
                self._channel.receive(timeout_s=None)
        parent = self._process.reaper
        root = parent.pid if parent.poll() is None else os.getpid()
        return reaper.end_all(self._agent_id, self._job.grace_s, root, (os.getpid(), parent.pid, self._channel.server))

    def restart_if_dead(self) -> None:
        """Start a new server in place of one that has died."""
        if not self.has_died:
            return
        self.end_leftovers()
        with self._lock:
            self._process.kill()
            self._process = ServerProcess(self._agent_id, environ.variables(), preload=self._preload)
            self._process.assign(self._job)

    def close(self) -> None:
        """End all processes of the run but this one, and remove the node directory."""
        self._process.end()
        if self._process.reaper.returncode != 0:  # it was killed
            reaper.clean_up(self._agent_id, self._job.grace_s, str(self._job.directory))

    @property
    def _channel(self) -> Channel:
        return self._process.channel

    def _kill_if_stopped(self) -> None:
        stopped = 0
        while True:
            time.sleep(_INTERVAL_S)
            pid = self._channel.server
            # The process id of a server that has exited may be another process's.
            is_stopped = not self._channel.is_closed and state_of(pid) == "T"
            stopped = stopped + 1 if is_stopped else 0
            if stopped > _STOPPED_POLLS:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
