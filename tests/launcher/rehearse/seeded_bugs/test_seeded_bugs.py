"""Bugs that a large job would have: each is found by the command that the guide names, or by none."""

import json
import re
import shlex
import subprocess
import sys

import pytest

from tests.launcher.jobs import ROOT
from tests.launcher.rehearse.accounts import counts_memory
from tests.launcher.rehearse.seeded_bugs.bugs import BUGS, SCRIPTS, WITHOUT_BUGS

pytestmark = [pytest.mark.ranks, pytest.mark.timeout(300)]

GUIDE = ROOT / "docs" / "guides" / "rehearsed-bugs.md"
SHRINK = "rehearse --shrink, and run"
LAUNCH = [sys.executable, "-m", "launcher"]


def rehearsed(bug):
    return bug.found_by not in ("plan", SHRINK)


def named(bugs):
    return [pytest.param(bug, id=bug.name) for bug in bugs]


@pytest.fixture(scope="module")
def rehearse(tmp_path_factory):
    """Rehearse a script of a config; returns the exit code and the problems that were found."""
    folder = tmp_path_factory.mktemp("rehearsals")
    program = subprocess.Popen(
        [sys.executable, "-m", "tests.launcher.rehearse.seeded_bugs.rehearsals", str(folder)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )

    def ask(path, *overrides, steps=2, timeout_s=120, tensors=None):
        words = [*overrides, f"run_dir={path.parent / 'run'}"]
        request = {"config": str(path), "overrides": words, "steps": steps, "timeout_s": timeout_s, "tensors": tensors}
        program.stdin.write(f"{json.dumps(request)}\n")
        program.stdin.flush()
        return json.loads(program.stdout.readline())

    yield ask
    program.stdin.close()
    assert program.wait(timeout=60) == 0
    program.stdout.close()


def written(folder, script, text):
    (folder / "train.py").write_text(text, encoding="utf-8")
    path = folder / "job.yaml"
    path.write_text((SCRIPTS / f"{script}.yaml").read_text(encoding="utf-8"), encoding="utf-8")
    return path


def rows():
    """The rows of the guide's tables, by bug."""
    cells = [line.strip("| ").split(" | ") for line in GUIDE.read_text(encoding="utf-8").splitlines() if line.startswith("| ")]
    return {name: rest for name, *rest in cells if rest and name not in ("bug", "---")}


def message_of(bug):
    """The message in the guide."""
    return rows()[bug.name][1].strip("`")


def matches(line, message):
    """Whether a line is the message, which may have `...` at its ends in place of other text."""
    pattern = re.escape(message.removeprefix("...").removesuffix("..."))
    before, behind = (".*" if cut else "" for cut in (message.startswith("..."), message.endswith("...")))
    return re.fullmatch(before + pattern + behind, line) is not None


def launch(folder, *words):
    done = subprocess.run([*LAUNCH, *words], cwd=folder, capture_output=True, text=True, timeout=200, check=False)
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize("script", WITHOUT_BUGS)
def test_a_script_without_the_bugs_is_found_to_have_none(rehearse, tmp_path, script):
    path = written(tmp_path, script, (SCRIPTS / f"{script}.py").read_text(encoding="utf-8"))
    if script == "large" and not counts_memory():
        pytest.skip("rehearse --memory needs a later torch")
    found = rehearse(path, steps=1 if script == "large" else 2, tensors="fake" if script == "large" else None)
    assert found["problems"] == []
    assert found["exit_code"] == 0


@pytest.mark.parametrize("bug", named(bug for bug in BUGS if rehearsed(bug)))
def test_a_rehearsal_finds_the_bug_with_its_role(rehearse, tmp_path, bug):
    tensors = "fake" if bug.found_by == "rehearse --memory" else None
    if tensors is not None and not counts_memory():
        pytest.skip("rehearse --memory needs a later torch")
    path = written(tmp_path, bug.script, bug.text())
    found = rehearse(path, *bug.overrides, steps=bug.steps, timeout_s=bug.timeout_s, tensors=tensors)
    lines = [problem.partition("\n")[0] for problem in found["problems"]]
    if bug.found_by is None:
        assert lines == []
        assert found["exit_code"] == 0
    else:
        assert any(matches(line, message_of(bug)) for line in lines), lines
        assert found["exit_code"] != 0


@pytest.mark.parametrize("bug", named(bug for bug in BUGS if bug.found_by == "plan"))
def test_a_plan_finds_the_bug(tmp_path, bug):
    path = written(tmp_path, bug.script, bug.text())
    code, _, errors = launch(tmp_path, "plan", path.name, *bug.overrides)
    assert code == 2
    assert message_of(bug) in errors


@pytest.mark.parametrize("bug", named(bug for bug in BUGS if bug.found_by == SHRINK))
def test_real_ranks_of_every_kind_find_what_a_rehearsal_does_not(rehearse, tmp_path, bug):
    path = written(tmp_path, bug.script, bug.text())
    assert rehearse(path, *bug.overrides)["exit_code"] == 0
    code, overrides, errors = launch(tmp_path, "rehearse", path.name, *bug.overrides, "--shrink")
    assert code == 0, errors
    code, _, errors = launch(tmp_path, "run", path.name, *shlex.split(overrides))
    assert code == 1
    lines = [line.removeprefix("mimo-launch: ") for line in errors.splitlines()]
    assert any(matches(line, message_of(bug)) for line in lines), errors


def test_most_bugs_are_found():
    assert sum(bug.found_by is not None for bug in BUGS) >= 22
    assert len({bug.name for bug in BUGS}) == len(BUGS)


def test_the_guide_has_these_bugs_and_what_finds_them():
    found = {name: rest for name, rest in rows().items() if len(rest) == 2}
    assert {name: rest[0] for name, rest in found.items()} == {bug.name: f"`{bug.found_by}`" for bug in BUGS if bug.found_by}
    assert rows().keys() - found.keys() == {bug.name for bug in BUGS if bug.found_by is None}
    count = f"{len(found)} of {len(BUGS)} are found"
    assert count in GUIDE.read_text(encoding="utf-8")
