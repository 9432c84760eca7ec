"""Hints for known failures. Messages of torch, NCCL, gloo and Python are quoted."""

import signal

import pytest

from launcher.failures.crash import Frame
from launcher.failures.hints import FailureContext, hint_for
from tests.launcher.failures.rank_exits import (
    GLOO_LOST_A_PEER,
    NCCL_LOST_A_PEER,
    SCRIPT,
    STORE_LOST_A_PEER,
    TOPOLOGY,
    crash,
    record,
)

# Messages of torch 2.13; CUDA's from pytorch/pytorch#16417, NCCL's from awslabs/awsome-distributed-ai#192.
CUDA_MEMORY = (
    "CUDA out of memory. Tried to allocate 22.00 MiB. GPU 0 has a total capacity of 23.65 GiB of which 11.06 MiB is free. "
    "Including non-PyTorch memory, this process has 23.60 GiB memory in use. Of the allocated memory 22.90 GiB is allocated by "
    "PyTorch, and 194.87 MiB is reserved by PyTorch but unallocated."
)
CPU_MEMORY = (
    "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate "
    "4503599627370496 bytes. Error code 12 (Cannot allocate memory)"
)
NCCL_SYSTEM = """\
NCCL error in: ../torch/csrc/distributed/c10d/ProcessGroupNCCL.cpp:1331, \
unhandled system error (run with NCCL_DEBUG=INFO for details), NCCL version 2.18.5
ncclSystemError: System call (e.g. socket, malloc) or external library call failed or device error.
Last error:
socketStartConnect: Connect to 127.0.0.1<45069> failed : Software caused connection abort"""
STORE_PORT = (
    "The server socket has failed to listen on any local network address. port: 35845, useIpv6: false, code: -98, name: "
    "EADDRINUSE, message: address already in use"
)
LOADER_KILLED = "DataLoader worker (pid 5637) is killed by signal: Killed. "
LOADER_EXITED = "DataLoader worker (pid(s) 5637) exited unexpectedly"
LOADER_RAISED = "Caught IndexError in DataLoader worker process 0.\nOriginal Traceback (most recent call last):\n"
NO_MODULE = ("ModuleNotFoundError", "No module named 'flash_attn'")
NO_NAME = ("ImportError", "cannot import name 'nothing' from 'json' (/usr/lib/python3.11/json/__init__.py)")


def failed(kind, text, *bases, rank=3, code=1):
    return record(rank, code, crash=crash(kind, text, bases=(kind, *bases)))


def failed_in(source):
    """A process could not be started, or something would have blocked."""
    last = Frame("/usr/lib/python3.11/file.py", 66, "function", source, is_users=False)
    kind, text = "BlockingIOError", "[Errno 11] Resource temporarily unavailable"
    return record(3, 1, crash=crash(kind, text, bases=(kind, "OSError"), frames=(SCRIPT, last)))


def with_output(text, rank=3, code=1):
    """A rank that has left nothing but output."""
    return record(rank, code, tail=text.splitlines())


