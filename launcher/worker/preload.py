"""Modules that the fork server imports once, and with which every rank begins: those of `runtime.preload`, among others.

Those of the list are imported as the script would import them, from its folder too. Afterwards they look, in the server and
in each rank, as if they had not been imported yet. When the script imports one of them it is there at once, with torch if its
import has brought torch, and with the environment variables that it has set. Variables that have changed since, and that it
read when it was imported, are named in a warning.

Modules of the script's own folder cannot be found before the script starts: they hide nothing from mimo-launch.
"""

import atexit
import logging
import sys
import traceback
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

from launcher.config.reserved_variables import RESERVED_VARIABLES
from launcher.errors import LaunchError
from launcher.host.preload_list import ModuleToPreload, PreloadList
from launcher.plan.launch_plan import Entry
from launcher.worker import fork_hazards, late_variables, main_program
from launcher.worker.hidden_modules import HiddenModules
from mimo_role.host import environ

_POOLS = ("libgomp", "libomp", "libiomp", "openblas", "libmkl", "libblis")
_SIZES_OF_POOLS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "BLIS_NUM_THREADS")
"""C libraries with threads, and the variables that they read when they are loaded."""

_WITHOUT_CUDA = {"PYTORCH_NVML_BASED_CUDA_CHECK": "1"}
"""With it torch finds out whether there is a GPU without initializing CUDA, which forked ranks could not use then."""


class _Preloaded:
    """One module of the list, with those that are hidden and come back together with it."""

    def __init__(self, wanted: ModuleToPreload) -> None:
        self.name = wanted.name
        self.is_listed = wanted.is_listed
        self._cure = wanted.cure
        self._origin = wanted.key.partition("[")[0]
        self.brings: list[_Preloaded] = []
        self.brings_torch = False
        self.reads: dict[str, str | None] = {}
        """The variables that it has read, with their values before its import."""
        self.sets: dict[str, tuple[str | None, str | None]] = {}
        """The variables that it has changed, with their values before and after."""
        self.loggers: list[logging.Logger] = []
        """Those that it has made."""
        self.filters: list[Any] = []
        """Filters of warnings that it has added."""
        self.exit_functions: list[tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]] = []
        """What it has asked to be called at the exit."""
        self.hidden = HiddenModules({}, self.come_back)

    def hide(self, modules: Mapping[str, ModuleType]) -> None:
        """Hide modules too, and those that were brought back again."""
        if not modules:
            return
        self.hidden.leave()
        self.hidden = HiddenModules({**self.hidden.modules, **modules}, self.come_back)
        self.hidden.let_find()

    def come_back(self) -> None:
        """Bring back what its import brings."""
        for other in self.brings:
            other.hidden.import_now()
        if self.brings_torch:
            import_module("torch")  # as the script would: other threads that import it wait
        for logger in self.loggers:
            logger.disabled = False  # by logging.config, which disables loggers that are there
        _add_filters(self.filters)
        if _job.is_rank:
            for function, args, kwargs in self.exit_functions:
                atexit.register(function, *args, **kwargs)
            self.warn("the script")
            self._set_variables()

    def warn(self, origin: str) -> None:
        """Name the variables that come too late."""
        now = environ.variables()
        late = sorted(name for name, value in self.reads.items() if now.get(name) != value)
        self.reads.update({name: now.get(name) for name in late})
        if late:
            sys.stderr.write(
                f"mimo-launch: {', '.join(late)}, set by {origin}, may have no effect: {self.name} was imported before "
                f"({self._origin}), and read it then. Set it in the config, for the whole job (`env: {{{late[0]}: ...}}`), "
                f"or {self._cure}\n"
            )

    def _set_variables(self) -> None:
        changed = {name: after for name, (before, after) in self.sets.items() if environ.get(name) == before}
        environ.export({name: after for name, after in changed.items() if after is not None})
        environ.withdraw([name for name, after in changed.items() if after is None])
        late_variables.expect(changed)


