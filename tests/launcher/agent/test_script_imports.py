"""What torch will import because of what a script does, found in its source."""

import json
import subprocess
import sys

import pytest

from launcher.agent.script_imports import modules_to_preload
from launcher.config.loader import load
from launcher.host.preload_list import PreloadList
from launcher.plan.planner import make_plan

COMPILER = ["torch._dynamo"]
JOIN = "import torch, torch.distributed as dist\ndist.init_process_group('gloo')\n"

SCRIPTS = {
    "only communicates": (JOIN + "dist.all_reduce(torch.ones(1))", []),
    "nothing": ("", []),
    "the standard library and NumPy": ("import numpy as np, json, os.path\nfrom concurrent import futures", []),
    "an optimizer": (JOIN + "torch.optim.SGD([])", COMPILER),
    "an optimizer by its name": ("from torch.optim import AdamW", COMPILER),
    "optimizers by a name of their own": ("from torch import optim as o", COMPILER),
    "DDP": ("from torch.nn.parallel import DistributedDataParallel as Wrapped", COMPILER),
    "FSDP2": ("from torch.distributed.fsdp import fully_shard", COMPILER),
    "torch.compile": ("import torch\ntorch.compile(print)", COMPILER),
    "re.compile": ("import re\nre.compile('a')", []),
    "activation checkpoints": ("from torch.utils import checkpoint", COMPILER),
    "a function, within a function": ("def train():\n    if True:\n        import torch.optim", COMPILER),
    "transformers": ("from transformers import Trainer", COMPILER),
    "Lightning": ("import lightning.fabric", COMPILER),
    "a comment": ("# torch.optim\n'optim'", []),
    "tensor parallel": ("from torch.distributed.tensor.parallel import parallelize_module", COMPILER),
    "DTensor": ("import torch\ntorch.distributed.tensor.zeros(1)", COMPILER),
    "checkpoints": ("import torch.distributed.checkpoint as dcp", COMPILER),
    "a package that is not known": ("import my_company.models", COMPILER),
    "modules that are known at run time only": ("import importlib, sys\nimportlib.import_module(sys.argv[1])", COMPILER),
    "a syntax error": ("def", COMPILER),
    "no text": ("\0", COMPILER),
    "a variable of the compiler": ("import os\nos.environ['TORCHINDUCTOR_FREEZING'] = '1'\nimport torch.optim", []),
    "a default of one": ("import os\nos.environ.setdefault('TORCHDYNAMO_VERBOSE', '1')\nimport torch.optim", []),
    "several": ("import os\nos.environ.update({'TMPDIR': '/x'})\nimport torch.optim", []),
    "several by name": ("import os\nos.environ.update(TORCH_COMPILE_DEBUG='1')\nimport torch.optim", []),
    "several by an operator": ("import os\nos.environ |= {'TORCHINDUCTOR_CACHE_DIR': 'x'}\nimport torch.optim", []),
    "one is removed": ("import os\ndel os.environ['HOME']\nimport torch.optim", []),
    "one is read": ("import os\nos.environ['HOME']\nimport torch.optim", COMPILER),
    "another one": ("import os\nos.environ['NCCL_DEBUG'] = 'INFO'\nimport torch.optim", COMPILER),
    "a module beside it": ("from helper import train", COMPILER),
    "a module of a package beside it": ("from package import part", COMPILER),
    "the package around": ("import package.part", COMPILER),
    "a module beside it that only communicates": ("import communicates", []),
    "a module beside it with a package": ("import imports_more", COMPILER),
    "a name that is too long for a file": (f"import torch\ntry:\n    import {'a' * 300}\nexcept ImportError: ...", COMPILER),
    "relative imports beyond the root": ("from .......... import x", []),
    "expressions that are nested too deeply": ("x = " + "-" * 20_000 + "1", COMPILER),
    "a module beside it that is nested too deeply": ("import nested", COMPILER),
    "a large module beside it": ("import large", COMPILER),
    "a large module beside a script that trains": ("import torch.optim, large", COMPILER),
    "a folder with the name of a module": ("import torch, data", COMPILER),
    "modules that import each other": ("import circle", []),
    "a folder without __init__.py": ("from folder.trainer import train", COMPILER),
}


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "helper.py").write_text("import torch.optim")
    (tmp_path / "communicates.py").write_text(JOIN)
    (tmp_path / "imports_more.py").write_text("import einops")
    (tmp_path / "circle.py").write_text("import circle, communicates")
    (tmp_path / "nested.py").write_text("x = " + "not " * 9000 + "1")
    (tmp_path / "large.py").write_text("x = 1\n" * 100_000)
    (tmp_path / "data").mkdir()
    for package in ("package", "folder"):
        (tmp_path / package).mkdir()
    (tmp_path / "package" / "__init__.py").touch()
    (tmp_path / "package" / "part.py").write_text("from . import inner\nfrom .. import outside\nfrom ..... import far")
    (tmp_path / "package" / "inner.py").write_text("from torch.optim import SGD")
    (tmp_path / "package" / "__main__.py").write_text("from .part import x")
    (tmp_path / "folder" / "trainer.py").write_text("import torch\ntorch.optim.SGD")
    return tmp_path


