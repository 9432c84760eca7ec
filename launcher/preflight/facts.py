"""What each rank says of itself before it joins: enough to see which of them differ.

The store of a start has `facts/RANK` for each rank that is there, `arrived` (their number), and in the end `verdict`, which
node 0's agent writes (`arrivals.py`) and every rank waits for.
"""

import hashlib
import json
import os
import platform
import socket
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from launcher.plan import Entry
from mimo_role import __version__

ARRIVED, VERDICT, GO, STOP = "arrived", "verdict", "go", "stop"
_LONGER_S = 30.0
"""The agent has the same limit as the ranks, and names who is missing; it gets time to."""


def facts_key(rank: int) -> str:
    """Where a rank's facts stand."""
    return f"facts/{rank}"


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
    torch: str
    cuda: str
    """The CUDA release that torch was built for; empty for none."""
    nccl: str
    mimo_launch: str
    gpus: int
    """How many GPUs it sees."""
    resolves: bool
    """Whether its host's own name has an address there."""

    @classmethod
    def from_json(cls, text: str | bytes) -> "Facts":
        """The inverse of `to_json`."""
        return cls(**json.loads(text))

    def to_json(self) -> str:
        """As it stands in the store."""
        return json.dumps(asdict(self))


def gather(*, rank: int, local_rank: int, topology_digest: str, entry: Entry) -> Facts:
    """This process's facts. It has loaded torch already."""
    import torch

    host = socket.gethostname()
    return Facts(
        rank=rank,
        local_rank=local_rank,
        host=host,
        topology=topology_digest,
        script=_digest_of(entry.script),
        python=platform.python_version(),
        torch=torch.__version__,
        cuda=torch.version.cuda or "",
        nccl=_nccl_version(torch),
        mimo_launch=__version__,
        gpus=torch.cuda.device_count() if torch.version.cuda else 0,
        resolves=_resolves(host),
    )


def arrive(facts: Facts, address: str, port: int, timeout_s: float, *, wait: bool) -> bool:
    """Tell node 0's agent that this rank is there; with `wait`, whether all fit together, as soon as all are there.

    Raises:
        torch.distributed.DistError: the agent has gone, or says nothing for much longer than the timeout.
    """
    from torch.distributed import TCPStore  # type: ignore[attr-defined]

    store = TCPStore(address, port, wait_for_workers=False, timeout=timedelta(seconds=timeout_s + _LONGER_S))
    store.set(facts_key(facts.rank), facts.to_json())
    store.add(ARRIVED, 1)
    return not wait or store.get(VERDICT) == GO.encode()


def _digest_of(script: str | None) -> str:
    return hashlib.sha256(Path(script).read_bytes()).hexdigest()[:12] if script is not None and os.path.exists(script) else ""  # noqa: PTH110


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
