"""Runs one rank of each kind, over the fork server of a real run."""

import json
import os
import shutil
import signal
import socket
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any

from launcher.failures.crash import Crash
from launcher.failures.rank_exit import read_rank_exit
from launcher.host.fork_server import ForkServer
from launcher.plan.launch_plan import LaunchPlan
from launcher.rehearse.kind_result import KindResult
from launcher.rehearse.kinds import Kind
from launcher.rehearse.rehearsed_rank import RehearsedRank
from launcher.rehearse.time_limit import located, stop, timed_out
from launcher.run_dir.writer import RunDir
from launcher.trace import recordings
from mimo_role.host import environ, node_dir
from mimo_role.monitoring.heartbeat import read_pulse

_POLL_S = 0.01


class Runner:
    """Starts the processes of the kinds, several at a time, and collects how they end."""

    def __init__(
        self,
        plan: LaunchPlan,
        run_dir: RunDir,
        node_directory: Path,
        server: ForkServer,
        *,
        tensors: str | None = None,
        timeout_s: float = 0,
    ) -> None:
        """
        Args:
            plan: of the rehearsal.
            run_dir: of the rehearsal.
            node_directory, server: of this process.
            tensors: `fake` or `real` ones whose memory is counted; `None`: it is not.
            timeout_s: how long a process may take; 0: as long as it likes.
        """
        self._plan = plan
        self._run_dir = run_dir
        self._node_dir = node_directory
        self._server = server
        self._tensors = tensors
        self._timeout_s = timeout_s
        self._stopped: dict[int, Crash] = {}
        """By process id, where those were that had taken too long."""
        self._started: dict[int, tuple[Kind, float]] = {}
        """By process id, the kind and when it was started."""

    def run(self, kinds: Sequence[Kind], *, jobs: int, steps: int, report: Callable[[KindResult], None]) -> list[KindResult]:
        """Run all kinds.

        A kind starts once those whose output it takes have ended: it checks what it receives against what they have sent. One
        that got Python objects or small integers from a rank that had not been rehearsed yet is run again.

        Args:
            kinds: in the order in which activations pass through them.
            jobs: how many run at the same time.
            steps: training steps after which scripts end; 0: when they end by themselves.
            report: called for each kind when it has ended and is not run again.

        Returns:
            The results, in the order of the kinds.
        """
        shutil.rmtree(self._run_dir.rehearsed_files_dir, ignore_errors=True)
        self._run_dir.rehearsed_files_dir.mkdir(exist_ok=True)
        self._run_dir.attempt_dir(0).mkdir()
        results = run_all(kinds, lambda wave, earlier: self._run_wave(wave, earlier, jobs, steps), report)
        return [results[kind.representative] for kind in kinds]

    def _run_wave(self, kinds: Sequence[Kind], earlier: Sequence[int], jobs: int, steps: int) -> Iterator[KindResult]:
        """Run kinds that do not wait for each other."""
        waiting = list(kinds)
        while waiting or self._started:
            while waiting and len(self._started) < jobs:
                self._start(waiting.pop(0), earlier, steps)
            yield from self._ended()
            time.sleep(_POLL_S)

    def _start(self, kind: Kind, earlier: Sequence[int], steps: int) -> None:
        rank = self._rank(kind)
        rank.clear()
        request = rank.write(earlier, steps)
        began = time.monotonic()
        logs = (self._run_dir.log_file(0, kind.representative, stream) for stream in ("stdout", "stderr"))
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND
        streams = [os.open(os.devnull, os.O_RDONLY), *(os.open(log, flags, 0o666) for log in logs)]
        try:
            pid = self._server.start_rank(request, dict(environ.variables()) | rank.variables(), streams)
        finally:
            for stream in streams:
                os.close(stream)
        self._started[pid] = kind, began

    def _ended(self) -> Iterator[KindResult]:
        for pid, (kind, began) in list(self._started.items()):
            code, seconds = self._server.exit_code(pid), time.monotonic() - began
            if code is not None:
                del self._started[pid]
                result = self._result(kind, code, seconds)
                if (crash := self._stopped.pop(pid, None)) is not None and code == -signal.SIGKILL:
                    result = replace(result, exit=timed_out(result.exit, crash))
                yield result
            elif self._timeout_s and seconds > self._timeout_s and pid not in self._stopped:
                self._stopped[pid] = located(self._node_dir, kind.representative, pid, self._timeout_s)
                if self._server.exit_code(pid) is None:  # it may have ended meanwhile
                    stop(pid)

    def _result(self, kind: Kind, code: int, seconds: float) -> KindResult:
        rank, run_dir = kind.representative, self._run_dir
        pulse = read_pulse(node_dir.heartbeat_file(self._node_dir, rank))
        found = read_rank_exit(
            rank,
            code,
            order=len(self._started),
            host=socket.gethostname(),
            ended_at=time.time(),
            step=None if pulse is None else pulse.last_step,
            logs=(run_dir.log_file(0, rank, "stderr"), run_dir.log_file(0, rank, "stdout")),
            error_files=(run_dir.error_file(0, rank), node_dir.error_file(self._node_dir, rank)),
            stacks=node_dir.stacks_file(self._node_dir, rank),
        )
        files = self._rank(kind)
        record, calls = _json_in(files.record_file), _json_in(files.calls_file)
        if self._tensors is None:  # with fake tensors, or while memory is counted, nothing takes the time that it would take
            recordings.save(run_dir, 0, self._node_dir, [rank])
        node_dir.recording_file(self._node_dir, rank).unlink(missing_ok=True)
        return KindResult(kind=kind, exit=found, seconds=seconds, record=record or {}, calls=calls)

    def _rank(self, kind: Kind) -> RehearsedRank:
        return RehearsedRank(
            plan=self._plan,
            rank=kind.representative,
            run_dir=self._run_dir,
            node_dir=self._node_dir,
            tensors=self._tensors,
        )


