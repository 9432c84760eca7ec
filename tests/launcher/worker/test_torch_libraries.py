"""Modules that are imported while torch's libraries are loaded. Each test is a process: torch is imported once in it."""

import subprocess
import sys

import pytest

STATE = """
def state():
    import torch
    spec = torch._C.__spec__
    threads = [thread.name for thread in threading.enumerate()]
    finders = [str(type(finder)) for finder in sys.meta_path]
    loader = type(spec.loader), vars(spec.loader), spec.origin
    return sorted(sys.modules), finders, threads, loader, list(map(str, warnings.filters))
"""


def run(code):
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_a_process_is_as_if_it_had_imported_one_after_the_other():
    setup = f"import sys, threading, warnings\nimport launcher.worker.torch_libraries as libraries\n{STATE}"
    beside = run(f"{setup}\nwith libraries.loaded_beside('sympy'):\n    import torch\nprint(state())")
    one_by_one = run(f"{setup}\nimport torch, sympy\nprint(state())")
    assert beside == one_by_one


@pytest.mark.parametrize(
    ("module", "is_there"), [pytest.param("sympy", "True", id="found"), pytest.param("no_such_module", "False", id="missing")]
)
def test_the_module_is_imported_while_the_libraries_are_loaded(module, is_there):
    code = f"""
import sys
import launcher.worker.torch_libraries as libraries
seen, original = [], libraries.load
with libraries.loaded_beside({module!r}) as _:
    finder = sys.meta_path[0]
    def load(library):
        original(library)
        finder._thread.join(60)  # as long as it takes: the thread needs no lock that this one has
        seen.append((finder._thread.is_alive(), {module!r} in sys.modules, "torch._C" in sys.modules))
    libraries.load = load
    import torch
print(*seen[0], int(torch.ones(2).sum()))
"""
    assert run(code) == f"False {is_there} False 2"


def test_python_runs_while_a_library_is_loaded():
    code = """
import importlib.util, threading, time
from pathlib import Path
import launcher.worker.torch_libraries as libraries
library = Path(importlib.util.find_spec("torch").origin).parent / "lib" / "libtorch.so"
is_over, times = threading.Event(), [0.0]
def measure():
    while not is_over.is_set():
        times.append(time.perf_counter())
measuring = threading.Thread(target=measure)
measuring.start()
began = time.perf_counter()
libraries.load(library)
ended = time.perf_counter()
is_over.set()
measuring.join()
quarter = (ended - began) / 4
within = sum(began + quarter < at < ended - quarter for at in times)
print(within > 0, "libtorch_cpu" in Path("/proc/self/maps").read_text())
"""
    assert run(code) == "True True"


def test_a_library_that_cannot_be_loaded_is_left_to_the_import(tmp_path):
    broken = tmp_path / "libtorch.so"
    broken.write_bytes(b"not a library")
    run(f"from pathlib import Path\nimport launcher.worker.torch_libraries as libraries\nlibraries.load(Path({str(broken)!r}))")


def test_a_block_that_does_not_import_torch_leaves_nothing():
    code = """
import sys, threading
import launcher.worker.torch_libraries as libraries
before = list(sys.meta_path)
with libraries.loaded_beside("sympy"):
    pass
print(sys.meta_path == before, "sympy" in sys.modules, threading.active_count())
"""
    assert run(code) == "True False 1"
