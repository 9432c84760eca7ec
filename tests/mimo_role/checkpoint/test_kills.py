"""Ranks that are killed while they save: what was saved before remains, and what is loaded is a state that was saved."""

import multiprocessing
import os
import random
import secrets
import signal
import time
from datetime import timedelta

import pytest
import torch
from torch.distributed import TCPStore

import mimo_role
from mimo_role import Topology, checkpoint
from mimo_role.host import environ
from tests.mimo_role.checkpoint.test_checkpoint import Part

pytestmark = [pytest.mark.ranks, pytest.mark.slow, pytest.mark.timeout(400)]

WORLD = Topology.from_modules({"vision": {}, "language": {}})
KILLS = 25
"""In each of the two tests."""
KEEP = 2


def value_of(step):
    """What every element is at a step; no two steps' values follow from one another's."""
    return float(random.Random(step).randrange(1, 10**6))


def fill(modules, optimizer, step):
    with torch.no_grad():
        for part in modules.values():
            part.a.fill_(value_of(step))
            optimizer.state[part.a]["momentum_buffer"].fill_(-value_of(step))


def is_of(modules, optimizer, step):
    return all(
        (part.a == value_of(step)).all() and (optimizer.state[part.a]["momentum_buffer"] == -value_of(step)).all()
        for part in modules.values()
    )


def load_and_save_on(rank, port, folder, asynchronous, started, done):
    """Load the last checkpoint, report the step, and save the following ones until killed."""
    contract = {"RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": "2"}
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "TORCHELASTIC_USE_AGENT_STORE": "True"}
    environ.export(contract | address | {"GLOO_SOCKET_IFNAME": "lo"})
    torch.set_num_threads(1)
    ctx = mimo_role.init(WORLD, backend="gloo", timeout_s=30)
    modules = {name: Part(a=torch.zeros(20_000)) for name in ctx.role.modules}
    optimizer = torch.optim.SGD([part.a for part in modules.values()], lr=0.1, momentum=0.9)
    sum(part.a.sum() for part in modules.values()).backward()
    optimizer.step()
    loaded = checkpoint.load(ctx, folder, modules, optimizer)
    first = 0 if loaded is None else loaded.step + 1
    started.send((None if loaded is None else loaded.step, loaded is None or is_of(modules, optimizer, loaded.step)))
    for part in modules.values():
        optimizer.state[part.a].setdefault("momentum_buffer", torch.zeros(20_000))
    for step in range(first, first + 10_000):
        fill(modules, optimizer, step)
        checkpoint.save(ctx, folder, step, modules, optimizer, extra={"at": step}, keep=KEEP, asynchronous=asynchronous)
        if not asynchronous or step > first:
            done.value = step - asynchronous  # a save in the background is done when the next one has begun


class Attempt:
    """Two ranks that save until they are killed."""

    def __init__(self, folder, *, asynchronous):
        start = multiprocessing.get_context("forkserver")
        start.set_forkserver_preload(["mimo_role.testing", "mimo_role.checkpoint.loading", "mimo_role.checkpoint.saving"])
        self.store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=30))
        self.started, self.done, self.ranks = [], [], []
        for rank in range(WORLD.world_size):
            receiver, sender = start.Pipe(duplex=False)
            done = start.Value("q", -1, lock=False)
            args = (rank, self.store.port, folder, asynchronous, sender, done)
            self.ranks.append(start.Process(target=load_and_save_on, args=args, daemon=True))
            self.started.append(receiver)
            self.done.append(done)
        for process in self.ranks:
            process.start()

    def wait(self):
        """What each rank has loaded, and whether that is what was saved."""
        assert all(receiver.poll(60) for receiver in self.started), [process.exitcode for process in self.ranks]
        return [receiver.recv() for receiver in self.started]

    def kill(self, victims):
        """Some ranks at once; the others as soon as that is done."""
        for rank in victims:
            os.kill(self.ranks[rank].pid, signal.SIGKILL)
        for process in self.ranks:
            process.kill()
            process.join()
        return max(done.value for done in self.done)


@pytest.mark.parametrize("asynchronous", [False, True], ids=["at once", "in the background"])
def test_a_kill_at_any_moment_loses_no_checkpoint_that_was_complete(asynchronous, tmp_path):
    seed = secrets.randbits(32)
    print(f"seed {seed}")
    draws = random.Random(seed)
    known, steps = -1, []
    for _ in range(KILLS):
        attempt = Attempt(tmp_path, asynchronous=asynchronous)
        loaded = attempt.wait()
        assert all(is_as_saved for _, is_as_saved in loaded), f"seed {seed}: {loaded}"
        assert len({step for step, _ in loaded}) == 1, f"seed {seed}: {loaded}"
        assert (loaded[0][0] if loaded[0][0] is not None else -1) >= known, f"seed {seed}: {loaded}, {known} was complete"
        time.sleep(draws.uniform(0.0, 0.15))  # the moment of the kill
        known = max(known, attempt.kill(draws.choice([[0], [1], [0, 1]])))
        last = checkpoint.latest(tmp_path)
        assert (-1 if last is None else last) >= known, f"seed {seed}: {last}, {known} was complete"
        steps.append(last)
    assert steps[-1] is not None
    print(f"steps after each kill: {steps}")
