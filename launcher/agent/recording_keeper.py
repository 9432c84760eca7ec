"""Keeps what the ranks of this node have recorded, when they have ended."""

import logging

from launcher.agent.node_job import NodeJob
from launcher.errors import LaunchError
from launcher.outcome import Outcome
from launcher.trace import recordings
from launcher.trace.writer import write_last_seconds

logger = logging.getLogger(__name__)

_GATHER_S = 5.0
"""How long node 0 waits for the recordings of other nodes after a hang. After a failure it has waited for their exits."""


class RecordingKeeper:
    """Copies recordings from shared memory to the run directory. On node 0 it also writes the trace of a failure."""

    def __init__(self, job: NodeJob) -> None:
        self._job = job

    def save(self, attempt: int) -> None:
        """Keep the recordings of an attempt whose ranks have ended. What cannot be kept is logged."""
        job, node = self._job, self._job.nodes.node_rank
        if recordings.save(job.run_dir, attempt, job.node_dir, job.node.ranks):
            offset = job.nodes.measure_clock()
            if offset is not None:
                recordings.save_clock(job.run_dir, attempt, node, offset)
        job.nodes.store.post(f"recorded/{attempt}", value=True)

    def write_trace_of(self, outcome: Outcome, attempt: int) -> None:
        """On node 0, write the last seconds of a run that has failed or hung."""
        if self._job.nodes.node_rank != 0 or outcome.kind not in ("failed", "stalled"):
            return
        self._job.nodes.store.gather(f"recorded/{attempt}", _GATHER_S if outcome.kind == "stalled" else 0.0)
        try:
            written = write_last_seconds(self._job.run_dir, self._job.plan)
        except LaunchError as error:
            logger.warning("no trace of the last seconds: %s", error)
            return
        if written is not None:
            logger.info("wrote the last seconds of %d ranks to %s", written.ranks, written.path)