def found(folder, entry, *overrides, module_env="{}"):
    text = f"name: job\nlayout: colocated\nmodules: {{language: {{env: {module_env}}}}}\nentry: {entry}\n"
    (folder / "job.yaml").write_text(text)
    config, _ = load(folder / "job.yaml", list(overrides))
    return modules_to_preload(make_plan(config, folder / "job.yaml", list(overrides), []))


def names(modules):
    return [module.name for module in modules]


@pytest.mark.parametrize(("script", "expected"), SCRIPTS.values(), ids=SCRIPTS)
def test_the_modules_follow_from_the_source(folder, script, expected):
    (folder / "script.py").write_text(script)
    assert names(found(folder, "{script: script.py}")) == expected


@pytest.mark.parametrize(
    ("listed", "expected"),
    [
        ("[sklearn]", ["torch._dynamo", "sklearn"]),
        ("[torch.distributed.checkpoint]", ["torch._dynamo", "torch.distributed.checkpoint"]),
        ("[torch]", []),
        ("[torch,sklearn]", ["sklearn"]),
        ("[sklearn,torch._dynamo]", ["sklearn", "torch._dynamo"]),
    ],
)
def test_the_list_of_the_config_comes_behind(folder, listed, expected):
    (folder / "script.py").write_text("import torch.optim")
    modules = found(folder, "{script: script.py}", f"runtime.preload={listed}")
    assert names(modules) == expected
    keys = {module.name: module.key for module in modules if module.is_listed}
    assert keys == {name: f"runtime.preload[{at}]" for at, name in enumerate(listed[1:-1].split(",")) if name != "torch"}


def test_a_module_is_found_from_the_current_folder(folder, monkeypatch):
    monkeypatch.chdir(folder)
    assert names(found(folder, "{module: package}")) == COMPILER
    assert names(found(folder, "{module: communicates}")) == []
    assert names(found(folder, "{module: json.tool}")) == COMPILER


@pytest.mark.filterwarnings("error")
def test_warnings_are_left_to_the_rank(folder):
    (folder / "script.py").write_text("import torch.optim\nx = '\\d' is 'x'")
    assert names(found(folder, "{script: script.py}")) == COMPILER


def test_variables_of_a_module_may_be_the_compilers(folder):
    (folder / "script.py").write_text("import torch.optim")
    assert names(found(folder, "{script: script.py}", module_env="{TORCHDYNAMO_VERBOSE: '1'}")) == []
    assert names(found(folder, "{script: script.py}", module_env="{NCCL_DEBUG: INFO}")) == COMPILER


def test_the_list_travels_as_json(folder):
    (folder / "script.py").write_text("import torch.optim")
    plan_modules = found(folder, "{script: script.py}", "runtime.preload=[sklearn]")
    wanted = PreloadList(plan_modules, {"script": "script.py", "args": ["--lr"]})
    assert PreloadList.from_json(json.loads(json.dumps(wanted.to_json()))) == wanted


IMPORTED = """
import sys, mimo_role.lifecycle, torch, torch.distributed as dist
dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
dist.all_reduce(torch.ones(1))
found = lambda: [name for name in ("torch.distributed.tensor", "torch._dynamo") if name in sys.modules]
print(found())
exec(sys.argv[1])
print(found())
dist.destroy_process_group()
"""


@pytest.mark.slow
@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    "training",
    [
        "torch.optim.SGD([torch.ones(1, requires_grad=True)], lr=1.0)",
        "torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(1, 1))",
        "from torch.distributed.fsdp import fully_shard; fully_shard(torch.nn.Linear(1, 1))",
    ],
)
def test_torch_imports_its_compiler_in_a_process_that_trains(training):
    command = [sys.executable, "-W", "ignore", "-c", IMPORTED, training]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stdout.splitlines() == ["[]", "['torch.distributed.tensor', 'torch._dynamo']"], done.stderr
