"""The YAML schema: what a config may say, as frozen values."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from mimo_role import GroupOptions, ModuleLayout, ModuleSizes


class Backend(Enum):
    """The torch.distributed backend."""

    AUTO = "auto"
    """NCCL where torch sees a GPU, gloo elsewhere."""
    GLOO = "gloo"
    NCCL = "nccl"


class StartMethod(Enum):
    """How rank processes come into being."""

    FORKSERVER = "forkserver"
    """Forked from a server that has imported torch once."""
    SPAWN = "spawn"
    """A fresh interpreter for each rank."""


class Join(Enum):
    """Who joins torch.distributed."""

    LAUNCHER = "launcher"
    """mimo-launch, before the script starts."""
    SCRIPT = "script"
    """The script itself."""


@dataclass(frozen=True, kw_only=True)
class ModuleConfig(ModuleSizes):
    """One module: the sizes of its axes, which ranks it takes, where those are, and their groups."""

    pool: str | None = None
    """The pool whose nodes it runs on."""
    env: Mapping[str, str] = field(default_factory=dict)
    """Environment of this module's ranks, over the job's `env`."""
    groups: GroupOptions = field(default_factory=GroupOptions)
    """Which process groups it gets, and how they are made."""


@dataclass(frozen=True, kw_only=True)
class ResourcesConfig:
    """What a node needs, for schedulers that ask for numbers, such as Kubernetes. SLURM has its own options."""

    cpu: int | None = None
    """CPU cores. Default: one for each rank process."""
    gpu: int = 0
    """GPUs."""
    memory_mb: int = 1024
    """Memory in MiB."""


@dataclass(frozen=True, kw_only=True)
class PoolConfig:
    """A set of alike nodes."""

    nodes: int = 1
    procs_per_node: int
    """Rank processes a node takes."""
    slurm: Mapping[str, Any] = field(default_factory=dict)
    """sbatch options of this pool."""
    resources: ResourcesConfig = field(default_factory=ResourcesConfig)
    """What one of its nodes needs."""


@dataclass(frozen=True, kw_only=True)
class EntryConfig:
    """What each rank runs: exactly one of the three."""

    script: str | None = None
    """A Python file, relative to the config's folder."""
    module: str | None = None
    """A module, as `python -m` takes it."""
    command: tuple[str, ...] | None = None
    """Any program with its first arguments; the rank's role is in its environment."""


@dataclass(frozen=True, kw_only=True)
class RuntimeConfig:
    """How ranks start, join and stop."""

    backend: Backend = Backend.AUTO
    timeout_s: float = 600.0
    """The limit for joining and for each collective."""
    start_method: StartMethod = StartMethod.FORKSERVER
    join: Join | None = None
    """Default: `launcher` for a script or module, `script` for a command."""
    max_restarts: int = 0
    """How often all ranks are started again after a failure."""
    grace_s: float = 10.0
    """From SIGTERM to SIGKILL, when a run is interrupted or preempted."""
    stall_timeout_s: float | None = None
    """How long no rank may make progress before the job is ended; 0: for ever.

    Default: 0.9 of `timeout_s`, if then some ranks wait for others.
    """
    warning_s: float = 120.0
    """How long before a scheduler's time limit the ranks are warned."""


@dataclass(frozen=True, kw_only=True)
class JobConfig:
    """One training job."""

    name: str
    layout: ModuleLayout
    modules: Mapping[str, ModuleConfig]
    pools: Mapping[str, PoolConfig] | None = None
    """Default: this machine, with as many processes as the modules have ranks."""
    entry: EntryConfig
    args: tuple[str, ...] = ()
    """Arguments of the entry; those after `--` on the command line follow them."""
    runtime: RuntimeConfig = field(default_factory=RuntimeConfig)
    env: Mapping[str, str] = field(default_factory=dict)
    """Environment of every rank."""
    run_dir: str = "runs/${name}"
    """The run folder, relative to the current folder."""
