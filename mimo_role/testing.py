"""Real ranks for tests: processes on this machine that communicate over gloo."""

import multiprocessing
import pickle
import time
import traceback
from collections.abc import Callable, Sequence
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

import torch

from mimo_role import rank_store
from mimo_role.host import environ
from mimo_role.lifecycle import init, shutdown
from mimo_role.topology.topology import Topology


class RankFailedError(AssertionError):
    """A rank raised an error, exited or timed out; the message has its traceback."""


def run_ranks(
    fn: Callable[..., Any], world: Topology | int, *args: Any, timeout_s: float = 60.0, preload: Sequence[str] = ()
) -> list[Any]:
    """Call `fn(*args)` in one process per rank and return what each rank returned, in rank order.

    Args:
        fn: a module-level function, found by import in the ranks.
        world: a topology, which every rank joins before `fn` and leaves after it, so that `fn` finds
            `mimo_role.current()`; or a number of ranks, which find the variables for joining and join by themselves.
        timeout_s: for the whole call.
        preload: modules that all ranks find imported; heeded by the first call of a process, which starts the fork server.

    Raises:
        RankFailedError: the first rank's failure; all ranks have ended.
    """
    world_size = world if isinstance(world, int) else world.world_size
    deadline = time.monotonic() + timeout_s
    store = rank_store.serve("127.0.0.1", timedelta(seconds=timeout_s))
    start = multiprocessing.get_context("forkserver")
    start.set_forkserver_preload(["mimo_role.testing", *preload])
    results: dict[Connection, int] = {}
    started: list[BaseProcess] = []
    try:
        for rank in range(world_size):
            receiver, sender = start.Pipe(duplex=False)
            contract = {
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "WORLD_SIZE": str(world_size),
                "LOCAL_WORLD_SIZE": str(world_size),
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(store.port),
                "TORCHELASTIC_USE_AGENT_STORE": "True",
                "GLOO_SOCKET_IFNAME": "lo",
            }
            topology = None if isinstance(world, int) else world
            process = start.Process(target=_rank_main, args=(sender, contract, topology, timeout_s, fn, args))
            process.start()
            sender.close()
            started.append(process)
            results[receiver] = rank
        return _collect(results, deadline, timeout_s)
    finally:
        for rank_process in started:
            rank_process.kill()
        for rank_process in started:
            rank_process.join()


def _collect(pending: dict[Connection, int], deadline: float, timeout_s: float) -> list[Any]:
    values: dict[int, Any] = {}
    while pending:
        ready = wait(list(pending), timeout=max(0.0, deadline - time.monotonic()))
        if not ready:
            late = ", ".join(str(rank) for rank in sorted(pending.values()))
            raise RankFailedError(f"not finished after {timeout_s:g} s: ranks {late}")
        for receiver in ready:
            assert isinstance(receiver, Connection)
            rank = pending.pop(receiver)
            try:
                succeeded, value = pickle.loads(receiver.recv_bytes())
            except EOFError:
                raise RankFailedError(f"rank {rank} exited without reporting an error") from None
            if not succeeded:
                raise RankFailedError(f"rank {rank} failed:\n{value}")
            values[rank] = value
    return [values[rank] for rank in sorted(values)]


def _rank_main(
    sender: Connection,
    contract: dict[str, str],
    topology: Topology | None,
    timeout_s: float,
    fn: Callable[..., Any],
    args: tuple[Any, ...],
) -> None:
    environ.export(contract)
    torch.set_num_threads(1)
    try:
        if topology is not None:
            init(topology, backend="gloo", timeout_s=timeout_s)
        answer = pickle.dumps((True, fn(*args)))
    except BaseException:
        sender.send_bytes(pickle.dumps((False, traceback.format_exc())))
        return
    sender.send_bytes(answer)
    shutdown()
