import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import pytest
import torch
import torch.distributed as dist

import mimo_role
from mimo_role import MimoError, Topology
from mimo_role.testing import run_ranks

FOUR = Topology.from_modules({"vision": {"dp": 2}, "language": {"dp": 2}})

# Prints its notice on request.
LISTENER = """
import sys, mimo_role
mimo_role.listen(*{times})
print("listening", flush=True)
for line in sys.stdin:
    received = mimo_role.notice()
    if line == "signal\\n":
        print(received and received.signal.name, flush=True)
    elif line == "left\\n":
        print(received.seconds_left, flush=True)
    else:
        mimo_role.listen(1000.0, 1000.0)
        print("listening", flush=True)
"""


@contextmanager
def child(script):
    process = subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate(timeout=20)


def ask(process, word):
    process.stdin.write(f"{word}\n")
    process.stdin.flush()
    return process.stdout.readline().strip()


@contextmanager
def listener(*times):
    with child(LISTENER.format(times=times)) as process:
        assert process.stdout.readline() == "listening\n"
        yield process


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_is_a_notice_and_does_not_end_the_process(number):
    with listener() as process:
        assert ask(process, "signal") == "None"
        process.send_signal(number)
        assert ask(process, "signal") == number.name
        assert process.poll() is None


@pytest.mark.parametrize(("number", "least", "most"), [(signal.SIGTERM, 0, 30), (signal.SIGUSR1, 30, 300)])
def test_the_time_left_depends_on_the_signal(number, least, most):
    with listener(30.0, 300.0) as process:
        process.send_signal(number)
        first, second = float(ask(process, "left")), float(ask(process, "left"))
        assert least < second <= first <= most


def test_the_time_left_is_none_if_it_is_unknown():
    with listener() as process:
        process.send_signal(signal.SIGTERM)
        assert ask(process, "left") == "None"


def test_the_time_left_is_at_least_zero():
    with listener(1e-9, 300.0) as process:
        process.send_signal(signal.SIGTERM)
        assert ask(process, "left") == "0.0"


@pytest.mark.parametrize(
    ("times", "numbers", "expected"),
    [
        pytest.param((30.0, 300.0), [signal.SIGUSR1, signal.SIGTERM], "SIGTERM", id="SIGTERM leaves less than is left"),
        pytest.param((30.0, 300.0), [signal.SIGTERM, signal.SIGUSR1], "SIGTERM", id="SIGUSR1 leaves more than is left"),
        pytest.param((300.0, 30.0), [signal.SIGUSR1, signal.SIGTERM], "SIGUSR1", id="SIGTERM leaves more than is left"),
        pytest.param((None, 300.0), [signal.SIGUSR1, signal.SIGTERM], "SIGTERM", id="time after SIGTERM unknown"),
        pytest.param((None, None), [signal.SIGUSR1, signal.SIGTERM], "SIGUSR1", id="both times unknown"),
    ],
)
def test_of_several_notices_the_one_with_the_least_time_left_holds(times, numbers, expected):
    with listener(*times) as process:
        for number in numbers:
            process.send_signal(number)
            ask(process, "signal")  # it has been handled
        assert ask(process, "signal") == expected


def test_a_second_listen_has_no_effect():
    with listener(30.0, 30.0) as process:
        process.send_signal(signal.SIGTERM)
        assert ask(process, "again") == "listening"
        assert float(ask(process, "left")) <= 30
        process.send_signal(signal.SIGUSR1)
        assert float(ask(process, "left")) <= 30


def test_a_process_that_does_not_listen_is_killed_by_the_signal():
    with child("import mimo_role; print(mimo_role.notice(), flush=True); input()") as process:
        assert process.stdout.readline() == "None\n"
        process.terminate()
        assert process.wait(timeout=20) == -signal.SIGTERM


def test_listen_outside_of_the_main_thread_is_refused():
    found = []

    def listen():
        try:
            mimo_role.listen()
        except MimoError as error:
            found.append(str(error))

    thread = threading.Thread(target=listen)
    thread.start()
    thread.join(timeout=20)
    assert found == ["listen() must run in the main thread, the only one in which Python handles signals"]


