"""Modules that the fork server imports for all ranks: what a script finds, and what is refused."""

import json
from importlib.util import find_spec

import pytest

from tests.launcher.jobs import lines_of
from tests.launcher.worker.main_programs import Ended, programs

pytestmark = pytest.mark.ranks

LARGE = ["torch._dynamo", "torch.distributed.checkpoint"]
LARGE += [name for name in ("sklearn.linear_model", "transformers") if find_spec(name.partition(".")[0])]

OWN = """
import os, sys, torch
PID, ARGUMENTS, PATH = os.getpid(), sys.argv, sys.path[0]
LEVEL = os.environ.get("OWN_LEVEL", "unset")
os.environ.setdefault("OWN_DEFAULT", "of the module")
"""
PLAIN = "import os\nPID = os.getpid()\n"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("programs")
    (folder / "own").mkdir()
    (folder / "own" / "__init__.py").write_text(OWN)
    (folder / "own" / "part.py").write_text("VALUE = []")
    (folder / "plain.py").write_text(PLAIN)
    with programs(folder, preload=["plain", "own.part", *LARGE], OMP_NUM_THREADS="1") as found:
        yield found


def as_rank(run, script, *args, **given):
    return run.as_rank("forkserver", {"script": run.write("script.py", script)}, *args, **given)


def test_the_code_of_a_module_has_run_in_another_process(run):
    script = "import os, own, plain\nprint(own.PID == plain.PID != os.getpid(), own.ARGUMENTS[0], own.PATH)"
    ended = as_rank(run, script)
    assert ended == Ended(0, f"True {run.folder}/script.py {run.folder}\n", "")


SEEN = """
import importlib.util, sys
names = ("plain", "own", "own.part", "torch", "torch._dynamo", "sklearn", "transformers")
print([name for name in names if name in sys.modules], importlib.util.find_spec("plain").origin)
import plain
print("plain" in sys.modules, "torch" in sys.modules, plain.__spec__.origin, type(plain.__loader__).__name__)
from own.part import VALUE
import own
print("torch" in sys.modules, own.part.VALUE is VALUE, sys.path)
import torch._dynamo
print(torch._dynamo.__name__, torch._dynamo.__spec__.origin, sys.modules["torch._dynamo"] is torch._dynamo)
"""


def test_a_script_finds_modules_as_if_none_had_been_imported(run):
    path = run.write("script.py", SEEN)
    expected = run.by_python(path)
    assert expected.err == ""
    assert run.as_rank("forkserver", {"script": path}) == expected


OF_THE_SAME_NAMES = ("queue", "yaml", "launcher", "tokenize", "profile")
IMPORTS = "\n".join(f"import {name}\nassert {name}.MINE" for name in OF_THE_SAME_NAMES)


def test_modules_of_the_users_own_with_names_of_others_are_the_scripts_alone(tmp_path):
    for name in OF_THE_SAME_NAMES:
        (tmp_path / f"{name}.py").write_text("MINE = True")
    (tmp_path / "user.py").write_text(f"{IMPORTS}\nmodules = [{', '.join(OF_THE_SAME_NAMES)}]")
    with programs(tmp_path, preload=["user", "queue"]) as run:
        script = f"{IMPORTS}\nimport user\nassert user.modules == [{', '.join(OF_THE_SAME_NAMES)}]\nprint('all')"
        assert as_rank(run, script) == Ended(0, "all\n", "")


USED = """
import sys, pickle, torch, torch.distributed.checkpoint as dcp
print(torch.compile(lambda x: 2 * x, backend="eager")(torch.ones(2)))
value = {"x": torch.arange(3.0)}
dcp.save(value, checkpoint_id=sys.argv[1])
value["x"].zero_()
dcp.load(value, checkpoint_id=sys.argv[1])
print(value)
if "sklearn.linear_model" in sys.argv:
    from sklearn.linear_model import LinearRegression
    model = pickle.loads(pickle.dumps(LinearRegression().fit([[0.0], [1.0]], [1.0, 3.0])))
    print(model.predict([[2.0]]).round(6))
if "transformers" in sys.argv:
    from transformers import LlamaConfig, LlamaForCausalLM
    torch.manual_seed(0)
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_attention_heads": 2, "num_hidden_layers": 1, "vocab_size": 16}
    print(LlamaForCausalLM(LlamaConfig(**sizes))(torch.arange(4)[None]).logits.sum())
"""


def test_large_libraries_compute_what_they_do_in_a_new_interpreter(run, tmp_path):
    path = run.write("script.py", "import warnings; warnings.simplefilter('ignore')\n" + USED)
    expected = run.by_python(path, str(tmp_path / "new"), *LARGE)
    ended = run.as_rank("forkserver", {"script": path}, str(tmp_path / "forked"), *LARGE)
    assert (ended.code, ended.out.splitlines()) == (0, expected.out.splitlines())


