"""Keeps what the ranks of this node have recorded, when they have ended."""

from launcher.agent.node_job import NodeJob
from launcher.trace import recordings


class RecordingKeeper:
    """Copies recordings from shared memory to the run directory."""

    def __init__(self, job: NodeJob) -> None:
        self._job = job

    def save(self, attempt: int) -> None:
        """Keep the recordings of an attempt whose ranks have ended. What cannot be kept is logged."""
        job, node = self._job, self._job.nodes.node_rank
        if recordings.save(job.run_dir, attempt, job.node_dir, job.node.ranks):
            offset = job.nodes.measure_clock()
            if offset is not None:
                recordings.save_clock(job.run_dir, attempt, node, offset)
