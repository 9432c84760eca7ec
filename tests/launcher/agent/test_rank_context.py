"""torchelastic's interface to the processes of an attempt."""

import os
import signal
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("torch")

from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, Std

from launcher.agent.rank_context import RankContext
from launcher.host.fork_server import Request
from tests.launcher import fork_servers


@pytest.fixture
def make(tmp_path, monkeypatch):
    """Makes a context of ranks that run Python code, which is given by local rank."""
    folder = tmp_path / "node"
    folder.mkdir()
    server = fork_servers.start(f"test-{os.getpid()}", folder)
    monkeypatch.setenv("INHERITED", "yes")
    monkeypatch.setenv("TORCHELASTIC_SIGNALS_TO_HANDLE", "SIGUSR2")
    before = signal.getsignal(signal.SIGUSR2)
    made = []

    def make_context(*codes):
        context = RankContext(
            server,
            Request("exec", (sys.executable, "-c", "import os; exec(os.environ['CODE'])")),
            1.0,
            name="test",
            entrypoint="",
            args=dict.fromkeys(range(len(codes)), ()),
            envs={rank: {"CODE": code} for rank, code in enumerate(codes)},
            logs_specs=DefaultLogsSpecs(log_dir=str(tmp_path), redirects=Std.ALL),
        )
        context.start()
        made.append(context)
        return context

    yield make_context
    for context in made:
        context.close(signal.SIGKILL)
    server.close()
    signal.signal(signal.SIGUSR2, before)


def wait_for(context):
    result = context.wait(30)
    assert result is not None
    return result


def test_ranks_inherit_the_environment_but_for_what_is_for_agents(make):
    names = "'INHERITED', 'TORCHELASTIC_SIGNALS_TO_HANDLE'"
    context = make(f"print(*(os.environ.get(name) for name in ({names})))", "pass")
    result = wait_for(context)
    assert not result.is_failed()
    assert Path(result.stdouts[0]).read_text() == "yes None\n"
    assert context.exit_codes() == {0: 0, 1: 0}


def test_a_failure_has_its_rank_process_and_exit_code(make):
    context = make("while True: pass", "os._exit(7)", "os.kill(os.getpid(), 9)")
    pids = context.pids()
    while list(context.exit_codes().values()).count(None) > 1:
        time.sleep(0.01)
    result = wait_for(context)
    assert {rank: (failure.pid, failure.exitcode) for rank, failure in result.failures.items()} == {
        1: (pids[1], 7),
        2: (pids[2], -signal.SIGKILL),
    }
    assert context.exit_codes()[0] is None


def test_ranks_end_by_the_given_signal_or_else_by_sigkill(make):
    deaf = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('ready', flush=True); signal.pause()"
    context = make("print('ready', flush=True); import signal; signal.pause()", deaf)
    while not all(Path(context.stdouts[rank]).stat().st_size for rank in (0, 1)):
        time.sleep(0.01)
    context.close(signal.SIGTERM)
    assert context.exit_codes() == {0: -signal.SIGTERM, 1: -signal.SIGKILL}
