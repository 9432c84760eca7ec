"""Hints for known failures."""

import re
import signal
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from launcher.failures.rank_exit import RankExit
from mimo_role import Topology


@dataclass(frozen=True, kw_only=True)
class FailureContext:
    """A failure and its circumstances."""

    record: RankExit
    """The rank that failed first."""
    topology: Topology
    others: Sequence[RankExit] = ()
    """The other ranks, first to exit first."""
    oom_kills: int = 0
    """How many processes the kernel of its host has killed for lack of memory since the run began."""
    joined_by_launcher: bool = False

    @property
    def kind(self) -> str:
        """The class of its exception; empty if there is none."""
        return self.record.crash.kind if self.record.crash is not None else ""

    @property
    def kinds(self) -> tuple[str, ...]:
        """That class and its base classes."""
        return (self.kind, *self.record.crash.kinds) if self.record.crash is not None else ()

    @property
    def text(self) -> str:
        """The message of its exception, else the end of its output."""
        crash = self.record.crash
        return crash.text if crash is not None and crash.text else "\n".join(self.record.tail)

    @property
    def modules(self) -> str:
        """Its modules, as config keys."""
        return ", ".join(f"modules.{name}" for name in self.topology.modules_of(self.record.rank))


def hint_for(failure: FailureContext) -> str | None:
    """What the user can do, if the failure is known."""
    return next((hint for find in _KNOWN if (hint := find(failure)) is not None), None)


def _early_end(failure: FailureContext) -> str | None:
    ended = next((record for record in failure.others if record.code == 0), None)
    if not failure.record.has_lost_a_peer or ended is None:
        return None
    return (
        f"rank {ended.rank} ({failure.topology.label_of(ended.rank)}) exited with exit code 0 while others still needed it: "
        "find out why it ended early"
    )


def _gpu_memory(failure: FailureContext) -> str | None:
    if not (
        failure.kind.endswith("OutOfMemoryError") or re.search(r"CUDA out of memory|CUDA error: out of memory", failure.text)
    ):
        return None
    return (
        f"the GPU has no memory left for {failure.modules}: smaller micro-batches, or more tp or pp for it, or activation "
        "checkpointing; PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True helps where much is reserved and not allocated"
    )


def _host_memory(failure: FailureContext) -> str | None:
    if failure.record.code == -signal.SIGKILL and failure.oom_kills:
        times = f"{failure.oom_kills} processes" if failure.oom_kills > 1 else "a process"
        return (
            f"the kernel's out-of-memory killer has ended {times} on {failure.record.host} since the run began: "
            f"{failure.modules} takes more memory than the host or its cgroup allows; fewer ranks or data-loader workers per "
            "node, or more memory"
        )
    if "MemoryError" in failure.kinds or "can't allocate memory" in failure.text:
        return f"{failure.record.host} has no memory left for {failure.modules}, or a limit (ulimit -v, cgroup) is reached"
    return None


def _data_loader(failure: FailureContext) -> str | None:
    if not re.search(r"DataLoader worker \(pid", failure.text):
        return None
    if failure.oom_kills:
        return (
            f"the kernel's out-of-memory killer has ended processes on {failure.record.host} since the run began "
            f"({failure.oom_kills}): fewer data-loader workers, or more memory"
        )
    return (
        "a data-loader worker has crashed or was killed: num_workers=0 shows a crash in the rank itself; a bus error means "
        f"that /dev/shm is full on {failure.record.host}"
    )


def _killed(failure: FailureContext) -> str | None:
    if failure.record.code != -signal.SIGKILL:
        return None
    return f"SIGKILL was sent by the out-of-memory killer (see dmesg on {failure.record.host}), a scheduler or a user"


def _nccl(failure: FailureContext) -> str | None:
    if not re.search(r"\bNCCL\b|nccl[A-Z]\w+Error|ProcessGroupNCCL", failure.text):
        return None
    if "doesn't have NCCL built in" in failure.text or "no GPUs found" in failure.text:
        return f"torch on {failure.record.host} finds no GPU or was built for none: set runtime.backend to auto or gloo"
    peer = re.search(r"(?:peer|remote) rank[ :=]*(\d+)|rank (\d+) (?:is|has|did)", failure.text)
    rank = int(peer[1] or peer[2]) if peer is not None else None
    named = rank is not None and rank < failure.topology.world_size
    who = f"its peer is rank {rank} ({failure.topology.label_of(rank)}); " if rank is not None and named else ""
    return f"{who}env.NCCL_DEBUG=INFO makes NCCL log the cause: look for the first WARN in each rank's log"


