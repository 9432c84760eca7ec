"""The environment contract: the variables that `mimo-launch` or `mimo_role.init()` sets for each rank."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field

from mimo_role.errors import EnvironError, RankNotInGridError, TopologyError
from mimo_role.groups.options import GroupOptions
from mimo_role.host.environ import (
    BACKEND,
    COORDS,
    GRACE_S,
    GROUPS,
    HAS_LANGUAGE_MODULE,
    HAS_MODALITY_MODULES,
    LAYOUT,
    MODULES,
    NODE,
    RESTART_COUNT,
    ROLE,
    RUN_DIR,
    RUN_ID,
    TIMEOUT_S,
    TOPOLOGY,
    TOPOLOGY_DIGEST,
    WARNING_S,
    variables,
    whole_number,
)
from mimo_role.role import RankRole
from mimo_role.topology.topology import Topology


@dataclass(frozen=True, kw_only=True)
class RankEnviron:
    """The environment contract of one rank. `to_environ` and `from_environ` are inverse to each other."""

    topology: Topology
    rank: int
    run_dir: str | None = None
    """The run directory; `None` outside mimo-launch."""
    run_id: str | None = None
    backend: str | None = None
    """The backend in the config, or `auto`."""
    timeout_s: float | None = None
    """The config's limit for joining and for each collective."""
    groups: Mapping[str, GroupOptions] = field(default_factory=dict)
    """By module, group options that are not the defaults."""
    restart_count: int = 0
    """The number of earlier attempts in this job, whether restarted by mimo-launch or requeued."""
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
        """The contract's variables, without torchelastic's, such as `RANK`."""
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
            # Always set: the variable may be left from an outer job.
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
            EnvironError: a variable that is missing, malformed, or inconsistent with topology and rank.
        """
        environ = variables() if environ is None else environ
        try:
            topology = Topology.from_json(_required(environ, TOPOLOGY))
        except TopologyError as error:
            raise EnvironError(TOPOLOGY, str(error)) from None
        this_rank = whole_number(environ, "RANK")
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
            restart_count=whole_number(environ, RESTART_COUNT) or 0,
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


def _required(environ: Mapping[str, str], name: str) -> str:
    if name not in environ:
        raise EnvironError(name, "not set; mimo-launch sets it for every rank, elsewhere mimo_role.init(topology) does")
    return environ[name]


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
