"""Environment variables that torch reads when it is imported, in a rank in which it is imported before the script.

A script may set such a variable and import torch afterwards. Here torch is hidden until the script imports it. At that
moment the variables that have changed are applied, where torch can still be set accordingly; for the others there is a
warning. Variables that torch reads at their first use, such as those of NCCL and most settings of the CUDA allocator, need
nothing.
"""

import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from launcher.worker.hidden_modules import HiddenModules
from mimo_role.host import environ

_LIBRARIES = re.compile(r"(OMP|GOMP|MKL|OPENBLAS|GOTO|MKLDNN|ONEDNN|DNNL|NPY|PYTORCH_JIT|TORCHDYNAMO|TORCHEXPORT)(_\w+)?")
_OF_LLVM = re.compile(r"KMP_\w+")
"""Of the OpenMP libraries of LLVM and Intel. PyPI's builds of torch have GNU's, which reads none of them."""
_LLVM_LIBRARIES = re.compile(r"/libi?omp(5|-|\.so)")
"""Wheels add a checksum to the name of a library that they bring: `libomp-a1b2c3d4.so.5`."""
_OF_TORCH = re.compile(
    r"KINETO_USE_DAEMON|PYTORCH_(API_USAGE_STDERR|MATCHER_LOGLEVEL|SUM_INNER_TREE)|TORCHINDUCTOR_FORCE_DISABLE_CACHES"
    r"|TORCH_(ALLOW_TF32_CUBLAS_OVERRIDE|BLAS_PREFER_\w+|COMPILE_\w+|CPP_LOG_LEVEL|CUDAGRAPH_GC|CUDA_SANITIZER|CUSTOM_TERMINATE"
    r"|DEVICE_BACKEND_AUTOLOAD|DISABLE_NATIVE_\w+|DISTRIBUTED_(COMPILE_ON_ONE_RANK|PIPELINE_PER_\w+|USE_TORCHCOMMS)"
    r"|ENRICH_RPOFILER_STACK_TRACE|FAKE_TENSOR_DEBUG|LINALG_PREFER_\w+|PYTHON_NATIVE_USER_GRAPH_ORDER_FN|ROCM_FA_PREFER_CK"
    r"|SHOW_CPP_STACKTRACES|SYMMMEM|USE_RTLD_GLOBAL|VITAL)"
)
"""Names that torch 2.11 to 2.15 were seen to read while they are imported, by `getenv` and by `os.environ`."""
_OF_ALLOCATORS = re.compile(r"PYTORCH_((CUDA|HIP)_)?ALLOC_CONF")
"""Builds with CUDA choose the allocator (`backend:`) at their import; they read the other settings at their first use."""

_seen: dict[str, str] = {}
_names: list[str] = []


def remember() -> None:
    """Remember the environment in which torch is imported."""
    _seen.clear()
    _seen.update(environ.variables())


def expect(variables: Mapping[str, str | None]) -> None:
    """Take variables as if they had been so when torch was imported; `None`: not set."""
    for name, value in variables.items():
        if value is None:
            _seen.pop(name, None)
        else:
            _seen[name] = value


def is_applied(name: str) -> bool:
    """Whether a change of a variable has its effect even after the import of torch."""
    return name in _APPLIED


def apply(origin: str) -> None:
    """Apply the variables that have changed since the import of torch.

    Args:
        origin: who has set them, for a warning.
    """
    now = dict(environ.variables())
    changed = {name for name in now.keys() | _seen.keys() if now.get(name) != _seen.get(name)}
    remember()
    is_applied = {apply_it: apply_it() for apply_it in {_APPLIED[name] for name in changed & _APPLIED.keys()}}
    remaining = {name for name in changed if name not in _APPLIED or not is_applied[_APPLIED[name]]}
    late = sorted(name for name in remaining if _is_read_at_import(name, now.get(name, "")))
    if late:
        names, example = ", ".join(late), late[0]
        sys.stderr.write(
            f"mimo-launch: {names}, set by {origin}, has no effect: torch was imported before, and read it then. Set it in the "
            f"config, for the whole job (`env: {{{example}: ...}}`), or use `runtime: {{start_method: spawn, join: script}}`\n"
        )


def _is_read_at_import(name: str, value: str) -> bool:
    if _OF_ALLOCATORS.fullmatch(name):
        return "backend:" in value
    if _OF_LLVM.fullmatch(name):
        return _has_llvm_openmp()
    return bool(_OF_TORCH.fullmatch(name) or _LIBRARIES.fullmatch(name))


def _has_llvm_openmp() -> bool:
    mapped = Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace")
    return _LLVM_LIBRARIES.search(mapped) is not None


def list_modules() -> None:
    """List the modules to hide: torch and `torch.NAME`, one of which comes first in any import.

    The fork server does so for all ranks. Reading each name, or hiding each of the thousand modules, writes to its count of
    references, and so copies memory that ranks share.
    """
    _names[:] = [name for name in sys.modules if name.partition(".")[0] == "torch" and name.count(".") <= 1]


def hide_torch(on_import: Callable[[], None]) -> HiddenModules:
    """Let torch look as if it had not been imported yet; importing it brings it back.

    Args:
        on_import: called then.
    """
    if not _names:
        list_modules()
    modules = {name: sys.modules[name] for name in _names if name in sys.modules}
    hidden = HiddenModules(modules, on_import)
    if modules:
        hidden.let_find()
    return hidden


def _set_threads() -> bool:
    import torch

    threads = environ.threads()
    if threads is not None:
        torch.set_num_threads(threads)
    return threads is not None


def _set_debug_level() -> bool:
    import torch.distributed as dist

    dist.set_debug_level_from_env()  # type: ignore[attr-defined]
    return True


def _set_up_logs() -> bool:
    """Private to torch; the public `set_logs` does nothing while TORCH_LOGS is set."""
    from torch._logging import _internal

    _internal.LOG_TRACE_HANDLER = None  # it keeps the folder of its creation
    _internal._init_logs()
    return True


_APPLIED: dict[str, Callable[[], bool]] = {
    "OMP_NUM_THREADS": _set_threads,
    "MKL_NUM_THREADS": _set_threads,
    "TORCH_DISTRIBUTED_DEBUG": _set_debug_level,
    "TORCH_LOGS": _set_up_logs,
    "TORCH_LOGS_FORMAT": _set_up_logs,
    "TORCH_LOGS_OUT": _set_up_logs,
    "TORCH_LOGS_TRACE_ID_FILTER": _set_up_logs,
    "TORCH_TRACE": _set_up_logs,
    "TORCH_DTRACE": _set_up_logs,
}
"""How a variable is applied; each returns whether it could."""