class _Job:
    """What has been preloaded in this process."""

    def __init__(self) -> None:
        self.preloaded: list[_Preloaded] = []
        self.path: list[str] | None = None
        """`sys.path` after the imports."""
        self.is_rank = False


_job = _Job()


def import_modules(wanted: PreloadList, started_with: Collection[str], report: Callable[[int], None]) -> dict[str, ModuleType]:
    """Import modules in the fork server: in the script's environment, those that the user has listed.

    Args:
        wanted: the modules, and what will run.
        started_with: the modules that every interpreter imports at its start.
        report: called with the index of each module before its import.

    Returns:
        All modules that this has imported, by name.

    Raises:
        LaunchError: a module cannot be imported, or leaves something that forked ranks could not have.
    """
    at_start, own = dict(sys.modules), set[str]()
    automatic = [module for module in wanted.modules if not module.is_listed]
    listed = wanted.modules[len(automatic) :]
    for at, module in enumerate(automatic):
        report(at)
        _preload(module, own, at_start)
    before = dict(sys.modules)
    if listed:
        entry = Entry(**{**wanted.entry, "args": tuple(wanted.entry["args"])})
        with _in_place_of_the_script(entry, started_with) as own:
            for at, module in enumerate(listed, len(automatic)):
                report(at)
                _preload(module, own, before)
    found = {name: module for name, module in sys.modules.items() if at_start.get(name) is not module}
    sys.modules.update(before)
    for each in _job.preloaded:
        found |= each.hidden.modules
        if any(_root_of(name) in own for name in each.hidden.modules):
            each.hidden.leave()
    return found


def enter_rank() -> None:
    """In a rank, once its environment is complete: name the variables of its modules that come too late."""
    for each in _job.preloaded:
        each.warn("the environment of a module")


def offer_to_script() -> None:
    """In a rank, after `main_program.prepare_path`: let the script find what has been preloaded. torch is hidden too."""
    _job.is_rank = True
    if _job.path is not None:
        sys.path[:] = _job.path
    for each in _job.preloaded:
        each.hidden.let_find()
    late_variables.hide_torch(on_import=partial(late_variables.apply, "the script"))


@contextmanager
def _in_place_of_the_script(entry: Entry, started_with: Collection[str]) -> Iterator[set[str]]:
    path, arguments = [*sys.path], sys.argv
    own = main_program.prepare_path(entry, started_with)
    sys.argv = [entry.script or entry.module or "", *entry.args]
    yield own
    _job.path = [*sys.path]
    sys.path[:], sys.argv = path, arguments


def _preload(wanted: ModuleToPreload, own: Collection[str], before: Mapping[str, ModuleType]) -> None:
    module = _Preloaded(wanted)
    was_there = wanted.name in sys.modules and wanted.name not in before
    find_hazard = fork_hazards.watch()
    with _noting_what_it_does(module) as reads:
        _import(wanted)
    if (hazard := find_hazard()) is not None:
        raise LaunchError(f"{wanted.key}: importing '{wanted.name}' {hazard}; {wanted.cure}")
    _refuse_variables_of_ranks(wanted, reads)
    # One that was there has been imported by one of the others, which may be any of them.
    module.brings = [each for each in _job.preloaded if was_there or not each.hidden.is_hidden]
    _job.preloaded.append(module)
    _hide_again(own, before)