LATE = 'import os\nos.environ["OWN_LEVEL"] = "high"\n'


def test_a_variable_that_a_module_has_read_before_it_was_set_is_named(run):
    assert as_rank(run, LATE + "import plain").err == ""
    (line,) = as_rank(run, LATE + "import own").err.splitlines()
    assert line.startswith("mimo-launch: OWN_LEVEL, set by the script, may have no effect: own.part was imported before")
    assert "(`env: {OWN_LEVEL: ...}`), or remove own.part from runtime.preload" in line
    (line,) = as_rank(run, "import own", env={"OWN_LEVEL": "low"}).err.splitlines()
    assert line.startswith("mimo-launch: OWN_LEVEL, set by the environment of a module, may have no effect: own.part")


@pytest.mark.parametrize("value", [None, "of the user"])
def test_a_variable_that_a_module_sets_is_set_when_the_script_imports_it(run, value):
    given = {"OWN_DEFAULT": value} if value else {}
    script = "import os\nprint(os.environ.get('OWN_DEFAULT'))\nimport own\nprint(os.environ['OWN_DEFAULT'])"
    out = as_rank(run, script, **given).out.splitlines()
    assert out == [str(value), value or "of the module"]


def test_variables_of_torch_are_applied_when_a_module_brings_torch(run):
    script = 'import os\nos.environ["OMP_NUM_THREADS"] = "3"\nimport own\nprint(own.torch.get_num_threads())'
    assert as_rank(run, script) == Ended(0, "3\n", "")


def test_what_a_module_of_the_users_own_has_buffered_is_written_at_the_end(run):
    as_rank(run, 'import own\nown.file = open("written", "w")\nown.file.write("buffered")')
    assert (run.folder / "written").read_text() == "buffered"


def test_unseeded_ranks_draw_different_numbers(run):
    script = "import random, numpy, torch\nprint(random.random(), numpy.random.rand(), torch.rand(()).item())"
    first, second = (as_rank(run, script).out.split() for _ in range(2))
    assert all(one != other for one, other in zip(first, second, strict=True))


IN_A_JOB = """
import os, sys, module
print("attempt", os.environ["TORCHELASTIC_RESTART_COUNT"], module.PID != os.getpid(), module.PID)
sys.exit(os.environ["TORCHELASTIC_RESTART_COUNT"] == "0")
"""


def test_ranks_of_all_attempts_begin_with_what_was_imported_once(job):
    (job.folder / "module.py").write_text("import os\nPID = os.getpid()\nprint('imported')\n")
    done = job.run(IN_A_JOB, "runtime={preload: [module], join: script, max_restarts: 1}")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines().count("imported") == 1
    last = [lines_of(done.stdout, prefix)[-1] for prefix in ("[vision r0]", "[language.tp0 r1]", "[language.tp1 r2]")]
    assert last[0].startswith("attempt 1 True ")
    assert last == last[:1] * 3


REFUSED = {
    "print('printed')\nraise RuntimeError('not today')": "'module' cannot be imported: RuntimeError: not today; python -c",
    "import no_such_module": "'module' cannot be imported: ModuleNotFoundError: No module named 'no_such_module'; python -c",
    "import os\nos.environ.get('LOCAL_RANK')": "importing 'module' read LOCAL_RANK, which ranks have once they are forked",
    "import os\nos._exit(3)": "the process that imports modules for all ranks ended while it imported 'module'",
    "import threading, time\nthreading.Thread(target=time.sleep, args=(99,), name='mine', daemon=True).start()": (
        "importing 'module' started 1 thread (mine), which a fork would lose; remove module from runtime.preload"
    ),
}


@pytest.mark.parametrize(("code", "message"), REFUSED.items(), ids=["raises", "lacks", "rank", "ends", "thread"])
def test_a_module_that_cannot_be_preloaded_ends_the_job_before_any_rank(job, code, message):
    (job.folder / "module.py").write_text(code)
    done = job.run("print('ran')", "runtime.preload=[json,module]")
    assert (done.returncode, done.stdout) == (2, "printed\n" if "printed" in code else "")
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"mimo-launch: runtime.preload[1]: {message}")


def test_a_module_that_is_not_there_can_be_installed(job):
    done = job.run("", "runtime.preload=[no_such_module.part]")
    assert done.returncode == 2
    assert (
        "No module named 'no_such_module'; install it, or correct the name, or remove no_such_module.part from" in done.stderr
    )
    assert not list((job.folder / "runs").glob("*/logs/*"))


