"""What the ranks have recorded: kept in the run directory when they end, and read from there or from shared memory."""

import gzip
import json
import logging
import struct
import zlib
from collections.abc import Container, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from launcher.coordination.clock_offset import ClockOffset
from launcher.plan.launch_plan import LaunchPlan
from launcher.run_dir.layout import RunDirLayout
from mimo_role.host import node_dir
from mimo_role.monitoring import ring
from mimo_role.monitoring.records import Recording, is_empty, parse, used_bytes

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Recordings:
    """What is there of one attempt."""

    attempt: int
    by_rank: dict[int, Recording]
    clocks: dict[int, ClockOffset]
    """By node; without those that could not be measured."""


def save(run_dir: RunDirLayout, attempt: int, node_directory: Path, ranks: Iterable[int]) -> int:
    """Copy the recordings of a node's ranks to the directory of their logs; return of how many ranks there is one.

    What cannot be written is logged.
    """
    saved = 0
    for rank in ranks:
        copied = ring.copy(node_dir.recording_file(node_directory, rank))
        if copied is None or is_empty(copied[0]):
            continue
        path = run_dir.recording_file(attempt, rank)
        try:
            # Compressed it is a fifth, which many ranks write at once.
            path.write_bytes(gzip.compress(copied[0][: used_bytes(copied[0])], compresslevel=1))
            saved += 1
        except OSError as error:
            logger.warning("%s: %s; what this node's ranks have recorded is lost", path, error.strerror)
            break
    return saved


def save_clock(run_dir: RunDirLayout, attempt: int, node: int, offset: ClockOffset) -> None:
    """Write how far a node's clock is from node 0's, or log that it cannot be written."""
    path = run_dir.clock_file(attempt, node)
    try:
        path.write_text(json.dumps(asdict(offset)), encoding="utf-8")
    except OSError as error:
        logger.warning("%s: %s; the node's times will not fit those of others", path, error.strerror)


def load(
    run_dir: RunDirLayout,
    plan: LaunchPlan,
    *,
    ranks: Iterable[int] | None = None,
    steps: Container[int] | None = None,
    last_ns: int | None = None,
) -> Recordings | None:
    """Those of the last attempt that has any; `None` if there are none.

    Args:
        run_dir, plan: of the run.
        ranks: only of these ranks.
        steps, last_ns: as `mimo_role.monitoring.records.parse` takes them.
    """
    wanted = range(plan.topology.world_size) if ranks is None else sorted(ranks)
    for attempt in reversed(run_dir.attempts()):
        files = {rank: run_dir.recording_file(attempt, rank) for rank in wanted}
        found = {rank: each for rank, path in files.items() if (each := _read(path, steps, last_ns)) is not None}
        if found:
            nodes = {node: _read_clock(run_dir.clock_file(attempt, node)) for node in range(len(plan.nodes))}
            return Recordings(attempt, found, {node: clock for node, clock in nodes.items() if clock is not None})
    return None


def load_running(run_dir: RunDirLayout, plan: LaunchPlan) -> Recordings | None:
    """Those of node 0's ranks up to now, where the run is going on on this machine; `None` if there are none."""
    try:
        directory = node_dir.find(run_dir.run_id_file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        directory = None
    if directory is None:
        return None
    files = {rank: node_dir.recording_file(directory, rank) for rank in plan.nodes[0].ranks}
    found = {rank: recording for rank, path in files.items() if (recording := ring.read(path)) is not None}
    return Recordings(max(run_dir.attempts(), default=0), found, {0: ClockOffset.none(0)}) if found else None


def _read(path: Path, steps: Container[int] | None, last_ns: int | None) -> Recording | None:
    try:
        return parse(gzip.decompress(path.read_bytes()), steps=steps, last_ns=last_ns)
    except (OSError, EOFError, ValueError, IndexError, zlib.error, struct.error):
        return None


def _read_clock(path: Path) -> ClockOffset | None:
    try:
        return ClockOffset(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None
