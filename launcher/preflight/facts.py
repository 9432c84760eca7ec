"""The facts of each rank before it joins: versions, files and devices that should be the same on all ranks.

Every rank writes its facts to the node directory. The agent (`check.py`) writes the verdict there, for which every rank waits
where there are several nodes. No rank needs a connection for this.
"""

import hashlib
import json
import platform
import socket
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from launcher.plan.launch_plan import Entry
from mimo_role import __version__
from mimo_role.host.files import write_whole
from mimo_role.host.node_dir import facts_file, verdict_file

GO, STOP = "go", "stop"
_INTERVAL_S = 0.005
_EXTRA_S = 30.0
"""The agent has the same timeout, and needs time to report which ranks are missing."""


@dataclass(frozen=True, kw_only=True)
class Facts:
    """The facts of one rank."""

    rank: int
    local_rank: int
    host: str
    topology: str
    """The digest of its topology."""
    script: str
    """The digest of its script; empty for a module."""
    python: str
    mimo_launch: str
    resolves: bool
    """Whether the name of its host resolves on that host."""
    torch: str = ""
    """Empty, like the following, where the entry is a command."""
    cuda: str = ""
    """The CUDA release that torch was built for; empty for none."""
    nccl: str = ""
    gpus: int = 0
    """The number of GPUs visible to it."""

    @classmethod
    def from_json(cls, text: str | bytes) -> "Facts":
        """The inverse of `to_json`."""
        return cls(**json.loads(text))

    def to_json(self) -> str:
        """The content of the file."""
        return json.dumps(asdict(self))


def gather(*, rank: int, local_rank: int, topology_digest: str, entry: Entry) -> Facts:
    """The facts of this process, with torch's if the entry is a script or a module."""
    host = socket.gethostname()
    return Facts(
        rank=rank,
        local_rank=local_rank,
        host=host,
        topology=topology_digest,
        script=_digest_of(entry.script),
        python=platform.python_version(),
        mimo_launch=__version__,
        resolves=_resolves(host),
        **(_of_torch() if entry.command is None else {}),
    )


def arrive(facts: Facts, node_dir: Path, timeout_s: float, *, wait: bool) -> bool:
    """Write the facts for this node's agent; with `wait`, wait for the verdict, which comes once all ranks have arrived.

    Returns:
        Whether the rank may continue.

    Raises:
        TimeoutError: there is no verdict long after the timeout.
    """
    write_whole(facts_file(node_dir, facts.rank), facts.to_json())
    deadline = time.monotonic() + timeout_s + _EXTRA_S
    while wait:
        with suppress(FileNotFoundError):
            return verdict_file(node_dir).read_text(encoding="utf-8") == GO
        if time.monotonic() > deadline:
            raise TimeoutError("timed out: no result of the preflight check from mimo-launch")
        time.sleep(_INTERVAL_S)
    return True


def write_verdict(node_dir: Path, verdict: str) -> None:
    """Write the result of the check for the ranks of this node."""
    write_whole(verdict_file(node_dir), verdict)


def read_facts(node_dir: Path, rank: int) -> Facts | None:
    """A rank's facts; `None` until it has arrived."""
    try:
        return Facts.from_json(facts_file(node_dir, rank).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _of_torch() -> dict[str, Any]:
    import torch

    gpus = torch.cuda.device_count() if torch.version.cuda else 0
    return {"torch": torch.__version__, "cuda": torch.version.cuda or "", "nccl": _nccl_version(torch), "gpus": gpus}


def _digest_of(script: str | None) -> str:
    try:
        return hashlib.sha256(Path(script).read_bytes()).hexdigest()[:12] if script is not None else ""
    except OSError:  # the error occurs when the script is run
        return ""


def _nccl_version(torch: Any) -> str:
    if not torch.version.cuda or not torch.distributed.is_nccl_available():
        return ""
    return ".".join(map(str, torch.cuda.nccl.version()))


def _resolves(host: str) -> bool:
    try:
        socket.getaddrinfo(host, None)
    except OSError:
        return False
    return True