TRAINS = """
import os, sys
sys.meta_path.insert(0, type("Seen", (), {"find_spec": lambda name, *_: searched.append(name)}))
searched = []
key = "OMP_NUM_THREADS" if len(sys.argv) == 1 else sys.argv[1]
os.environ[key] = "3"
import torch
before = "torch._dynamo" in sys.modules
optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.ones(2, dtype=torch.float64))], lr=0.5)
(optimizer.param_groups[0]["params"][0] ** 2).sum().backward()
optimizer.step()
weights = optimizer.param_groups[0]["params"][0].tolist()
print(before, "torch._dynamo" in sys.modules, "torch._dynamo.utils" in searched, weights)
print(torch.compile(lambda x: x + 1, backend="eager")(torch.ones(1)).item(), torch.get_num_threads())
"""


@pytest.mark.parametrize(("preload", "is_imported_once"), [("[]", True), ("[json]", True), ("[torch]", False)])
def test_what_an_optimizer_imports_is_imported_once_for_all_ranks(job, preload, is_imported_once):
    done = job.run(TRAINS, f"runtime={{preload: {preload}, join: script}}")
    assert (done.returncode, done.stderr) == (0, "")
    for prefix in ("[vision r0]", "[language.tp0 r1]", "[language.tp1 r2]"):
        first, second = lines_of(done.stdout, prefix)
        assert first.split(" ", 3)[:3] == ["False", "True", str(not is_imported_once)]
        assert json.loads(first.split(" ", 3)[3]) == pytest.approx([0.495, 0.495], abs=1e-6)
        assert second == "2.0 3"


def test_a_variable_that_comes_too_late_for_what_an_optimizer_imports_is_named(job):
    done = job.run(TRAINS, "runtime={join: script}", "--", "TORCHINDUCTOR_FREEZING")
    assert done.returncode == 0
    warning = next(line for line in done.stderr.splitlines() if "TORCHINDUCTOR_FREEZING" in line)
    assert "set by the script, may have no effect: torch._dynamo was imported before (the script's imports)" in warning
    assert warning.endswith("or use `runtime: {preload: [torch]}`, with which the ranks import torch._dynamo themselves")


UNFIT = {
    "import threading, time\nthreading.Thread(target=time.sleep, args=(99,), name='mine', daemon=True).start()": (
        "the script's imports: importing 'torch._dynamo' started 1 thread (mine), which a fork would lose; use"
    ),
    "import os\nif 'RANK' not in os.environ: os._exit(3)": (
        "the script's imports: the process that imports modules for all ranks ended while it imported 'torch._dynamo'; python"
    ),
}


@pytest.mark.parametrize(
    ("code", "message", "listed"),
    [(*unfit, listed) for unfit, listed in zip(UNFIT.items(), ["[]", "[json]"], strict=True)],
    ids=["thread", "ends"],
)
def test_what_does_not_fit_a_fork_is_left_to_the_ranks(job, tmp_path, code, message, listed):
    (tmp_path / "cProfile.py").write_text(f"{code}\nclass Profile: ...\n")  # torch._dynamo imports it
    job.environ["PYTHONPATH"] = str(tmp_path)
    done = job.run(TRAINS, f"runtime={{preload: {listed}, join: script}}")
    assert done.returncode == 0, done.stderr
    (line,) = done.stderr.splitlines()
    assert message in line
    assert line.endswith(
        "use `runtime: {preload: [torch]}`, with which the ranks import torch._dynamo themselves, as they do now"
    )
    assert [line.split()[:3] for line in lines_of(done.stdout, "[vision r0]")[:1]] == [["False", "True", "True"]]


def test_what_cannot_be_imported_is_left_to_the_ranks(job, tmp_path):
    first = "from pathlib import Path\nflag = Path(__file__).with_name('flag')\n"
    first += "if not flag.exists():\n    flag.touch()\n    raise RuntimeError\n"
    (tmp_path / "cProfile.py").write_text(f"{first}class Profile: ...\n")
    job.environ["PYTHONPATH"] = str(tmp_path)
    done = job.run(TRAINS, "runtime={join: script}")
    assert (done.returncode, done.stderr) == (0, "")
    assert lines_of(done.stdout, "[vision r0]")[1] == "2.0 3"


def test_a_module_of_the_users_own_is_not_imported_before_the_script(job):
    (job.folder / "cProfile.py").write_text("print('own')\nclass Profile: ...\n")
    done = job.run(TRAINS + "import cProfile", "runtime={join: script}")
    assert (done.returncode, done.stderr) == (0, "")
    assert sorted(line.partition("] ")[2] for line in done.stdout.splitlines()).count("own") == 3


