"""The schema of a config, as frozen dataclasses.

The docstring of a field is its description in `job.schema.json`: one sentence for a reader of the config.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from launcher.config.mistakes import Bound
from mimo_role import GroupOptions, ModuleLayout, ModuleSizes

_AT_LEAST_0 = Bound(0, "is less than 0").metadata
_AT_LEAST_1 = Bound(1, "is less than 1").metadata
_ABOVE_0 = Bound(0, "is not above 0", exclusive=True).metadata


class Backend(Enum):
    """The torch.distributed backend."""

    AUTO = "auto"
    """NCCL if torch finds a GPU, gloo otherwise."""
    GLOO = "gloo"
    NCCL = "nccl"


class StartMethod(Enum):
    """How rank processes are started."""

    FORKSERVER = "forkserver"
    """Forked from a server that has imported torch once."""
    SPAWN = "spawn"
    """A fresh interpreter for each rank."""


class Join(Enum):
    """Who calls `init_process_group`."""

    LAUNCHER = "launcher"
    """mimo-launch, before the script starts."""
    SCRIPT = "script"
    """The script itself."""


class NumaBinding(Enum):
    """Which CPU cores near its GPU a rank is bound to: the modes of torchrun's `--numa-binding`."""

    NODE = "node"
    """Those of the GPU's NUMA node."""
    SOCKET = "socket"
    """Those of all NUMA nodes of the GPU's socket."""
    EXCLUSIVE = "exclusive"
    """The rank's share of those of the NUMA node, divided among the node's GPUs."""
    CORE_COMPLEX = "core-complex"
    """Those of one core complex of the NUMA node, which share a cache."""


@dataclass(frozen=True, kw_only=True)
class ModuleConfig(ModuleSizes):
    """One module: the sizes of its axes, its ranks, their nodes, and their process groups."""

    pool: str | None = None
    """The pool on whose nodes it runs. Default: the pools in their order."""
    env: Mapping[str, str] = field(default_factory=dict)
    """Environment variables of this module's ranks; they override the job's `env`."""
    groups: GroupOptions = field(default_factory=GroupOptions)
    """Its process groups and their options."""


@dataclass(frozen=True, kw_only=True)
class ResourcesConfig:
    """Resources of one node, for schedulers that need numbers, such as Kubernetes. SLURM has its own options."""

    cpu: int | None = field(default=None, metadata=_AT_LEAST_1)
    """CPU cores. Default: one for each rank process."""
    gpu: int = field(default=0, metadata=_AT_LEAST_0)
    """Number of GPUs."""
    memory_mb: int = field(default=1024, metadata=_AT_LEAST_1)
    """Memory in MiB."""
    gpu_memory_gib: float | None = field(default=None, metadata=_ABOVE_0)
    """Memory of one GPU in GiB, for `rehearse --memory`. Default: any peak fits."""


@dataclass(frozen=True, kw_only=True)
class PoolConfig:
    """A set of equal nodes."""

    nodes: int = field(default=1, metadata=_AT_LEAST_1)
    """Number of nodes."""
    procs_per_node: int = field(metadata=_AT_LEAST_1)
    """Rank processes per node."""
    slurm: Mapping[str, Any] = field(default_factory=dict)
    """Options of sbatch by their long names, and under `srun` those of srun; `true` for an option without a value."""
    resources: ResourcesConfig = field(default_factory=ResourcesConfig)
    """Resources of one node, for schedulers that need numbers, such as Kubernetes."""


@dataclass(frozen=True, kw_only=True)
class EntryConfig:
    """What each rank runs: exactly one of `script`, `module` and `command`."""

    script: str | None = None
    """A Python file, relative to the config's folder."""
    module: str | None = None
    """A Python module, run as by `python -m`."""
    command: tuple[str, ...] | None = None
    """Any program and its first arguments; the rank's role is in its environment variables."""


@dataclass(frozen=True, kw_only=True)
class RuntimeConfig:
    """How ranks are started, joined and stopped."""

    backend: Backend = Backend.AUTO
    """The torch.distributed backend; `auto`: NCCL if torch finds a GPU, gloo otherwise."""
    timeout_s: float = field(default=600.0, metadata=_ABOVE_0)
    """Seconds for joining and for each collective."""
    start_method: StartMethod = StartMethod.FORKSERVER
    """`forkserver`: ranks are forked from a process that has imported torch. `spawn`: a new interpreter each."""
    preload: tuple[str, ...] = ()
    """Modules that this process imports too, once for all ranks, such as `[transformers, sklearn]`."""
    join: Join | None = None
    """Who calls `init_process_group`: `launcher`, before the script starts, or the `script` itself.

    Default: `launcher` for a script or module, `script` for a command.
    """
    max_restarts: int = field(default=0, metadata=_AT_LEAST_0)
    """How often all ranks are restarted after a failure."""
    grace_s: float = field(default=10.0, metadata=_ABOVE_0)
    """Seconds from SIGTERM to SIGKILL when a run is interrupted or preempted, or a rank has failed."""
    stall_timeout_s: float | None = field(default=None, metadata=Bound(0, "is below 0; 0 turns hang detection off").metadata)
    """Seconds without progress on any rank before the job is ended; 0: no limit.

    Default: 0.9 of `timeout_s`, if some ranks wait for others by then.
    """
    warning_s: float = field(default=120.0, metadata=_ABOVE_0)
    """Seconds before a scheduler's time limit at which the ranks are warned by SIGUSR1."""
    numa_binding: NumaBinding | None = None
    """Bind each rank to CPU cores near its GPU, as torchrun's `--numa-binding`. Default: ranks are not bound."""
    tensorboard: bool = False
    """Write the steps of the run as TensorBoard's events, too, into `tensorboard/mimo_launch` of the run directory."""


@dataclass(frozen=True, kw_only=True)
class JobConfig:
    """One training job."""

    name: str
    """The job's name."""
    layout: ModuleLayout
    """`colocated`: all modules on all ranks. `non_colocated`: a rank runs modality modules or the language module."""
    modules: Mapping[str, ModuleConfig]
    """The modules by name, in the order in which they take ranks; exactly one is named `language`."""
    pools: Mapping[str, PoolConfig] | None = None
    """The nodes, as sets of equal ones. Default: this machine, with as many processes as the modules have ranks."""
    entry: EntryConfig
    """What each rank runs: exactly one of `script`, `module` and `command`."""
    args: tuple[str, ...] = ()
    """Arguments of the entry; those after `--` on the command line are appended."""
    runtime: RuntimeConfig = field(default_factory=RuntimeConfig)
    """How ranks are started, joined and stopped."""
    env: Mapping[str, str] = field(default_factory=dict)
    """Environment variables of every rank."""
    run_dir: str = "runs/${name}"
    """The run directory, relative to the current directory."""
