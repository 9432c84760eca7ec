"""Files of the user that are named like modules of Python, of a package, or of mimo-launch."""

import json
import re
import sys
from dataclasses import replace

import pytest

from tests.launcher.jobs import ROOT, lines_of
from tests.launcher.worker.main_programs import START_METHODS, programs

pytestmark = pytest.mark.ranks


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    with programs(tmp_path_factory.mktemp("programs")) as found:
        yield found


OWN = [
    "queue",
    "json",
    "profile",
    "calendar",
    "tokenize",
    "yaml",
    "numpy",
    "launcher",
    "mimo_launch",
    "socket",
    "random",
    "selectors",
    "heapq",
    "linecache",
    "traceback",
    "ast",
    "inspect",
    "dataclasses",
    "logging",
    "multiprocessing",
    "pickle",
    "struct",
    "tempfile",
]
"""Some are imported by mimo-launch before the script, some by torch, some by Python when an exception is printed."""

IMPORTS = """
import sys
for name in sys.argv[1:]:
    print(name, __import__(name).__file__, "mine" if hasattr(sys.modules[name], "MINE") else "")
"""
FAILS = "def inner():\n    raise ValueError('boom')\nnone = 0 + inner()\n"


@pytest.mark.parametrize("script", [IMPORTS, FAILS], ids=["imports", "fails"])
@pytest.mark.parametrize("place", ["{}.py", "{}/__init__.py"], ids=["modules", "packages"])
def test_modules_beside_a_script_come_before_all_others(run, script, place):
    for name in OWN:
        run.write("beside/" + place.format(name), "MINE = True")
    path = run.write("beside/script.py", script)
    expected = without_carets(run.by_python(path, *OWN))
    assert expected.out.count(" mine\n") == (len(OWN) if script is IMPORTS else 0)
    for start_method in START_METHODS:
        assert without_carets(run.as_rank(start_method, {"script": path}, *OWN)) == expected, start_method


def without_carets(ended):
    """Python 3.13 prints none below a line where the script has modules of the names that its traceback module needs."""
    return replace(ended, err=re.sub(r"^ *[~^]+\n", "", ended.err, flags=re.MULTILINE))


def test_a_module_finds_those_of_the_current_folder_before_all_others(tmp_path):
    with programs(tmp_path) as run:
        for name in OWN:
            run.write(f"{name}.py", "MINE = True")
        run.write("package/__init__.py", "")
        run.write("package/train.py", IMPORTS)
        expected = run.by_python("-m", "package.train", *OWN)
        for start_method in START_METHODS:
            assert run.as_rank(start_method, {"module": "package.train"}, *OWN) == expected, start_method


@pytest.mark.parametrize("safe_path", ["", "1"])
def test_a_folder_on_pythonpath_may_have_a_package_named_launcher(run, safe_path):
    path = run.write("alone/script.py", "import launcher, launcher.own\nprint(launcher.__file__, launcher.own.MINE)")
    run.write("library/launcher/__init__.py", "")
    run.write("library/launcher/own.py", "MINE = True")
    library = str(run.folder / "library")
    variables = {"PYTHONPATH": library, "PYTHONSAFEPATH": safe_path}
    expected = run.by_python(path, **variables)
    assert expected.out.endswith("launcher/__init__.py True\n")
    assert run.as_rank("spawn", {"script": path}, **variables) == expected


SHADOWS = [
    "tokenize.py",
    "numpy/__init__.py",
    "torch.py",
    "launcher.py",
    "mimo_role.py",
    "queue.py",
    "yaml/__init__.py",
    "json.py",
    "socket.py",
]

STILL_THE_OTHERS = """
import json, os, queue, sys, tokenize
import numpy, torch, yaml
modules = (json, queue, tokenize, numpy, torch, yaml)
print([module.__name__ for module in modules if module.__file__.startswith(os.getcwd())], os.environ["MIMO_ROLE"] != "")
"""


@pytest.mark.parametrize("kind", [*START_METHODS, "command"])
def test_files_of_the_current_folder_shadow_nothing(job, kind):
    for name in SHADOWS:
        (job.folder / name).parent.mkdir(exist_ok=True)
        (job.folder / name).write_text("raise ImportError('not to be imported')")
    (job.folder / "source").mkdir()
    (job.folder / "source" / "train.py").write_text(STILL_THE_OTHERS)
    entry = "{script: source/train.py}" if kind != "command" else json.dumps({"command": [sys.executable, "source/train.py"]})
    job.config = job.config.replace("{script: script.py}", entry)
    job.program = [sys.executable, str(ROOT / "mimo_launch.py")]
    start_method = "forkserver" if kind == "command" else kind
    done = job.run("", f"runtime.start_method={start_method}")
    assert (done.returncode, done.stderr) == (0, "")
    assert lines_of(done.stdout, "[vision r0]") == lines_of(done.stdout, "[language.tp1 r2]") == ["[] True"]
