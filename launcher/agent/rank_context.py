"""torchelastic's interface to the processes of an attempt, over the fork server."""

import os
import signal
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from torch.distributed.elastic.multiprocessing import PContext, RunProcsResult
from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

from launcher.host.fork_server import ForkServer, Request
from mimo_role.host import environ

_FOR_AGENTS = "TORCHELASTIC_SIGNALS_TO_HANDLE"
"""A variable that only torchelastic's agents read."""
_POLL_S = 0.01
_KILL_TIMEOUT_S = 10.0


class RankContext(PContext):
    """The ranks of one attempt on this node."""

    def __init__(self, server: ForkServer, request: Request, grace_s: float, **arguments: Any) -> None:
        """
        Args:
            server: starts the processes.
            request: what each of them runs.
            grace_s: how long they may take to end after a signal, before SIGKILL.
            arguments: torchelastic's.
        """
        super().__init__(**arguments)
        self._server = server
        self._request = request
        self._grace_s = grace_s
        self._pids: dict[int, int] = {}

    def exit_codes(self) -> dict[int, int | None]:
        """By local rank: the exit code, negative for a signal; `None` while it runs."""
        return {local_rank: self._server.exit_code(pid) for local_rank, pid in self._pids.items()}

    def wait_for_ends(self, timeout_s: float) -> None:
        """Wait until all ranks have ended, at most for a time. If they had ended before, it waits that long."""
        self._server.wait_for_ends(self._pids.values(), timeout_s)

    def pids(self) -> dict[int, int]:
        return dict(self._pids)

    def _start(self) -> None:
        self._server.restart_if_dead()
        inherited = {name: value for name, value in environ.variables().items() if name != _FOR_AGENTS}
        for local_rank, variables in self.envs.items():
            streams = [_own_input(), _new_file(self.stdouts[local_rank]), _new_file(self.stderrs[local_rank])]
            try:
                self._pids[local_rank] = self._server.start_rank(self._request, inherited | variables, streams)
            finally:
                for stream in streams:
                    os.close(stream)

    def _poll(self) -> RunProcsResult | None:
        codes = self.exit_codes()
        failures = {
            local_rank: ProcessFailure(local_rank, self._pids[local_rank], code, self.error_files[local_rank])
            for local_rank, code in codes.items()
            if code
        }
        is_over = failures or None not in codes.values()
        return RunProcsResult(failures=failures, stdouts=self.stdouts, stderrs=self.stderrs) if is_over else None

    def _close(self, death_sig: signal.Signals, timeout: int = 30) -> None:  # noqa: ARG002 (torchelastic's, not the job's)
        if not self._end_by(death_sig, self._grace_s):
            self._end_by(signal.SIGKILL, _KILL_TIMEOUT_S)

    def _end_by(self, number: signal.Signals, timeout_s: float) -> bool:
        """Signal the ranks that run; return whether all have ended in time."""
        for local_rank, code in self.exit_codes().items():
            if code is None:
                with suppress(ProcessLookupError):
                    os.kill(self._pids[local_rank], number)
        deadline = time.monotonic() + timeout_s
        while None in self.exit_codes().values():
            if time.monotonic() > deadline:
                return False
            time.sleep(_POLL_S)
        return True


def _own_input() -> int:
    """As under torchrun, all ranks read what mimo-launch reads."""
    try:
        return os.dup(0)
    except OSError:  # it is closed
        return os.open(os.devnull, os.O_RDONLY)


def _new_file(path: str) -> int:
    return os.open(Path(path), os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND, 0o666)