@pytest.mark.parametrize(
    ("ended", "hint"),
    [
        pytest.param(
            failed("torch.OutOfMemoryError", CUDA_MEMORY, "RuntimeError"),
            "the GPU has no memory left for modules.language: smaller micro-batches",
            id="memory of a GPU",
        ),
        pytest.param(
            with_output(f"torch.OutOfMemoryError: {CUDA_MEMORY}", rank=0),
            "the GPU has no memory left for modules.vision: ",
            id="memory of a GPU, in the output",
        ),
        pytest.param(
            failed("RuntimeError", "CUDA error: out of memory"),
            "the GPU has no memory left",
            id="memory of a GPU, by the driver",
        ),
        pytest.param(
            failed("MemoryError", ""),
            "hosta has no memory left for modules.language, or a limit (ulimit -v, cgroup)",
            id="memory of Python",
        ),
        pytest.param(
            failed("numpy._core._exceptions._ArrayMemoryError", "Unable to allocate 8.00 PiB", "MemoryError"),
            "hosta has no memory left",
            id="memory of numpy",
        ),
        pytest.param(failed("RuntimeError", CPU_MEMORY), "hosta has no memory left", id="memory of torch"),
        pytest.param(
            failed("RuntimeError", LOADER_KILLED),
            "a data-loader worker has crashed or was killed: num_workers=0",
            id="a data loader that was killed",
        ),
        pytest.param(
            failed("RuntimeError", LOADER_EXITED),
            "a data-loader worker has crashed or was killed: num_workers=0",
            id="a data loader that has ended",
        ),
        pytest.param(failed("IndexError", LOADER_RAISED), None, id="a data set that raises"),
        pytest.param(
            with_output("", code=-signal.SIGKILL),
            "SIGKILL was sent by the out-of-memory killer (see dmesg on hosta), ",
            id="SIGKILL",
        ),
        pytest.param(
            failed(*NO_MODULE, "ImportError"),
            "flash_attn is not installed for the Python of the ranks on hosta",
            id="a module that is not there",
        ),
        pytest.param(
            failed(*NO_NAME),
            "a package is installed in a version that does not have this name, or a file ",
            id="a name that is not there",
        ),
        pytest.param(
            failed("torch.distributed.DistNetworkError", STORE_PORT),
            "the script uses a port that is in use; ",
            id="a port of torch's",
        ),
        pytest.param(
            failed("OSError", "[Errno 98] Address already in use"),
            "the script uses a port that is in use; ",
            id="a port",
        ),
        pytest.param(
            failed("OSError", "[Errno 28] No space left on device"),
            "free some space on hosta, or choose another directory",
            id="a full disk",
        ),
        pytest.param(
            failed("RuntimeError", "[enforce fail at inline_container.cc:672] . unexpected pos 704 vs 598"),
            "free some space on hosta",
            id="a full disk under torch.save",
        ),
        pytest.param(
            failed("RuntimeError", "basic_ios::clear: iostream error"),
            "free some space on hosta",
            id="a full disk under torch.save, another C++ library",
        ),
        pytest.param(failed("OSError", "[Errno 122] Disk quota exceeded: 'a'"), "free some space on hosta", id="a quota"),
        pytest.param(
            failed("FileNotFoundError", "[Errno 2] No such file or directory: 'data/a.pt'", "OSError"),
            "data/a.pt is relative to the directory where mimo-launch was started",
            id="a relative path",
        ),
        pytest.param(
            failed("FileNotFoundError", "[Errno 2] No such file or directory: '/data/a.pt'", "OSError"),
            "the file must exist on hosta, and on every other node",
            id="an absolute path",
        ),
        pytest.param(
            failed("FileNotFoundError", "no shard", "OSError"),
            "the file must exist on hosta, and on every other node",
            id="a file in other words",
        ),
        pytest.param(
            failed("torch.distributed.DistBackendError", NCCL_SYSTEM), "env.NCCL_DEBUG=INFO makes NCCL log the cause", id="NCCL"
        ),
        pytest.param(
            failed("torch.distributed.DistBackendError", NCCL_LOST_A_PEER),
            "env.NCCL_DEBUG=INFO makes NCCL log the cause",
            id="NCCL that has lost a peer",
        ),
        pytest.param(
            failed("RuntimeError", "Distributed package doesn't have NCCL built in"),
            "torch on hosta finds no GPU or was built for none",
            id="torch without NCCL",
        ),
        pytest.param(
            failed("RuntimeError", GLOO_LOST_A_PEER),
            "a peer exited without reporting an error, or the network",
            id="gloo that has lost a peer",
        ),
        pytest.param(
            failed("torch.distributed.DistNetworkError", STORE_LOST_A_PEER),
            "a peer exited without reporting an error, or the network",
            id="a store whose server has exited",
        ),
        pytest.param(
            failed("RuntimeError", "can't start new thread"),
            "hosta starts no further process or thread (ulimit -u, or pids.max of the container)",
            id="a thread of Python",
        ),
        pytest.param(
            failed("RuntimeError", "Resource temporarily unavailable"), "hosta starts no further process", id="a thread of gloo"
        ),
        pytest.param(
            with_output("libgomp: Thread creation failed: Resource temporarily unavailable"),
            "hosta starts no further process",
            id="a thread of OpenMP",
        ),
        pytest.param(failed_in("self.pid = os.fork()"), "hosta starts no further process", id="a data-loader worker"),
        pytest.param(failed_in("self.pid = _fork_exec("), "hosta starts no further process", id="a subprocess"),
        pytest.param(failed_in("data = os.read(pipe, 10)"), None, id="a pipe that would block"),
        pytest.param(
            failed("OSError", "[Errno 24] Too many open files: 'x'"),
            "the limit of open files on hosta is too low (ulimit -n)",
            id="open files",
        ),
        pytest.param(
            failed("RuntimeError", "received 0 items of ancdata"), "the limit of open files", id="open files of a data loader"
        ),
        pytest.param(
            failed("Segmentation fault", "", code=-signal.SIGSEGV),
            "a crash in compiled code: the frames are Python's; gdb ",
            id="a crash in C",
        ),
        pytest.param(with_output("", code=-signal.SIGBUS), "a crash in compiled code", id="a bus error"),
        pytest.param(failed("ValueError", "bad batch"), None, id="an error of the user's"),
        pytest.param(with_output("bye", code=3), None, id="a code of the user's"),
        pytest.param(with_output("", code=-signal.SIGTERM), None, id="SIGTERM"),
    ],
)
def test_a_known_failure_has_a_hint(ended, hint):
    found = hint_for(FailureContext(record=ended, topology=TOPOLOGY))
    if hint is None:
        assert found is None
    else:
        assert found is not None
        assert found.startswith(hint)


