"""What the ranks do in one attempt: sampled on every node, and on node 0 written to the run directory."""

import logging
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial

from torch.distributed.elastic.multiprocessing import SignalException

from launcher.agent.live_sampler import LiveSampler
from launcher.agent.node_job import NodeJob
from launcher.coordination.reports import report_interval_s
from launcher.live.collector import Attempt, Collector
from launcher.live.files import LiveFiles
from launcher.live.view import STORE_KEY, LiveView
from launcher.stragglers.straggler import Straggler
from launcher.stragglers.text import describe_changes

logger = logging.getLogger(__name__)

_OTHERS_S = 2.0
"""How long node 0 waits for the last reports of other nodes, whose ranks have ended already or are being ended."""
_POLL_S = 0.02
_JOIN_S = 15.0


class LiveAttempt:
    """A thread that samples until the attempt ends."""

    def __init__(self, job: NodeJob, number: int, files: LiveFiles) -> None:
        self._job = job
        self._files = files
        self._interval_s = report_interval_s(len(job.plan.nodes))
        self._sampler = LiveSampler(job, number)
        self._collector = self._new_collector(number) if job.nodes.node_rank == 0 else None
        self._is_closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="mimo-launch live", daemon=True)

    def start(self) -> None:
        """Start to sample."""
        self._thread.start()

    def sample(self) -> None:
        """Report what is new; on node 0, collect what the nodes have reported, and write it. The thread calls it."""
        self._sampler.sample()
        if self._collector is not None:
            self._collect(self._collector)
            self._write(self._collector)

    def end_ranks(self, *, is_clean: bool) -> None:
        """Report the rest of this node's steps, as its ranks have ended, well or not. Those of other nodes may still run."""
        self._guarded(partial(self._sampler.end, is_clean=is_clean))

    def close(self) -> None:
        """End the thread. On node 0, collect and write what is left. Ranks that have not ended before have failed."""
        self._is_closing.set()
        if self._thread.ident is not None:
            self._thread.join(_JOIN_S)
        self.end_ranks(is_clean=False)
        if not self._thread.is_alive():
            self._guarded(self._write_last)

    def stop(self) -> None:
        """End the thread soon, without a last view."""
        self._is_closing.set()

    @property
    def stragglers(self) -> Sequence[Straggler]:
        """On node 0, those that were found."""
        return self._collector.stragglers if self._collector is not None else ()

    @property
    def stragglers_left_out(self) -> int:
        """On node 0, how many more were found."""
        return self._collector.stragglers_left_out if self._collector is not None else 0

    def _new_collector(self, number: int) -> Collector:
        job, members = self._job, self._job.nodes.state.members
        places = {
            rank: member.name if member.host == member.name else str(member)
            for node, member in zip(job.plan.nodes, members, strict=True)
            for rank in node.ranks
        }
        return Collector(Attempt(job.plan, number, time.time(), self._interval_s, places))

    def _run(self) -> None:
        while not self._is_closing.wait(self._interval_s):
            if not self._guarded(self.sample):
                return

    def _guarded(self, action: Callable[[], None]) -> bool:
        """Do something whose failure shall not end the run; return whether it was done. Signals pass."""
        try:
            action()
        except SignalException:  # an `Exception`, which torchelastic's handlers raise in the main thread
            raise
        except Exception:
            logger.exception("live.json and metrics.jsonl are not written any more")
            return False
        return True

    def _write_last(self) -> None:
        collector, nodes = self._collector, self._job.nodes
        if collector is None:
            return
        deadline = time.monotonic() + _OTHERS_S
        self._collect(collector)
        while not collector.has_all and not nodes.store.is_lost and time.monotonic() < deadline:
            time.sleep(_POLL_S)
            self._collect(collector)
        self._write(collector, is_last=True)

    def _collect(self, collector: Collector) -> None:
        for report in self._job.nodes.collect_reports():
            collector.add(report, time.monotonic())

    def _write(self, collector: Collector, *, is_last: bool = False) -> None:
        metrics, changed = collector.advance(time.monotonic(), is_over=is_last)
        self._files.append(metrics)
        self._publish(collector.view(time.time(), is_last=is_last))
        for line in describe_changes(changed):
            self._job.say(line)

    def _publish(self, view: LiveView) -> None:
        self._files.write(view)
        self._job.nodes.store.put(STORE_KEY, view.to_json())
        if self._job.show is not None:
            self._job.show(view)
