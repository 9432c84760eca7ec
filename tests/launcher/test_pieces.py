"""The launcher's small parts, each for itself."""

import inspect
import io
import multiprocessing
import os
import subprocess
import sys

import pytest

from launcher.errors import LaunchError
from launcher.host import resources
from launcher.host.exit_watcher import ExitWatcher
from launcher.logs.follower import Followed, Follower
from launcher.run_dir.writer import RunDir
from mimo_role import Topology

TOPOLOGY = Topology.from_modules({"vision": {}, "language": {"tp": 2}})


def test_a_follower_passes_on_files_that_appear_later(tmp_path):
    sink = io.StringIO()
    follower = Follower(lambda ranks: f"[{ranks[0]}]", fold_s=0.0)
    follower.follow([Followed(tmp_path / "a", 0, sink), Followed(tmp_path / "never", 1, sink)])
    (tmp_path / "a").write_bytes(b"one\ntw")
    with (tmp_path / "a").open("ab") as file:
        file.write(b"o\nthree")
    follower.stop()
    assert sink.getvalue() == "[0] one\n[0] two\n[0] three\n"


def test_exits_are_told_in_their_order():
    children = [subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) for _ in range(3)]
    order = ExitWatcher({key: child.pid for key, child in zip("abc", children, strict=True)})
    for already, child in enumerate((children[1], children[2], children[0])):
        child.communicate(b"\n", timeout=20)
        while len(order.so_far()) <= already:
            os.sched_yield()
    assert order.ended() == ["b", "c", "a"]


def test_a_run_folder_has_one_owner_and_keeps_what_was_there(tmp_path):
    first = RunDir(tmp_path, "config", "plan", "1", "1")
    with pytest.raises(LaunchError, match=rf"still going on \(process {os.getpid()} on "):
        RunDir(tmp_path, "config", "plan", "0", "0")
    first.close()
    second = RunDir(tmp_path, "other", "plan", "2", "2")
    assert (tmp_path / "config.yaml").read_text() == "other"
    assert (tmp_path / "previous" / first.run_id / "config.yaml").read_text() == "config"
    second.close()


def test_a_folder_of_the_users_own_is_not_taken_for_a_run_folder(tmp_path):
    (tmp_path / "config.yaml").write_text("mine")
    with pytest.raises(LaunchError, match=r"has a config.yaml and is not a run folder of mimo-launch"):
        RunDir(tmp_path, "config", "plan", "1", "1")
    assert (tmp_path / "config.yaml").read_text() == "mine"


def test_of_a_progress_bar_the_last_state_is_passed_on(tmp_path):
    (tmp_path / "a").write_bytes(b"\r  0%|\r 50%|#\r100%|##\nwindows\r\n\r\n")
    sink = io.StringIO()
    follower = Follower(lambda ranks: f"[{ranks[0]}]", fold_s=0.0)
    follower.follow([Followed(tmp_path / "a", 0, sink)])
    follower.stop()
    assert sink.getvalue() == "[0] 100%|##\n[0] windows\n[0] \n"


def test_a_follower_does_not_wait_for_a_writer_without_end(tmp_path):
    with (tmp_path / "a").open("wb") as file:
        writer = subprocess.Popen([sys.executable, "-c", "while True: print('x' * 1000)"], stdout=file)
    try:
        sink = io.StringIO()
        follower = Follower(str, fold_s=0.0)
        follower.follow([Followed(tmp_path / "a", 0, sink)])
        while not sink.getvalue():
            os.sched_yield()
        follower.stop()
    finally:
        writer.kill()
        writer.wait()


def test_a_sink_that_fails_does_not_stop_the_others(tmp_path):
    (tmp_path / "a").write_text("one\n")
    closed, sink = io.StringIO(), io.StringIO()
    closed.close()
    follower = Follower(lambda ranks: f"[{ranks[0]}]", fold_s=0.0)
    follower.follow([Followed(tmp_path / "a", 0, closed), Followed(tmp_path / "a", 1, sink)])
    follower.stop()
    assert sink.getvalue() == "[1] one\n"


def test_a_process_that_has_gone_counts_as_ended_first():
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    alive = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    order = ExitWatcher({"alive": alive.pid, "gone": gone.pid})
    alive.communicate(b"\n")
    assert order.ended() == ["gone", "alive"]


def test_a_run_folder_under_a_file_is_refused(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(LaunchError, match=r"run_dir: .*Not a directory"):
        RunDir(tmp_path / "file" / "run", "", "", "1", "1")


@pytest.mark.parametrize(("visible", "count"), [("", 0), ("-1", 0), ("0", 1), ("0,3", 2), ("GPU-1a,GPU-2b", 2)])
def test_gpus_are_counted_without_torch(monkeypatch, visible, count):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert resources.gpus() == count
    assert resources.rank_slots() == (count or resources.cores())


def test_this_machine_has_memory_and_cores():
    assert resources.cores() >= 1
    assert resources.available_memory() > 0


LEAVE = """
import atexit, sys
from launcher.host.interpreter_exit import exit_without_teardown
atexit.register(print, "first registered")
atexit.register(print, "last registered", end="; ")
sys.stdout.write("unflushed; ")
exit_without_teardown(7)
"""


def test_a_process_that_leaves_does_what_was_registered_for_its_exit():
    """Fails if the undocumented function behind it changes."""
    done = subprocess.run([sys.executable, "-c", LEAVE], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (7, "unflushed; last registered; first registered\n")


FORK_SERVER = """
import multiprocessing, os
from launcher.host import fork_server

def parent():
    return os.getppid()

if __name__ == "__main__":
    fork_server.start_tracker()
    fork_server.start()
    with multiprocessing.get_context("forkserver").Pool(1) as pool:
        server = pool.apply(parent)
        pool.close()  # the server's children ignore SIGTERM, by which a pool is ended otherwise
        pool.join()
    print(server != os.getpid(), os.getpgid(server) == server)
    modules = open(f"/proc/{server}/maps").read()
    print("libtorch" in modules)
"""


@pytest.mark.ranks
def test_the_fork_server_has_imported_torch_and_is_out_of_reach_of_ctrl_c(tmp_path):
    """Fails if the undocumented functions behind it change."""
    (tmp_path / "serve.py").write_text(FORK_SERVER)
    done = subprocess.run([sys.executable, str(tmp_path / "serve.py")], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.split() == ["True", "True", "True"]
    assert multiprocessing.get_start_method(allow_none=True) in (None, "fork")


def test_what_is_private_to_torchelastic_is_as_it_was():
    pytest.importorskip("torch")
    from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
    from torch.distributed.elastic.multiprocessing.api import MultiprocessContext, SubprocessContext

    parameters = {
        "_assign_worker_ranks": ["self", "store", "group_rank", "group_world_size", "spec"],
        "_start_workers": ["self", "worker_group"],
        "_stop_workers": ["self", "worker_group"],
        "_monitor_workers": ["self", "worker_group"],
        "_shutdown": ["self", "death_sig", "timeout"],
        "_exit_barrier": ["self"],
    }
    for name, expected in parameters.items():
        assert list(inspect.signature(getattr(LocalElasticAgent, name)).parameters) == expected, name
    source = inspect.getsource(LocalElasticAgent) + inspect.getsource(LocalElasticAgent.__mro__[1])
    for attribute in ("self._remaining_restarts", "self._pcontext", "self._worker_group", "self._shutdown_timeout"):
        assert attribute in source
    assert "self._pc " in inspect.getsource(MultiprocessContext)
    assert "self.subprocess_handlers" in inspect.getsource(SubprocessContext)
