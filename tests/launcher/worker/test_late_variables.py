"""Variables that a script sets before it imports torch, which the fork server has imported already."""

import os
import subprocess
import sys

import pytest

from tests.launcher.worker.main_programs import START_METHODS, Ended, programs

pytestmark = pytest.mark.ranks


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    with programs(tmp_path_factory.mktemp("programs"), OMP_NUM_THREADS="1", OMP_PROC_BIND="false") as found:
        yield found


def set_before(imports, **variables):
    return f"import os\nos.environ.update({variables})\n{imports}\n"


SHOWN = {
    "threads": "import torch\nprint(torch.get_num_threads())",
    "debug level": "import torch.distributed as dist\nprint(dist.get_debug_level())",
    "loggers": "import logging, torch\nprint(*(logging.getLogger(name).level for name in ('torch', 'torch._dynamo')))",
    "traces": "import torch\nprint(torch._logging._internal.LOG_TRACE_HANDLER.root_dir)",
    "log handlers": "import logging, torch\nprint(len(logging.getLogger('torch._dynamo').handlers))",
}

EFFECTS = {
    "threads of OpenMP": ("threads", {"OMP_NUM_THREADS": "2"}),
    "threads of MKL, which are more important": ("threads", {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "2"}),
    "threads of MKL, and of OpenMP as the launcher sets them": ("threads", {"MKL_NUM_THREADS": "2"}),
    "threads of nested teams": ("threads", {"OMP_NUM_THREADS": " 2,1"}),
    "debug level": ("debug level", {"TORCH_DISTRIBUTED_DEBUG": "DETAIL"}),
    "logs": ("loggers", {"TORCH_LOGS": "+dynamo"}),
    "file of logs": ("log handlers", {"TORCH_LOGS": "+dynamo", "TORCH_LOGS_OUT": "/dev/null"}),
    "traces": ("traces", {"TORCH_TRACE": "traces"}),
    "several": ("loggers", {"TORCH_LOGS": "-dynamo", "TORCH_DISTRIBUTED_DEBUG": "INFO", "MKL_NUM_THREADS": "1"}),
}


@pytest.mark.parametrize(("shown", "variables"), EFFECTS.values(), ids=EFFECTS)
def test_a_variable_has_the_effect_that_it_has_under_python(run, shown, variables):
    path = run.write("effect.py", set_before(SHOWN[shown], **variables))
    assert run.as_rank("forkserver", {"script": path}) == run.by_python(path)


IN_A_THREAD = """
import os, threading
def imports():
    os.environ["TORCH_DISTRIBUTED_DEBUG"] = "INFO"
    import torch.distributed as dist
    seen.append(dist.get_debug_level().name)
seen = []
threads = [threading.Thread(target=imports) for _ in range(3)]
for thread in threads: thread.start()
for thread in threads: thread.join()
print(seen)
"""


def test_threads_may_import_torch(run):
    path = run.write("threads.py", IN_A_THREAD)
    assert run.as_rank("forkserver", {"script": path}) == Ended(0, "['INFO', 'INFO', 'INFO']\n", "")


IMPORTS = [
    "import torch",
    "import torch as other_name",
    "from torch.nn import functional",
    "import torch.distributed as dist",
    "import torch.utils.data",
    "__import__('torch')",
    "import importlib; importlib.import_module('torch.optim')",
    "exec('from torch import *')",
    "import mimo_role; mimo_role.TokenSplit; import torch",
]


@pytest.mark.parametrize("imports", IMPORTS)
def test_a_variable_counts_however_torch_is_imported(run, imports):
    path = run.write("imports.py", set_before(imports, OMP_NUM_THREADS="5", TORCH_DISTRIBUTED_DEBUG="INFO") + SHOWN["threads"])
    assert run.as_rank("forkserver", {"script": path}).out == "5\n"


AS_FRESH = """
import importlib.util, pickle, sys
print("torch" in sys.modules, [name for name in sys.modules if name.startswith("torch.") and name.count(".") == 1])
print(importlib.util.find_spec("torch").origin)
print(importlib.util.find_spec("torch.nn").name, "torch" in sys.modules)
import torch
from torch.nn import functional
print(torch.__spec__.origin, torch.__spec__.loader is torch.__loader__, type(torch.__loader__).__name__, torch.__file__)
print(torch.nn.functional is functional, pickle.loads(pickle.dumps(torch.ones(2))), isinstance(torch.ones(1), torch.Tensor))
print([type(finder).__name__ for finder in sys.meta_path if "Torch" in type(finder).__name__])
import importlib
print(importlib.reload(torch.version) is torch.version)
print([name for name in ("torch.testing", "torch.nn.utils", "torch.fx") if importlib.import_module(name).__name__ != name])
try: import torch.no_such
except ImportError as error: print(error)
"""


def test_torch_seems_to_be_imported_by_the_script(run):
    path = run.write("fresh.py", AS_FRESH)
    expected = run.by_python(path)
    assert (expected.code, expected.err) == (0, "")
    assert run.as_rank("forkserver", {"script": path}) == expected


WITHOUT_TORCH = "import sys\nprint('torch' in sys.modules, 'torch.nn' in sys.modules)\n"


