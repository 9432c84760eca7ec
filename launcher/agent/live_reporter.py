"""Keeps live.json and metrics.jsonl up to date over all attempts of a run."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from launcher.agent.live_attempt import LiveAttempt
from launcher.agent.node_job import NodeJob
from launcher.live.files import LiveFiles


class LiveReporter:
    """One node's part of it: one attempt after the other."""

    def __init__(self, job: NodeJob) -> None:
        self._job = job
        self._files = LiveFiles(job.run_dir, tensorboard=job.plan.runtime.tensorboard)
        self._attempt: LiveAttempt | None = None
        self._stragglers: list[dict[str, Any]] = []
        """Of the attempts that have ended."""
        self.stragglers_left_out = 0
        """How many more were found in them."""

    def begin(self, attempt: int) -> None:
        """The ranks of an attempt have started."""
        self._attempt = LiveAttempt(self._job, attempt, self._files)
        self._attempt.start()

    def end_ranks(self) -> None:
        """The ranks of this node have ended well, others may run."""
        if self._attempt is not None:
            self._attempt.end_ranks(is_clean=True)

    def end(self, attempt: int) -> None:
        """The ranks of all nodes have ended, or are being ended."""
        if self._attempt is not None:
            self._attempt.close()
            self._files.end_attempt()
            self._stragglers += [{"attempt": attempt, **asdict(each)} for each in self._attempt.stragglers]
            self.stragglers_left_out += self._attempt.stragglers_left_out
            self._attempt = None

    def stop(self) -> None:
        """Where mimo-launch ends otherwise than by the end of its ranks: write nothing more."""
        if self._attempt is not None:
            self._attempt.stop()

    @property
    def stragglers(self) -> Sequence[dict[str, Any]]:
        """On node 0: the ranks that were found to be slow in the attempts that have ended, as in report.json."""
        return self._stragglers
