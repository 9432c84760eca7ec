import os
import signal
from types import SimpleNamespace

import pytest
from torch.distributed.elastic.multiprocessing import SignalException
from torch.distributed.elastic.multiprocessing.api import _terminate_process_handler

from launcher.agent.live_attempt import LiveAttempt
from launcher.config.loader import load
from launcher.coordination.single_node import SingleNode
from launcher.live.files import LiveFiles
from launcher.plan.planner import make_plan
from launcher.run_dir.layout import RunDirLayout

pytestmark = pytest.mark.timeout(60)


class SignalledNode(SingleNode):
    """A node whose process gets SIGTERM while it collects reports."""

    def collect_reports(self):
        os.kill(os.getpid(), signal.SIGTERM)
        return super().collect_reports()


@pytest.fixture
def torchelastic_handler():
    before = signal.signal(signal.SIGTERM, _terminate_process_handler)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.mark.usefixtures("torchelastic_handler")
def test_a_signal_passes_while_the_last_reports_are_collected(tmp_path):
    (tmp_path / "train.py").touch()
    config = tmp_path / "job.yaml"
    config.write_text("name: one\nlayout: colocated\nmodules: {language: {}}\nentry: {script: train.py}\n")
    plan = make_plan(load(config, [])[0], config, ())
    run_dir, nodes = RunDirLayout(tmp_path), SignalledNode(plan, "host", "run")
    job = SimpleNamespace(plan=plan, node=plan.nodes[0], nodes=nodes, run_dir=run_dir, node_dir=tmp_path, show=None)
    with pytest.raises(SignalException):
        LiveAttempt(job, 0, LiveFiles(run_dir)).close()
