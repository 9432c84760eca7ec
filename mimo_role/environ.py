"""The environment contract: what every rank finds in its environment. The only file here that touches `os.environ`."""

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from mimo_role.errors import EnvironError, RankNotInGridError, TopologyError
from mimo_role.families import GroupOptions
from mimo_role.role import RankRole
from mimo_role.slurm import SlurmTask, job_of, restarts_of, task_of
from mimo_role.topology import Topology

TOPOLOGY = "MIMO_TOPOLOGY"
TOPOLOGY_DIGEST = "MIMO_TOPOLOGY_DIGEST"
ROLE = "MIMO_ROLE"
LAYOUT = "MIMO_LAYOUT"
MODULES = "MIMO_MODULES"
HAS_LANGUAGE_MODULE = "MIMO_HAS_LANGUAGE_MODULE"
HAS_MODALITY_MODULES = "MIMO_HAS_MODALITY_MODULES"
COORDS = "MIMO_COORDS"
RUN_DIR = "MIMO_RUN_DIR"
RUN_ID = "MIMO_RUN_ID"
BACKEND = "MIMO_BACKEND"
TIMEOUT_S = "MIMO_TIMEOUT_S"
GROUPS = "MIMO_GROUPS"
RESTART_COUNT = "MIMO_RESTART_COUNT"
NODE = "MIMO_NODE"
GRACE_S = "MIMO_GRACE_S"
WARNING_S = "MIMO_WARNING_S"
NODE_DIR = "MIMO_NODE_DIR"


@dataclass(frozen=True, kw_only=True)
class RankEnviron:
    """What the contract says of one rank. `to_environ` and `from_environ` are each other's inverse."""

    topology: Topology
    rank: int
    run_dir: str | None = None
    """The run folder; `None` outside mimo-launch."""
    run_id: str | None = None
    backend: str | None = None
    """The backend that the config asks for, `auto` included."""
    timeout_s: float | None = None
    """The config's limit for joining and for each collective."""
    groups: Mapping[str, GroupOptions] = field(default_factory=dict)
    """Each module's group options, where they are not the defaults."""
    restart_count: int = 0
    """How often the ranks have been started before in this job, by mimo-launch or by a requeue."""
    node: str | None = None
    """The plan's name of the rank's node; `None` outside mimo-launch."""
    grace_s: float | None = None
    """From SIGTERM to SIGKILL."""
    warning_s: float | None = None
    """From SIGUSR1 to the end of the job."""

    @property
    def role(self) -> RankRole:
        """The rank's role."""
        return self.topology.role_of(self.rank)

    def to_environ(self) -> dict[str, str]:
        """The contract's variables; `RANK` and the rest of torchelastic's are not among them."""
        values = self._derived()
        optional = {
            RUN_DIR: self.run_dir,
            RUN_ID: self.run_id,
            BACKEND: self.backend,
            TIMEOUT_S: None if self.timeout_s is None else repr(self.timeout_s),
            NODE: self.node,
            GRACE_S: None if self.grace_s is None else repr(self.grace_s),
            WARNING_S: None if self.warning_s is None else repr(self.warning_s),
            RESTART_COUNT: str(self.restart_count),
            # Always set: what a job around this one has exported is not ours.
            GROUPS: json.dumps({name: options.as_dict() for name, options in self.groups.items()}),
        }
        return values | {name: value for name, value in optional.items() if value is not None}

    def _derived(self) -> dict[str, str]:
        role = self.role
        return {
            TOPOLOGY: self.topology.to_json(),
            TOPOLOGY_DIGEST: self.topology.digest,
            ROLE: json.dumps(role.as_dict()),
            LAYOUT: self.topology.layout.value,
            MODULES: ",".join(role.modules),
            HAS_LANGUAGE_MODULE: "1" if role.has_language_module else "0",
            HAS_MODALITY_MODULES: "1" if role.has_modality_modules else "0",
            COORDS: json.dumps(self.topology.coords_of(self.rank)),
        }

    @classmethod
    def from_environ(cls, environ: Mapping[str, str] | None = None) -> "RankEnviron":
        """Read the contract back, by default from this process's environment.

        Raises:
            EnvironError: a variable that is missing, malformed, or at odds with the topology and rank.
        """
        environ = os.environ if environ is None else environ
        try:
            topology = Topology.from_json(_required(environ, TOPOLOGY))
        except TopologyError as error:
            raise EnvironError(TOPOLOGY, str(error)) from None
        this_rank = _integer(environ, "RANK")
        if this_rank is None:
            raise EnvironError("RANK", "not set; torchrun, srun and mimo-launch set it for every rank")
        found = cls(
            topology=topology,
            rank=this_rank,
            run_dir=environ.get(RUN_DIR),
            run_id=environ.get(RUN_ID),
            backend=environ.get(BACKEND),
            timeout_s=_seconds(environ, TIMEOUT_S),
            groups=_groups(environ),
            restart_count=_integer(environ, RESTART_COUNT) or 0,
            node=environ.get(NODE),
            grace_s=_seconds(environ, GRACE_S),
            warning_s=_seconds(environ, WARNING_S),
        )
        found._check_derived(environ)
        return found

    def _check_derived(self, environ: Mapping[str, str]) -> None:
        try:
            expected = self._derived()
        except RankNotInGridError as error:
            raise EnvironError("RANK", str(error)) from None
        for name in (ROLE, COORDS):
            value = _required(environ, name)
            try:
                found = json.loads(value)
                if name == ROLE:
                    RankRole.from_dict(found)
            except ValueError as error:
                raise EnvironError(name, f"malformed ({error}): {value!r}") from None
            if found != json.loads(expected[name]):
                raise EnvironError(name, f"{value} is not rank {self.rank}'s in {TOPOLOGY}: {expected[name]}")
        for name, value in expected.items():
            if name not in (TOPOLOGY, ROLE, COORDS) and _required(environ, name) != value:
                raise EnvironError(name, f"{environ[name]!r} is not rank {self.rank}'s in {TOPOLOGY}: {value!r}")


