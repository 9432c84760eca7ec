"""Samples what the ranks of this node record while they run, and reports it to node 0."""

import threading
from collections.abc import Iterable, Sequence

from launcher.agent.node_job import NodeJob
from launcher.steps.node_report import NodeReport, thinned
from launcher.steps.rank_step import RankStep
from launcher.steps.span_names import SpanNames
from launcher.steps.step_times import StepTimes
from mimo_role.host import node_dir
from mimo_role.monitoring.ring_reader import RingReader


class LiveSampler:
    """The ranks of one attempt on this node. Any thread may call it."""

    def __init__(self, job: NodeJob, attempt: int) -> None:
        names = SpanNames(job.plan.topology)
        self._job = job
        self._attempt = attempt
        self._ranks = [
            (RingReader(node_dir.recording_file(job.node_dir, rank)), StepTimes(rank, names)) for rank in job.node.ranks
        ]
        self._lock = threading.Lock()
        self._has_ended = False

    def sample(self) -> None:
        """Report the steps that the ranks have ended since the last call."""
        with self._lock:
            if not self._has_ended:
                self._report(self._new_steps())

    def end(self, *, is_clean: bool) -> None:
        """Report the rest, once the ranks have ended, well or not."""
        with self._lock:
            if not self._has_ended:
                self._has_ended = True
                new = self._new_steps()
                rest = [times.finish(is_clean=is_clean) for _, times in self._ranks]
                self._report([[*steps, *more] for steps, more in zip(new, rest, strict=True)], is_last=True)
                for reader, _ in self._ranks:
                    reader.close()

    def _new_steps(self) -> list[list[RankStep]]:
        """By rank."""
        return [times.add(new) if (new := reader.read()) is not None else [] for reader, times in self._ranks]

    def _report(self, steps: Iterable[Sequence[RankStep]], *, is_last: bool = False) -> None:
        found = [each for of_rank in steps for each in thinned(of_rank, len(self._job.plan.nodes))]
        recording = [rank for rank, (_, times) in zip(self._job.node.ranks, self._ranks, strict=True) if times.has_records]
        report = NodeReport(self._job.nodes.node_rank, self._attempt, recording, found, is_last)
        self._job.nodes.send_report(report.to_value())