@pytest.mark.parametrize(
    ("ended", "kills", "hint"),
    [
        pytest.param(
            with_output("", code=-9),
            1,
            "out-of-memory killer has ended a process on hosta since the run began: modules.language",
            id="one",
        ),
        pytest.param(with_output("", code=-9), 3, "out-of-memory killer has ended 3 processes on hosta", id="several"),
        pytest.param(failed("RuntimeError", LOADER_KILLED), 2, "fewer data-loader workers, or more memory", id="a data loader"),
    ],
)
def test_the_out_of_memory_killer_is_named_if_its_count_has_grown(ended, kills, hint):
    assert hint in hint_for(FailureContext(record=ended, topology=TOPOLOGY, oom_kills=kills))
    assert "since the run began" not in hint_for(FailureContext(record=ended, topology=TOPOLOGY, oom_kills=0))


@pytest.mark.parametrize(
    "ended", [failed("ValueError", "bad batch"), with_output("", code=-signal.SIGSEGV), with_output("", code=1)]
)
def test_the_out_of_memory_killer_does_not_matter_for_other_exits(ended):
    contexts = [FailureContext(record=ended, topology=TOPOLOGY, oom_kills=kills) for kills in (5, 0)]
    assert len({hint_for(context) for context in contexts}) == 1


@pytest.mark.parametrize("text", [GLOO_LOST_A_PEER, NCCL_LOST_A_PEER])
def test_a_rank_that_exited_early_is_named_if_a_peer_is_lost(text):
    others = [record(1, -15), record(5, 0), record(0, 0)]
    hint = hint_for(FailureContext(record=failed("RuntimeError", text), topology=TOPOLOGY, others=others))
    assert hint.startswith("rank 5 (language.pp1.tp1) exited with exit code 0 while others still needed it")
    own = hint_for(FailureContext(record=failed("RuntimeError", "bad batch"), topology=TOPOLOGY, others=others))
    assert own is None


@pytest.mark.parametrize("by_launcher", [True, False])
def test_joining_twice_is_explained_if_the_launcher_has_joined(by_launcher):
    ended = failed("ValueError", "trying to initialize the default process group twice!")
    hint = hint_for(FailureContext(record=ended, topology=TOPOLOGY, joined_by_launcher=by_launcher))
    assert (hint is not None and "runtime.join: script" in hint) is by_launcher


def test_torch_still_has_the_messages_that_hints_match():
    """Fails if a new torch has other messages."""
    torch = pytest.importorskip("torch")
    dist = torch.distributed
    texts = {}

    def note(name, function):
        with pytest.raises((RuntimeError, ValueError)) as caught:
            function()
        texts[name] = hint_for(
            FailureContext(record=failed("RuntimeError", str(caught.value)), topology=TOPOLOGY, joined_by_launcher=True)
        )

    note("memory", lambda: torch.empty(1 << 50))
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    note("port", lambda: dist.TCPStore("127.0.0.1", store.port, is_master=True, wait_for_workers=False))
    note("disk", lambda: torch.save(torch.ones(1000), "/dev/full"))
    note("twice", lambda: join_twice(dist))
    assert "hosta has no memory left" in texts["memory"]
    assert "uses a port" in texts["port"]
    assert "free some space" in texts["disk"]
    assert "runtime.join: script" in texts["twice"]


def join_twice(dist):
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    finally:
        dist.destroy_process_group()