def _json_in(file: Path) -> Any:
    """A file's content; `None` if a process was killed before it had written it."""
    with suppress(OSError, ValueError):
        return json.loads(file.read_text(encoding="utf-8"))
    return None


def run_all(
    kinds: Sequence[Kind],
    run_wave: Callable[[Sequence[Kind], Sequence[int]], Iterable[KindResult]],
    report: Callable[[KindResult], None],
) -> dict[int, KindResult]:
    """Run all kinds, and those again that lacked objects of ranks behind them, while more becomes known.

    Args:
        kinds: in the order in which activations pass through them.
        run_wave: runs kinds that do not wait for each other; it gets the ranks that have been rehearsed too.
        report: called with the last result of each kind.

    Returns:
        The last results, by the rank that was rehearsed.
    """
    results: dict[int, KindResult] = {}

    def run(some: Sequence[Kind]) -> None:
        for wave in waves(some):
            for result in run_wave(wave, list(results)):
                results[result.kind.representative] = result
                if not result.lacks_objects:
                    report(result)

    run(kinds)
    # The last stage first; then the first stage first, as interleaved pipelines need it; and so on.
    order, most_known = list(reversed(kinds)), -1
    while again := [kind for kind in order if results[kind.representative].lacks_objects]:
        known = sum(result.record.get("objects_known", 0) for result in results.values())
        if known <= most_known:
            break
        run(again)
        most_known = known
        order.reverse()
    for kind in again:
        report(results[kind.representative])
    return results


def waves(kinds: Sequence[Kind]) -> Iterator[list[Kind]]:
    """Kinds that run at the same time. The first of each stage, which often decides for the others, runs before them.

    A lane sends to the same lane of its module's next stage, so that the first kind of that needs only this stage's first.
    """
    waiting: list[Kind] = []
    for _, of_stage in groupby(kinds, key=lambda kind: kind.stage):
        first, *others = of_stage
        if waiting and not _is_of_same_module(first, waiting[0]):
            yield waiting
            waiting = []
        yield [first, *waiting]
        waiting = others
    if waiting:
        yield waiting


def _is_of_same_module(one: Kind, other: Kind) -> bool:
    """Whether two stages are stages of one module."""
    modules = [kind.stage.rpartition(".pp")[0] for kind in (one, other)]
    return bool(modules[0]) and modules[0] == modules[1]