def is_set() -> bool:
    """Whether this process's environment carries the contract."""
    return TOPOLOGY in os.environ


def export(values: Mapping[str, str]) -> list[str]:
    """Set variables for this process and the ones it starts; return those that were not set before."""
    added = [name for name in values if name not in os.environ]
    os.environ.update(values)
    return added


@contextmanager
def defaults(values: Mapping[str, str]) -> Iterator[None]:
    """Set those variables that are not set, for the time of a block."""
    added = export({name: value for name, value in values.items() if name not in os.environ})
    try:
        yield
    finally:
        withdraw(added)


def withdraw(names: Iterable[str]) -> None:
    """Unset variables."""
    for name in names:
        os.environ.pop(name, None)


@contextmanager
def without(is_meant: Callable[[str], bool]) -> Iterator[None]:
    """Unset the variables whose names are meant, for the time of a block."""
    taken = {name: value for name, value in os.environ.items() if is_meant(name)}
    withdraw(taken)
    try:
        yield
    finally:
        os.environ.update(taken)


def rank() -> int | None:
    """`RANK`, if it is set.

    Raises:
        EnvironError: it is not a number.
    """
    return _integer(os.environ, "RANK")


def local_rank() -> int:
    """`LOCAL_RANK`; 0 if it is not set.

    Raises:
        EnvironError: it is not a number.
    """
    return _integer(os.environ, "LOCAL_RANK") or 0


def world_size() -> int | None:
    """`WORLD_SIZE`, if it is set.

    Raises:
        EnvironError: it is not a number.
    """
    return _integer(os.environ, "WORLD_SIZE")


def slurm_task() -> SlurmTask | None:
    """This process's place in a job step of SLURM's, if srun started it.

    Raises:
        EnvironError: a variable of SLURM's that is missing or malformed.
    """
    return task_of(os.environ)


def slurm_job() -> str | None:
    """The id of the SLURM job that this process is in."""
    return job_of(os.environ)


def slurm_restarts() -> int:
    """How often SLURM has requeued the job that this process is in."""
    return restarts_of(os.environ)


def elastic_restarts() -> int:
    """How often torchelastic's agent has started the ranks again."""
    return _integer(os.environ, "TORCHELASTIC_RESTART_COUNT") or 0


def threads() -> int | None:
    """`OMP_NUM_THREADS`, if it is set to a number; OpenMP's own lists of numbers are left to OpenMP."""
    value = os.environ.get("OMP_NUM_THREADS", "")
    return int(value) if value.isascii() and value.isdigit() and int(value) > 0 else None


def is_on_one_host() -> bool:
    """Whether all ranks are known to run on this machine.

    Raises:
        EnvironError: `WORLD_SIZE` or `LOCAL_WORLD_SIZE` is not a number.
    """
    ranks = _integer(os.environ, "LOCAL_WORLD_SIZE")
    return ranks is not None and ranks == _integer(os.environ, "WORLD_SIZE")


def get(name: str) -> str | None:
    """One variable of this process's environment."""
    return os.environ.get(name)


def node_dir() -> Path | None:
    """The folder that this node's ranks share with their launcher; `None` outside mimo-launch."""
    value = os.environ.get(NODE_DIR)
    return Path(value) if value else None


def missing_for_join() -> list[str]:
    """The variables that torch's `env://` rendezvous needs and this process lacks."""
    return [name for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]


def _required(environ: Mapping[str, str], name: str) -> str:
    if name not in environ:
        raise EnvironError(name, "not set; mimo-launch sets it for every rank, elsewhere mimo_role.init(topology) does")
    return environ[name]


def _integer(environ: Mapping[str, str], name: str) -> int | None:
    value = environ.get(name)
    if value is None:
        return None
    if not value.isascii() or not value.isdigit():
        raise EnvironError(name, f"{value!r} is not a whole number")
    return int(value)


def _groups(environ: Mapping[str, str]) -> dict[str, GroupOptions]:
    value = environ.get(GROUPS)
    if value is None:
        return {}
    try:
        return {name: GroupOptions.from_dict(options) for name, options in json.loads(value).items()}
    except (ValueError, TypeError, AttributeError) as error:
        raise EnvironError(GROUPS, f"malformed ({error}): {value!r}") from None


def _seconds(environ: Mapping[str, str], name: str) -> float | None:
    value = environ.get(name)
    if value is None:
        return None
    try:
        seconds = float(value)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise EnvironError(name, f"{value!r} is not a number of seconds above 0")
    return seconds
