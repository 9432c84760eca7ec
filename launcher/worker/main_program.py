"""Runs the user's script or module as the main program of this process, and records the exception that ends it."""

import io
import os
import pkgutil
import runpy
import subprocess
import sys
import types
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from importlib.machinery import SourceFileLoader, SourcelessFileLoader, all_suffixes
from itertools import takewhile
from pathlib import Path
from types import CodeType, TracebackType
from typing import Any

from launcher.exit_code import ExitCode
from launcher.failures import crash
from launcher.plan.launch_plan import Entry
from launcher.worker import process_end
from mimo_role.host import environ, node_dir

_ERROR_FILE = "TORCHELASTIC_ERROR_FILE"
_WORKER = os.path.join(os.path.dirname(__file__), "")  # noqa: PTH118, PTH120
_RUNPY = (runpy.__file__, "<frozen runpy>")
_MODULE_SUFFIXES = tuple(all_suffixes())
_FOR_TRACEBACKS = {name: import_module(name) for name in ("ast", "linecache", "tokenize", "traceback")}
"""Modules that Python imports to format a traceback, `tokenize` only then from Python 3.13 on. The script may have its own."""


def run_as_main(entry: Entry, on_failure: Callable[[], object]) -> None:
    """Run the entry as `python script.py args` or `python -m module args` would, as `__main__`.

    `__main__` stays the script's when this returns or raises: the interpreter then joins the threads and calls the exit
    functions, which may need it. What the script raises is for the interpreter to handle: it calls `sys.excepthook`,
    prints the text of `sys.exit("text")`, and ends the process by SIGINT after a `KeyboardInterrupt`.

    Args:
        entry: what to run.
        on_failure: called if the script raises anything but `SystemExit` with code 0, or with the code of a preempted rank,
            which leaves the job together with the others. A process that the script has forked reports nothing.
    """
    rank = os.getpid()
    try:
        _run(entry)
    except BaseException as error:
        if _is_success(error):
            process_end.succeeded()
        elif os.getpid() == rank:
            if not _asks_for_requeue(error):
                on_failure()
            _record(error)
        elif not isinstance(error, SystemExit):
            _hide_own_frames()
        raise
    process_end.succeeded()


def prepare_path(entry: Entry, started_with: Collection[str]) -> set[str]:
    """Put the folder of the script, or for a module the current one, in front of `sys.path`, as Python does unless its safe
    path is on. Its modules come before those that this process has imported already.

    Args:
        entry: what will run.
        started_with: the modules that every interpreter imports at its start, before it looks into that folder.

    Returns:
        The modules that the script may have of its own, in that folder, and `launcher` anywhere.
    """
    own: set[str] = set()
    others: set[str] = set()
    if not getattr(sys.flags, "safe_path", False):
        folder = os.getcwd() if entry.script is None else str(_folder_of(Path(entry.script)))  # noqa: PTH109
        sys.path.insert(0, folder)
        own = _modules_in(folder) - {*started_with}
        others = {name for name in own if not _is_from(folder, sys.modules.get(name))}
    _forget_modules(others)
    return {"launcher", *own}


def record_error(error: BaseException, frames: TracebackType | None, *, to_stderr: bool) -> None:
    """Write an exception to the rank's error files, for the agent's report.

    Args:
        error: the exception.
        frames: the part of its traceback that is shown.
        to_stderr: whether to print the traceback too.
    """
    file, folder, rank = environ.get(_ERROR_FILE), environ.node_dir(), environ.rank()
    if file is None:  # the script has emptied its environment
        return
    fallback = node_dir.error_file(folder, rank) if folder is not None and rank is not None else None
    with _modules_for_tracebacks():
        crash.write_crash(error, frames, Path(file), to_stderr=to_stderr, fallback=fallback)


@contextmanager
def _modules_for_tracebacks() -> Iterator[None]:
    """Put Python's modules in place of the script's of the same names, within a block."""
    replaced = {name: sys.modules.get(name) for name in _FOR_TRACEBACKS}
    sys.modules.update(_FOR_TRACEBACKS)
    try:
        yield
    finally:
        for name, module in replaced.items():
            if module is None:
                del sys.modules[name]
            else:
                sys.modules[name] = module


def script_frames(frames: TracebackType | None) -> TracebackType | None:
    """A traceback without its first frames, those of this package and of runpy. A syntax error in the script leaves none."""
    while frames is not None and _is_ours(frames.tb_frame.f_code.co_filename):
        frames = frames.tb_next
    return frames


def _is_ours(file: str) -> bool:
    return file.startswith(_WORKER) or file in _RUNPY


def _is_success(error: BaseException) -> bool:
    return isinstance(error, SystemExit) and error.code in (None, 0)


def _asks_for_requeue(error: BaseException) -> bool:
    return isinstance(error, SystemExit) and error.code == ExitCode.REQUEUE


def _run(entry: Entry) -> None:
    main = types.ModuleType("__main__")
    # multiprocessing, which is imported already, has given the main module this second name.
    sys.modules["__main__"] = sys.modules["__mp_main__"] = main
    if entry.module is not None:
        _set_command_line(["-m", entry.module, *entry.args])
        sys.argv = [entry.module, *entry.args]
        _run_module(entry.module, alter_argv=True)
        return
    assert entry.script is not None
    _set_command_line([entry.script, *entry.args])
    sys.argv = [entry.script, *entry.args]
    path = Path(entry.script).absolute()
    if _has_main(path):
        _run_module("__main__", alter_argv=False)
    else:
        _run_file(str(path), main)