def test_a_shielded_process_and_its_children_ignore_notices():
    script = """
import subprocess, mimo_role
mimo_role.shield_worker(3)
sleeper = subprocess.Popen(["cat"], stdin=subprocess.PIPE)
print(sleeper.pid, flush=True)
input()
print(mimo_role.notice(), sleeper.poll(), flush=True)
sleeper.kill()
"""
    with child(script) as process:
        sleeper = int(process.stdout.readline())
        for pid in (process.pid, sleeper):
            for name in ("TERM", "USR1"):
                subprocess.run(["bash", "-c", f"kill -{name} {pid}"], check=True)
        assert ask(process, "") == "None None"
        assert process.wait(timeout=20) == 0


def test_a_shielded_process_exits_on_sigterm_from_its_parent():
    with child("import mimo_role\nmimo_role.shield_worker()\nprint('up', flush=True)\ninput()") as process:
        assert process.stdout.readline() == "up\n"
        process.terminate()
        assert process.wait(timeout=20) == 0


@pytest.mark.parametrize("start", ["fork", "forkserver", "spawn"])
def test_a_requeue_exit_also_ends_shielded_loader_workers(start):
    script = f"""
import mimo_role
from torch.utils.data import DataLoader

workers = {{"num_workers": 2, "persistent_workers": True, "multiprocessing_context": "{start}"}}
loader = DataLoader(range(1000), worker_init_fn=mimo_role.shield_worker, **workers)

def train():
    iterator = iter(loader)
    next(iterator)
    raise SystemExit(mimo_role.REQUEUE_EXIT_CODE)

train()
"""
    with child(script) as process:
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 75, errors


# Every worker gets both signals at its first sample.
LOADER = """
import os, signal, mimo_role
from torch.utils.data import DataLoader, Dataset

class Pids(Dataset):
    def __len__(self):
        return 8

    def __getitem__(self, index):
        if index < 2:
            os.kill(os.getpid(), signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGUSR1)
        return os.getpid()

loader = DataLoader(Pids(), num_workers=2, worker_init_fn={shield}, multiprocessing_context="fork")
print(*[int(pid) for pid in loader])
"""


def test_shielded_loader_workers_survive_notices_and_exit_with_the_loader():
    with child(LOADER.format(shield="mimo_role.shield_worker")) as process:
        output, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    pids = {int(pid) for pid in output.split()}
    assert len(pids) == 2
    assert not [pid for pid in pids if _lives(pid)]


# Both pools ask for the parent of their worker: the fork server that has started it.
FORK_SERVER = """
import multiprocessing, os, signal, mimo_role

mimo_role.init(mimo_role.Topology.from_modules({"language": {"dp": 1}}, layout="colocated"), backend="gloo")
start = multiprocessing.get_context("forkserver")
with start.Pool(1) as pool:
    server, handler = pool.apply(os.getppid), pool.apply(signal.getsignal, [signal.SIGTERM])
    os.kill(server, signal.SIGTERM)
    os.kill(server, signal.SIGUSR1)
    with start.Pool(1) as other:
        print(other.apply(os.getppid) == server, handler is signal.SIG_DFL)
"""


def test_notices_do_not_end_the_fork_server_of_workers():
    with child(FORK_SERVER) as process:
        output, errors = process.communicate(timeout=60)
    assert output.split() == ["True", "True"], errors


def test_unshielded_loader_workers_end_the_script():
    with child(LOADER.format(shield=None)) as process:
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "killed by signal" in errors


def steps_until_a_notice(signalled, steps_before):
    """The first step with a number of seconds left, and that number, where a rank is signalled after some steps."""
    ctx = mimo_role.current()
    for step in range(steps_before + 10):
        if (ctx.rank, step) == (signalled, steps_before):
            os.kill(os.getpid(), signal.SIGTERM)
        left = ctx.seconds_left()
        if left is not None:
            again = ctx.seconds_left()
            return step, left, again, mimo_role.notice() is not None
    return None