def test_a_script_that_does_not_import_torch_does_not_see_it(run):
    path = run.write("without.py", WITHOUT_TORCH)
    assert run.as_rank("forkserver", {"script": path}) == run.by_python(path)


MAPPED = """
import mmap
with open("libiomp5.so", "w+b") as file:
    file.write(b"as if it were loaded")
    file.flush()
    library = mmap.mmap(file.fileno(), 0)
"""

LATE = {
    "OMP_PROC_BIND": set_before("import torch", OMP_PROC_BIND="close"),
    "TORCH_DEVICE_BACKEND_AUTOLOAD": set_before("import torch", TORCH_DEVICE_BACKEND_AUTOLOAD="0"),
    "PYTORCH_CUDA_ALLOC_CONF": set_before("import torch", PYTORCH_CUDA_ALLOC_CONF="backend:cudaMallocAsync"),
    "TORCH_DISABLE_NATIVE_JIT": set_before("import torch", TORCH_DISABLE_NATIVE_JIT="1"),
    "MKL_DYNAMIC, TORCH_COMPILE_DEBUG": set_before("import torch.nn", TORCH_COMPILE_DEBUG="1", MKL_DYNAMIC="FALSE"),
    "KMP_AFFINITY": f"{MAPPED}import os\nos.environ['KMP_AFFINITY'] = 'none'\nimport torch",
    "OMP_NUM_THREADS": "import os\ndel os.environ['OMP_NUM_THREADS']\nimport torch",
}


@pytest.mark.parametrize(("names", "script"), LATE.items(), ids=LATE)
def test_one_line_names_the_variables_that_come_too_late_and_the_cure(run, names, script):
    path = run.write("late.py", script + "\nimport torch\nfrom torch import nn")
    ended = run.as_rank("forkserver", {"script": path})
    assert (ended.code, ended.out) == (0, "")
    (line,) = ended.err.splitlines()
    assert line.startswith(f"mimo-launch: {names}, set by the script, has no effect: torch was imported before")
    assert f"`env: {{{names.partition(',')[0]}: ...}}`" in line
    assert "`runtime: {start_method: spawn, join: script}`" in line


QUIET = {
    "what is not changed": "import os\nos.environ['OMP_PROC_BIND'] = os.environ['OMP_PROC_BIND']\nimport torch",
    "what is changed back": set_before("del os.environ['MKL_DYNAMIC']\nimport torch", MKL_DYNAMIC="FALSE"),
    "what a library that is not loaded would read, as scikit-learn sets it": "import sklearn\nimport torch",
    "what torch reads at its first use": set_before(
        "import torch", PYTORCH_CUDA_ALLOC_CONF="expandable_segments:True", NCCL_DEBUG="INFO", OTHER="1"
    ),
    "what is set after the import": "import torch\n"
    + set_before("import torch.nn", OMP_PROC_BIND="close", OMP_NUM_THREADS="5"),
    "torch that is not imported": set_before("", OMP_PROC_BIND="close"),
}


@pytest.mark.parametrize("script", QUIET.values(), ids=QUIET)
def test_there_is_no_warning_about(run, script):
    path = run.write("quiet.py", script + "\nif 'torch' in globals(): print(torch.get_num_threads())")
    ended = run.as_rank("forkserver", {"script": path})
    assert (ended.code, ended.err, ended.out) == (0, "", "1\n" if "import torch" in script else "")


@pytest.mark.parametrize("start_method", START_METHODS)
def test_the_configured_variables_of_a_module_count(run, start_method):
    path = run.write("module.py", SHOWN["threads"] + "\nimport torch.distributed as dist\nprint(dist.get_debug_level().name)")
    env = {"OMP_NUM_THREADS": "2", "TORCH_DISTRIBUTED_DEBUG": "INFO"}
    assert run.as_rank(start_method, {"script": path}, env=env) == Ended(0, "2\nINFO\n", "")


def test_those_that_come_too_late_name_the_module_as_their_origin(run):
    path = run.write("module.py", "import torch")
    ended = run.as_rank("forkserver", {"script": path}, env={"OMP_PROC_BIND": "close"})
    assert ended.err.startswith("mimo-launch: OMP_PROC_BIND, set by the environment of a module, has no effect: ")


READ = """
import os, sys
seen, kind = set(), type(os.environ)
def note(method):
    original = getattr(kind, method)
    def noted(self, name, *more):
        seen.add(name)
        return original(self, name, *more)
    setattr(kind, method, noted)
for method in ("__getitem__", "__contains__", "get"):
    note(method)
import mimo_role.lifecycle
from launcher.worker import late_variables
known = {name for name in seen if name in late_variables._APPLIED or late_variables._OF_TORCH.fullmatch(name)
         or late_variables._LIBRARIES.fullmatch(name)}
print(*sorted(name for name in seen - known if name.startswith(("TORCH", "PYTORCH"))))
"""


def test_every_variable_that_torch_reads_at_its_import_is_known():
    bare = {"PATH": os.environ["PATH"]}  # whoever copies the environment reads all that is set
    done = subprocess.run([sys.executable, "-c", READ], env=bare, capture_output=True, text=True, timeout=90, check=True)
    assert done.stdout.split() == []