ATTRIBUTE = """
import sys, torch
print(hasattr(torch, "optim"), "_dynamo" in vars(torch), torch._dynamo.__name__, "torch._dynamo" in sys.modules)
import torch.utils._content_store
print(torch.utils._content_store is sys.modules["torch.utils._content_store"])
"""


def test_an_attribute_of_its_package_imports_it(job):
    done = job.run(ATTRIBUTE, "runtime={join: script}")
    assert (done.returncode, done.stderr) == (0, "")
    assert lines_of(done.stdout, "[vision r0]") == ["True False torch._dynamo True", "True"]


LOGS = """
import logging.config, torch
logging.config.dictConfig({"version": 1})
torch.optim.SGD([torch.ones(1, requires_grad=True)], lr=1.0)
print([name for name in ("torch._dynamo", "torch._dynamo.convert_frame") if logging.getLogger(name).disabled])
"""


def test_loggers_are_those_that_the_import_would_make(job):
    done = job.run(LOGS, "runtime={join: script}")
    assert (done.returncode, done.stderr) == (0, "")
    (line,) = lines_of(done.stdout, "[vision r0]")
    assert line == "['torch._dynamo']"  # torch itself makes that one


def test_ranks_with_torchs_compiler_print_nothing_of_their_own_when_they_fail(job):
    """Builds of torch 2.15 with CUDA bring triton, whose nanobind looks for leaks when a process ends."""
    done = job.run("import torch\ntorch.optim\nprint('torch._dynamo' in __import__('sys').modules)\nraise SystemExit(3)")
    assert done.returncode == 3
    logs = (job.folder / "runs" / "small" / "logs" / "attempt0").glob("rank*.stderr.log")
    assert {log.read_text() for log in logs} == {""}


def test_modules_of_torch_that_a_listed_module_imports_are_there_with_it(job):
    (job.folder / "module.py").write_text("import torch.utils.bundled_inputs")
    script = "import sys, torch\ntorch.optim\nimport module\nprint('torch.utils.bundled_inputs' in sys.modules)"
    done = job.run(script, "runtime={preload: [module], join: script}")
    assert (done.returncode, done.stderr, lines_of(done.stdout, "[vision r0]")) == (0, "", ["True"])


def test_the_agent_imports_torch_with_its_compiler_where_a_variable_demands_it(job):
    job.environ["TORCH_COMPILE_DEBUG"] = "1"
    done = job.run(TRAINS, "runtime={join: script}")
    assert done.returncode == 0, done.stderr
    assert lines_of(done.stdout, "[vision r0]")[1] == "2.0 3"


def test_a_script_that_only_communicates_gets_neither_the_compiler_nor_dtensor(job):
    names = [["torch", "_dynamo"], ["torch", "distributed", "tensor"]]  # whole names would count as a use
    script = f"import sys, torch, torch.distributed\nprint([name for name in map('.'.join, {names}) if name in sys.modules])"
    done = job.run(script, "runtime={join: script}")
    assert (done.returncode, lines_of(done.stdout, "[vision r0]")) == (0, ["[]"]), done.stderr


@pytest.mark.parametrize(("imports", "expected"), [("", []), ("import own_exit", ["of the module"])])
def test_exit_functions_are_called_if_the_script_imports_what_registers_them(job, imports, expected):
    (job.folder / "own_exit.py").write_text("import atexit\natexit.register(lambda text: print(text), 'of the module')\n")
    done = job.run(imports, "runtime={preload: [own_exit], join: script}")
    assert (done.returncode, done.stderr) == (0, "")
    assert [line for line in lines_of(done.stdout, "[vision r0]") if line] == expected


FILTERS = """
import torch, warnings
found = lambda: sum("SymPyDeprecationWarning" in str(each) for each in warnings.filters)
before = found()
torch.optim.SGD([torch.ones(1, requires_grad=True)], lr=1.0)
print(before, found(), "SymPyDeprecationWarning" in str(warnings.filters[0]))
"""


def test_filters_of_warnings_are_added_when_the_script_imports_what_adds_them(job):
    done = job.run(FILTERS, "runtime={join: script}")
    assert (done.returncode, done.stderr, lines_of(done.stdout, "[vision r0]")) == (0, "", ["0 1 True"])


def test_a_plan_has_the_modules(job, capsys):
    from launcher.cli import main

    job.write("")
    assert main(["plan", "--json", str(job.folder / job.name), "runtime={preload: [no.such], start_method: spawn}"]) == 0
    (warning,) = json.loads(capsys.readouterr().out)["warnings"]
    assert warning["code"] == "preload_without_fork"