@contextmanager
def _noting_what_it_does(module: _Preloaded) -> Iterator[Collection[str]]:
    """Note whether a module imports torch, and which variables it reads and sets."""
    variables, pools, loggers, filters = dict(environ.variables()), _pools(), _loggers().keys(), [*warnings.filters]
    late_variables.list_modules()
    torch = late_variables.hide_torch(on_import=lambda: None)
    with environ.defaults(_WITHOUT_CUDA), environ.noting_reads() as reads, _keeping_exit_functions(module):
        yield reads
    module.loggers = [logger for name, logger in _loggers().items() if name not in loggers]
    module.filters = [each for each in warnings.filters if each not in filters]
    _set_filters(filters)
    module.brings_torch = not torch.is_hidden
    torch.bring_back()
    now = environ.variables()
    module.sets = {name: (variables.get(name), now.get(name)) for name in {*variables, *now}}
    module.sets = {name: (old, new) for name, (old, new) in module.sets.items() if old != new}
    sizes = _SIZES_OF_POOLS if _pools() - pools else ()
    read = [*sizes, *(name for name in reads if not late_variables.is_applied(name))]
    module.reads = {name: variables.get(name) for name in read}


@contextmanager
def _keeping_exit_functions(module: _Preloaded) -> Iterator[None]:
    """Register its functions that are to be called at the exit when the script imports it. Those of modules that stay imported
    are registered at once."""
    register = atexit.register

    def keep(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Callable[..., Any]:
        if _root_of(getattr(function, "__module__", None) or "") != _root_of(module.name):
            return register(function, *args, **kwargs)
        module.exit_functions.append((function, args, kwargs))
        return function

    atexit.register = keep  # type: ignore[assignment]
    try:
        yield
    finally:
        atexit.register = register


def _hide_again(own: Collection[str], before: Mapping[str, ModuleType]) -> None:
    """Hide what is new: modules below the names of the list, and with the last one the script's own that it has imported."""
    last = _job.preloaded[-1]
    by_root = {_root_of(each.name): each for each in reversed(_job.preloaded) if each.is_listed or each is last}
    hidden = {name: each for each in _job.preloaded for name in each.hidden.modules}
    found: dict[_Preloaded, dict[str, ModuleType]] = {each: {} for each in _job.preloaded}
    for name, module in sys.modules.items():
        root = _root_of(name)
        owner = hidden.get(name) or by_root.get(root, last if root in own else None)
        if owner is not None and before.get(name) is not module:
            found[owner][name] = module
    for each, modules in found.items():
        each.hide(modules)


def _root_of(name: str) -> str:
    return name.partition(".")[0]


def _import(wanted: ModuleToPreload) -> None:
    name = wanted.name
    try:
        import_module(name)
    except BaseException as error:
        if not wanted.is_listed:
            return
        reason = traceback.format_exception_only(error)[-1].strip()
        missing = isinstance(error, ModuleNotFoundError) and error.name is not None and f"{name}.".startswith(f"{error.name}.")
        cure = "install it, or correct the name" if missing else f"python -c 'import {name}' shows where"
        raise LaunchError(f"{wanted.key}: '{name}' cannot be imported: {reason}; {cure}, or {wanted.cure}") from None


def _refuse_variables_of_ranks(wanted: ModuleToPreload, reads: Collection[str]) -> None:
    """A rank's variables are not set before it is forked: the module would have taken this process for one without a rank."""
    if found := sorted(each for each in reads if each in RESERVED_VARIABLES):
        raise LaunchError(
            f"{wanted.key}: importing '{wanted.name}' read {', '.join(found)}, which ranks have once they are forked; "
            f"{wanted.cure}"
        )


def _loggers() -> dict[str, logging.Logger]:
    known = logging.getLogger().manager.loggerDict
    return {name: logger for name, logger in known.items() if isinstance(logger, logging.Logger)}


def _add_filters(filters: Sequence[Any]) -> None:
    if filters:
        _set_filters([*filters, *(each for each in warnings.filters if each not in filters)])


def _set_filters(filters: Sequence[Any]) -> None:
    warnings.filters[:] = filters  # type: ignore[index]
    with warnings.catch_warnings():  # its end lets Python read the filters anew
        pass


def _pools() -> set[str]:
    lines = Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace").splitlines()
    files = {line.rpartition("/")[2] for line in lines}
    return {file for file in files if any(pool in file for pool in _POOLS)}