def _timeout(failure: FailureContext) -> str | None:
    if not re.search(r"timed out waiting|collective operation timeout", failure.text, re.IGNORECASE):
        return None
    return (
        "it waited for other ranks for longer than runtime.timeout_s; if the script calls ctx.step(), runtime.stall_timeout_s "
        "ends a job sooner and reports which ranks hold up the others"
    )


def _lost_peer(failure: FailureContext) -> str | None:
    if not failure.record.has_lost_a_peer:
        return None
    return "a peer exited without reporting an error, or the network between two hosts failed"


def _import(failure: FailureContext) -> str | None:
    if not {"ImportError", "ModuleNotFoundError"} & set(failure.kinds):
        return None
    missing = re.search(r"No module named '([\w.]+)'", failure.text)
    if missing is not None:
        return (
            f"{missing[1]} is not installed for the Python of the ranks on {failure.record.host}, or its directory is "
            "not on sys.path, which has the script's directory, but not the working directory (env.PYTHONPATH=...)"
        )
    return "a package is installed in a version that does not have this name, or a file in the script's directory hides it"


def _port(failure: FailureContext) -> str | None:
    if not re.search(r"EADDRINUSE|[Aa]ddress already in use", failure.text):
        return None
    return (
        "the script uses a port that is in use; mimo-launch sets a free MASTER_PORT for each attempt, so leave out init_method "
        "and ports, and bind the script's own servers to port 0"
    )


def _file(failure: FailureContext) -> str | None:
    if "FileNotFoundError" not in failure.kinds:
        return None
    path = re.search(r"No such file or directory: '([^']*)'", failure.text)
    if path is not None and not path[1].startswith("/"):
        return f"{path[1]} is relative to the directory where mimo-launch was started, not to the script's"
    return f"the file must exist on {failure.record.host}, and on every other node of the job"


def _disk(failure: FailureContext) -> str | None:
    full = r"No space left on device|Disk quota exceeded|Read-only file system"
    # torch.save's; the last one is of C++ streams, in the words of GCC's library.
    full_for_torch = r"PytorchStreamWriter failed|unexpected pos \d+ vs|basic_ios::clear: iostream error"
    if not re.search(f"{full}|{full_for_torch}", failure.text):
        return None
    return f"free some space on {failure.record.host}, or choose another directory with run_dir=..."


def _processes(failure: FailureContext) -> str | None:
    crash = failure.record.crash
    last = crash.frames[-1].source if crash is not None and crash.frames else ""
    is_fork = failure.kind == "BlockingIOError" and "fork" in last
    # The last one is what std::thread of C++ raises.
    threads = r"can't start new thread|Thread creation failed|pthread_create|^Resource temporarily unavailable$"
    if not is_fork and not re.search(threads, failure.text):
        return None
    return (
        f"{failure.record.host} starts no further process or thread (ulimit -u, or pids.max of the container): raise the "
        "limit, or use fewer ranks or data-loader workers there"
    )


def _open_files(failure: FailureContext) -> str | None:
    # The second one is what data loaders of torch end in.
    if not re.search(r"Too many open files|received \d+ items of ancdata", failure.text):
        return None
    return (
        f"the limit of open files on {failure.record.host} is too low (ulimit -n); raise it, or for data loaders "
        "torch.multiprocessing.set_sharing_strategy('file_system')"
    )


def _joined_twice(failure: FailureContext) -> str | None:
    if not failure.joined_by_launcher or "default process group twice" not in failure.text:
        return None
    return (
        "the launcher has joined torch.distributed before the script started; set runtime.join: script to let the script do "
        "it, or remove the call"
    )


def _crashed_in_c(failure: FailureContext) -> str | None:
    if failure.record.code not in (-signal.SIGSEGV, -signal.SIGBUS, -signal.SIGILL, -signal.SIGFPE):
        return None
    return "a crash in compiled code: the frames are Python's; gdb on a core file (ulimit -c unlimited) shows those in C"


# In this order: the first hint that applies is shown.
_KNOWN: Iterable[Callable[[FailureContext], str | None]] = (
    _joined_twice,
    _early_end,
    _gpu_memory,
    _host_memory,
    _data_loader,
    _killed,
    _import,
    _port,
    _disk,
    _processes,
    _open_files,
    _file,
    _timeout,
    _nccl,
    _lost_peer,
    _crashed_in_c,
)
