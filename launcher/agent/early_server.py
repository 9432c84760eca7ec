"""A fork server that starts before the job is planned. Planning takes a sixth of the time of the import of torch."""

from collections.abc import Mapping
from contextlib import suppress

from launcher.host import reaper
from launcher.host.server_process import ServerProcess, new_agent_id
from mimo_role.host import environ

_ASSUMED = {"OMP_NUM_THREADS": "1"}
"""What a job of several ranks sets where it is not set."""
_WITHOUT_EFFECT = {reaper.AGENT_ID, environ.NODE_DIR, "GLOO_SOCKET_IFNAME"}
"""Variables that the job sets, and that nothing reads while torch is imported."""
_PATIENCE_S = 2.0
"""How long a user waits for the end of processes that no job needs. The kernel may be unable to kill one that reads a file."""


class EarlyServer:
    """The reaper and the fork server, until a job takes them. As a context manager it ends those that no job has taken."""

    def __init__(self) -> None:
        self.agent_id = new_agent_id()
        self._environ = {**_ASSUMED, **environ.variables(), reaper.AGENT_ID: self.agent_id}
        self._process: ServerProcess | None = None

    def __enter__(self) -> "EarlyServer":
        with suppress(OSError):  # the job starts them again, and reports it
            self._process = ServerProcess(self.agent_id, self._environ, preload=True)
        return self

    def __exit__(self, *_: object) -> None:
        self._end(_PATIENCE_S)

    def take(self, *, preload: bool) -> ServerProcess | None:
        """Both processes, which are the caller's to end from now on.

        Args:
            preload: whether the server is to import torch.

        Returns:
            `None` if there are none, if the server does not fit, or if this process's environment is not the one in which
            torch was imported, such as by `env` of the config. They have been ended then: their reaper would end those
            that have the same agent's id.
        """
        if not preload or self._effective(environ.variables()) != self._effective(self._environ):
            self._end()
        process, self._process = self._process, None
        return process

    def _end(self, timeout_s: float | None = None) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.end(timeout_s)

    @staticmethod
    def _effective(variables: Mapping[str, str]) -> dict[str, str]:
        return {name: value for name, value in variables.items() if name not in _WITHOUT_EFFECT}
