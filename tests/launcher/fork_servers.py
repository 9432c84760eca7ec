"""Fork servers in tests."""

from pathlib import Path

from launcher.host.fork_server import ForkServer
from launcher.host.preload_list import PreloadList
from launcher.host.server_process import ServerJob, ServerProcess
from mimo_role.host import environ


def start(
    agent_id: str, directory: Path, *, grace_s: float = 5.0, preload: bool = False, wanted: PreloadList | None = None
) -> ForkServer:
    """Start one in this process's environment; the caller closes it, which removes the directory."""
    process = ServerProcess(agent_id, environ.variables(), preload=preload)
    return ForkServer(agent_id, ServerJob(grace_s=grace_s, directory=directory, preload=wanted), process, preload=preload)