def _run_file(path: str, main: types.ModuleType) -> None:
    loader = (SourcelessFileLoader if path.endswith(".pyc") else SourceFileLoader)("__main__", path)
    main.__dict__.update(__file__=path, __cached__=None, __loader__=loader, __builtins__=sys.modules["builtins"])
    exec(_code_of(path, loader), main.__dict__)  # noqa: S102 (the user's script)


def _code_of(path: str, loader: Any) -> CodeType:
    if isinstance(loader, SourcelessFileLoader):
        code = loader.get_code("__main__")
        assert code is not None
        return code
    with io.open_code(path) as file:
        return compile(file.read(), path, "exec", dont_inherit=True)


def _run_module(name: str, *, alter_argv: bool) -> None:
    """Run a module in `__main__`'s namespace. The interpreter calls the same function for `python -m`."""
    sys.modules["__main__"].__dict__["__builtins__"] = sys.modules["builtins"]
    runpy._run_module_as_main(name, alter_argv)  # type: ignore[attr-defined]


def _folder_of(script: Path) -> Path:
    """A folder, or a ZIP file, that has a `__main__` is in front of the path itself."""
    resolved = script.resolve()
    return resolved if _has_main(resolved) else resolved.parent


def _has_main(path: Path) -> bool:
    """Whether Python imports from it: then its `__main__` is the program. It finds out in the same way."""
    return pkgutil.get_importer(str(path)) is not None


def _set_command_line(words: list[str]) -> None:
    """Set what a script that restarts itself executes. multiprocessing uses the same function for the options."""
    sys.orig_argv = [sys.executable, *subprocess._args_from_interpreter_flags(), *words]  # type: ignore[attr-defined]


_listed: dict[str, list[str]] = {}
"""The modules that `list_modules` has found, by the package or module at their top."""

_last_listed = ""


def list_modules() -> None:
    """List the imported modules, to forget some of them later.

    The fork server does so for all ranks. Reading each name writes to its count of references, and so copies memory that ranks
    share.
    """
    global _last_listed
    _listed.clear()
    for name in sys.modules:
        _listed.setdefault(name.partition(".")[0], []).append(name)
        _last_listed = name


def _forget_modules(names: set[str]) -> None:
    """Forget imported modules, so that the script imports its own; and `launcher`, of which it may have one anywhere."""
    roots = {"launcher", *names}
    since = takewhile(lambda name: name != _last_listed, reversed(sys.modules))
    later = [name for name in since if name.partition(".")[0] in roots]
    for name in [*later, *(name for root in roots for name in _listed.get(root, ()))]:
        sys.modules.pop(name, None)


def _modules_in(folder: str) -> set[str]:
    found = set()
    with suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            name, _, suffix = entry.name.partition(".")
            if f".{suffix}" in _MODULE_SUFFIXES or (not suffix and _is_package(entry)):
                found.add(name)
    return found


def _is_package(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir() and Path(entry.path, "__init__.py").is_file()
    except OSError:  # a link that leads to itself, or a folder that may not be read
        return False


def _is_from(folder: str, module: types.ModuleType | None) -> bool:
    file = getattr(module, "__file__", None)
    return module is None or (file is not None and Path(file).is_relative_to(folder))


def _record(error: BaseException) -> None:
    """Record the exception for the agent's report, and print it where Python would print its default."""
    frames = script_frames(error.__traceback__)
    if isinstance(error, SystemExit):
        if not isinstance(error.code, int):  # the interpreter prints it
            record_error(error, None, to_stderr=False)
        return
    is_default = _prints_only(_hook()) and sys.stderr is sys.__stderr__ and environ.get(_ERROR_FILE) is not None
    record_error(error, frames, to_stderr=is_default)
    _hide_own_frames(print_it=not is_default)


def _hook() -> Any:
    """The script's `sys.excepthook`; a script may delete it."""
    return getattr(sys, "excepthook", None)


def _prints_only(hook: Any) -> bool:
    """Whether it is Python's hook, or the one around it by which torch puts the rank in front of each line."""
    if getattr(hook, "__module__", "").startswith("torch."):
        contents = [cell.cell_contents for cell in hook.__closure__ or ()]
        return sys.__excepthook__ in contents
    return hook is sys.__excepthook__


def _hide_own_frames(*, print_it: bool = True) -> None:
    """Let the script's `sys.excepthook` receive the traceback as if there were no launcher."""
    hook = _hook()

    def call_hook(_: type[BaseException], error: BaseException, frames: TracebackType | None) -> None:
        sys.excepthook = hook
        shown = script_frames(frames)
        sys.last_traceback = shown
        if print_it:
            _display(hook, error.with_traceback(shown))

    sys.excepthook = call_hook


def _display(hook: Any, error: BaseException) -> None:
    """Call the hook. If it fails, print what the interpreter prints then, without the frame of this function."""
    try:
        hook(type(error), error, error.__traceback__)
    except SystemExit:
        raise
    except BaseException as second:
        sys.stderr.write("Error in sys.excepthook:\n")
        own = second.with_traceback(second.__traceback__ and second.__traceback__.tb_next)
        sys.__excepthook__(type(own), own, own.__traceback__)
        sys.stderr.write("\nOriginal exception was:\n")
        sys.__excepthook__(type(error), error, error.__traceback__)
