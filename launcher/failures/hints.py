"""What to do about failures that are known."""

import re
import signal
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from launcher.failures.rank_exit import RankExit
from mimo_role import Topology


@dataclass(frozen=True, kw_only=True)
class FailureContext:
    """What a hint can take into account."""

    record: RankExit
    """The rank that failed first."""
    topology: Topology
    others: Sequence[RankExit] = ()
    """The other ranks, first to end first."""
    oom_kills: int = 0
    """How many processes the kernel of its host has killed for want of memory since the run began."""
    joined_by_launcher: bool = False

    @property
    def kind(self) -> str:
        """The class of its exception; empty if there was none."""
        return self.record.crash.kind if self.record.crash is not None else ""

    @property
    def kinds(self) -> tuple[str, ...]:
        """That class and those that it is derived from."""
        return (self.kind, *self.record.crash.kinds) if self.record.crash is not None else ()

    @property
    def text(self) -> str:
        """Its last words: the exception's message, else the end of its output."""
        crash = self.record.crash
        return crash.text if crash is not None and crash.text else "\n".join(self.record.tail)

    @property
    def modules(self) -> str:
        """Its modules, as keys of the config."""
        return ", ".join(f"modules.{name}" for name in self.topology.modules_of(self.record.rank))


def hint_for(scene: FailureContext) -> str | None:
    """What the user can do, if the failure is a known one."""
    return next((hint for find in _KNOWN if (hint := find(scene)) is not None), None)


def _early_end(scene: FailureContext) -> str | None:
    ended = next((record for record in scene.others if record.code == 0), None)
    if not scene.record.has_lost_a_peer or ended is None:
        return None
    return (
        f"rank {ended.rank} ({scene.topology.label_of(ended.rank)}) had ended, with exit code 0, while others still needed it: "
        "look there"
    )


def _gpu_memory(scene: FailureContext) -> str | None:
    if not (scene.kind.endswith("OutOfMemoryError") or re.search(r"CUDA out of memory|CUDA error: out of memory", scene.text)):
        return None
    return (
        f"the GPU has no memory left for {scene.modules}: smaller micro-batches, or more tp or pp for it, or activation "
        "checkpointing; PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True helps where much is reserved and not allocated"
    )


def _host_memory(scene: FailureContext) -> str | None:
    if scene.record.code == -signal.SIGKILL and scene.oom_kills:
        times = f"{scene.oom_kills} processes" if scene.oom_kills > 1 else "a process"
        return (
            f"the kernel's out-of-memory killer has ended {times} on {scene.record.host} since the run began: {scene.modules} "
            "takes more memory than the host or its cgroup allows; fewer ranks or data-loader workers per node, or more memory"
        )
    if "MemoryError" in scene.kinds or "can't allocate memory" in scene.text:
        return f"{scene.record.host} has no memory left for {scene.modules}, or a limit (ulimit -v, cgroup) is reached"
    return None


def _data_loader(scene: FailureContext) -> str | None:
    if not re.search(r"DataLoader worker \(pid", scene.text):
        return None
    if scene.oom_kills:
        return (
            f"the kernel's out-of-memory killer has ended processes on {scene.record.host} since the run began "
            f"({scene.oom_kills}): fewer data-loader workers, or more memory"
        )
    return (
        "a data-loader worker has crashed or was killed: num_workers=0 shows a crash in the rank itself; a bus error says that "
        f"the memory behind /dev/shm is full on {scene.record.host}"
    )


def _killed(scene: FailureContext) -> str | None:
    if scene.record.code != -signal.SIGKILL:
        return None
    return f"somebody sent SIGKILL: the out-of-memory killer (see dmesg on {scene.record.host}), a scheduler, or a person"


def _nccl(scene: FailureContext) -> str | None:
    if not re.search(r"\bNCCL\b|nccl[A-Z]\w+Error|ProcessGroupNCCL", scene.text):
        return None
    if "doesn't have NCCL built in" in scene.text or "no GPUs found" in scene.text:
        return f"torch on {scene.record.host} finds no GPU or was built for none: leave runtime.backend on auto, or take gloo"
    peer = re.search(r"(?:peer|remote) rank[ :=]*(\d+)|rank (\d+) (?:is|has|did)", scene.text)
    rank = int(peer[1] or peer[2]) if peer is not None else None
    named = rank is not None and rank < scene.topology.world_size
    who = f"its peer is rank {rank} ({scene.topology.label_of(rank)}); " if rank is not None and named else ""
    return f"{who}NCCL says more with env.NCCL_DEBUG=INFO: look for the first WARN in each rank's log"


def _timeout(scene: FailureContext) -> str | None:
    if not re.search(r"timed out waiting|collective operation timeout", scene.text, re.IGNORECASE):
        return None
    return (
        "it waited for other ranks for as long as runtime.timeout_s allows; where the script calls ctx.step(), "
        "runtime.stall_timeout_s ends a job sooner and says who holds up whom"
    )


def _lost_peer(scene: FailureContext) -> str | None:
    if not scene.record.has_lost_a_peer:
        return None
    return "another rank has gone without a word, or the network between two hosts has failed"


def _import(scene: FailureContext) -> str | None:
    if not {"ImportError", "ModuleNotFoundError"} & set(scene.kinds):
        return None
    missing = re.search(r"No module named '([\w.]+)'", scene.text)
    if missing is not None:
        return (
            f"{missing[1]} is not installed for the Python of the ranks on {scene.record.host}, or its folder is not "
            "on sys.path: the script's folder is, the current one is not (env.PYTHONPATH=...)"
        )
    return "a package is installed in a version that does not have this name, or a file of the script's folder hides it"


def _port(scene: FailureContext) -> str | None:
    if not re.search(r"EADDRINUSE|[Aa]ddress already in use", scene.text):
        return None
    return (
        "the script takes a port that another process has; mimo-launch gives each start a free MASTER_PORT, so leave "
        "init_method and ports out, and bind own servers to port 0"
    )


def _file(scene: FailureContext) -> str | None:
    if "FileNotFoundError" not in scene.kinds:
        return None
    path = re.search(r"No such file or directory: '([^']*)'", scene.text)
    if path is not None and not path[1].startswith("/"):
        return f"{path[1]} is looked for in the folder where mimo-launch was started, not in the script's"
    return f"is it there on {scene.record.host}, and on every node that the job runs on?"


def _disk(scene: FailureContext) -> str | None:
    # The last two are torch.save's.
    said = r"No space left on device|Disk quota exceeded|Read-only file system|PytorchStreamWriter failed|unexpected pos \d+ vs"
    if not re.search(said, scene.text):
        return None
    return f"free some space on {scene.record.host}, or choose another place with run_dir=..."


def _joined_twice(scene: FailureContext) -> str | None:
    if not scene.joined_by_launcher or "default process group twice" not in scene.text:
        return None
    return (
        "the launcher has joined torch.distributed before the script started; let the script do it with runtime.join: script, "
        "or take the call out"
    )


def _crashed_in_c(scene: FailureContext) -> str | None:
    if scene.record.code not in (-signal.SIGSEGV, -signal.SIGBUS, -signal.SIGILL, -signal.SIGFPE):
        return None
    return "a crash in compiled code: the frames are Python's; gdb on a core file (ulimit -c unlimited) shows the rest"


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
    _file,
    _timeout,
    _nccl,
    _lost_peer,
    _crashed_in_c,
)