@pytest.mark.ranks
@pytest.mark.parametrize("steps_before", [1, 3])
def test_a_notice_to_one_rank_reaches_all_ranks_at_the_same_step(steps_before):
    found = run_ranks(steps_until_a_notice, FOUR, 2, steps_before)
    # The step of the signal, or the next one.
    assert len({step for step, *_ in found}) == 1
    assert found[0][0] - steps_before in (0, 1)
    assert [has_notice for *_, has_notice in found] == [False, False, True, False]
    # Outside of mimo-launch the time is unknown.
    assert all(left == again == 0.0 for _, left, again, _ in found)


def steps_without_a_notice(steps):
    return [mimo_role.current().seconds_left() for _ in range(steps)]


@pytest.mark.ranks
def test_seconds_left_is_none_without_a_notice():
    assert run_ranks(steps_without_a_notice, FOUR, 4) == [[None] * 4] * 4


def seconds_after(signals):
    """The seconds left on each rank, of which the first ones have received a signal each."""
    ctx = mimo_role.current()
    ctx.seconds_left()
    if ctx.rank < len(signals):
        os.kill(os.getpid(), signals[ctx.rank])
    ctx.seconds_left()
    return ctx.seconds_left()


def join_with_times(function, *args):
    """As under mimo-launch, which sets the times that the signals leave."""
    contract = mimo_role.RankEnviron(topology=FOUR, rank=int(os.environ["RANK"]), grace_s=30.0, warning_s=300.0)
    os.environ.update(contract.to_environ())
    mimo_role.init(backend="gloo")
    try:
        return function(*args)
    finally:
        mimo_role.shutdown()


@pytest.mark.ranks
@pytest.mark.parametrize(
    ("signals", "least", "most"),
    [
        pytest.param([signal.SIGUSR1], 200, 300, id="SIGUSR1 to one"),
        pytest.param([signal.SIGUSR1, signal.SIGTERM], 1, 30, id="SIGUSR1 to one and SIGTERM to another"),
    ],
)
def test_all_ranks_get_the_least_time_left(signals, least, most):
    found = run_ranks(join_with_times, 4, seconds_after, signals)
    assert all(least < left <= most for left in found), found
    assert max(found) - min(found) < 5


class OnAGpu(torch.Tensor):
    """A number that is there once its kernel has run; reading it waits for that."""

    kernel = None

    def item(self):
        if self.kernel is not None:
            self.kernel.wait()
        return super().item()


def last_to_enter(folder):
    """Under NCCL's rule that `Work.wait()` makes a stream wait, and not the process."""
    full, all_reduce = torch.full, dist.all_reduce

    def all_reduce_on_a_gpu(tensor, **settings):
        tensor.kernel = all_reduce(tensor, **settings)
        return SimpleNamespace(wait=lambda: None)

    ctx = mimo_role.current()
    with (
        mock.patch.object(torch, "full", lambda *args, **settings: full(*args, **settings).as_subclass(OnAGpu)),
        mock.patch.object(torch, "tensor", lambda *args, **settings: full((), *args, **settings).as_subclass(OnAGpu)),
        mock.patch.object(dist, "all_reduce", all_reduce_on_a_gpu),
    ):
        ctx.seconds_left()
        if ctx.rank == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        ctx.seconds_left()
        if ctx.rank == 3:
            time.sleep(1)  # a rank that left before this one has entered would leave it alone with its all-reduce
            Path(folder, "entered").touch()
        return ctx.seconds_left(), Path(folder, "entered").exists()


@pytest.mark.ranks
def test_no_rank_leaves_before_all_have_entered_the_last_all_reduce(tmp_path):
    assert run_ranks(last_to_enter, FOUR, str(tmp_path)) == [(0.0, True)] * 4


def leave_after_a_step():
    mimo_role.current().seconds_left()
    return True


@pytest.mark.ranks
def test_ranks_may_exit_right_after_a_step():
    assert run_ranks(leave_after_a_step, FOUR) == [True] * 4


def _lives(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
