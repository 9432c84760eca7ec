"""The end of a kind whose process does not end by itself."""

import os
import signal
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from launcher.exit_code import ExitCode
from launcher.failures.crash import Crash, Frame
from launcher.failures.rank_exit import RankExit
from launcher.hangs.probe import probe_ranks


def located(node_dir: Path, rank: int, pid: int, timeout_s: float) -> Crash:
    """Where the main thread of a process is, as an exception. It takes up to some seconds.

    Args:
        node_dir: the node directory.
        rank: of the process.
        pid: the process.
        timeout_s: the limit that it has exceeded, for the message.
    """
    (snapshot,) = probe_ranks(node_dir, {rank: pid}, {}, lambda rank: node_dir / f"rank{rank}.timeout.stacks")
    text = f"the script has not ended after {timeout_s:g} s (--timeout-s)"
    return Crash(kind="TimeoutError", text=text, traceback="", frames=tuple(_from_the_script(snapshot.frames)))


def stop(pid: int) -> None:
    """Kill a rank's process and those of its process group, such as workers of data loaders."""
    for kill in (os.killpg, os.kill):
        with suppress(ProcessLookupError):
            kill(pid, signal.SIGKILL)


def timed_out(found: RankExit, crash: Crash) -> RankExit:
    """The exit of a process that was stopped."""
    return replace(found, code=ExitCode.STALLED, crash=crash)


def _from_the_script(frames: Sequence[Frame]) -> Sequence[Frame]:
    """Without the frames that start the script."""
    first = next((at for at, frame in enumerate(frames) if frame.is_users), 0)
    return frames[first:]
