"""What each rank says of itself before it joins: enough to see which of them differ.

In the folder that a node's ranks share with their agent stand `rank3.facts` for each rank that is there, and in the end
`verdict`, which the agent writes (`arrivals.py`) and, where there are several nodes, every rank waits for. No rank needs a
connection for it.
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

GO, STOP = "go", "stop"
_LOOK_S = 0.005
_LONGER_S = 30.0
"""The agent has the same limit as the ranks, and names who is missing; it gets time to."""


def facts_file(folder: Path, rank: int) -> Path:
    """Where a rank's facts stand."""
    return folder / f"rank{rank}.facts"


def verdict_file(folder: Path) -> Path:
    """Whether the ranks may go on."""
    return folder / "verdict"


@dataclass(frozen=True, kw_only=True)
class Facts:
    """One rank."""

    rank: int
    local_rank: int
    host: str
    topology: str
    """The digest of the topology that it holds."""
    script: str
    """The digest of the script that it runs; empty for a module."""
    python: str
    mimo_launch: str
    resolves: bool
    """Whether its host's own name has an address there."""
    torch: str = ""
    """Empty, as are the next, where the entry is a command."""
    cuda: str = ""
    """The CUDA release that torch was built for; empty for none."""
    nccl: str = ""
    gpus: int = 0
    """How many GPUs it sees."""

    @classmethod
    def from_json(cls, text: str | bytes) -> "Facts":
        """The inverse of `to_json`."""
        return cls(**json.loads(text))

    def to_json(self) -> str:
        """As it stands in the file."""
        return json.dumps(asdict(self))


def gather(*, rank: int, local_rank: int, topology_digest: str, entry: Entry) -> Facts:
    """This process's facts; those of torch where the entry is Python's."""
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


def arrive(facts: Facts, folder: Path, timeout_s: float, *, wait: bool) -> bool:
    """Tell this node's agent that the rank is there; with `wait`, whether all fit together, as soon as all are there.

    Raises:
        TimeoutError: the agent says nothing for much longer than the timeout.
    """
    write_whole(facts_file(folder, facts.rank), facts.to_json())
    deadline = time.monotonic() + timeout_s + _LONGER_S
    while wait:
        with suppress(FileNotFoundError):
            return verdict_file(folder).read_text(encoding="utf-8") == GO
        if time.monotonic() > deadline:
            raise TimeoutError("mimo-launch did not say whether the ranks fit together")
        time.sleep(_LOOK_S)
    return True


def let_go(folder: Path, verdict: str) -> None:
    """Tell the ranks of this node how it goes on."""
    write_whole(verdict_file(folder), verdict)


def read_facts(folder: Path, rank: int) -> Facts | None:
    """A rank's facts; `None` as long as it is not there."""
    try:
        return Facts.from_json(facts_file(folder, rank).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _of_torch() -> dict[str, Any]:
    import torch

    gpus = torch.cuda.device_count() if torch.version.cuda else 0
    return {"torch": torch.__version__, "cuda": torch.version.cuda or "", "nccl": _nccl_version(torch), "gpus": gpus}


def _digest_of(script: str | None) -> str:
    try:
        return hashlib.sha256(Path(script).read_bytes()).hexdigest()[:12] if script is not None else ""
    except OSError:  # running it will tell why
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
