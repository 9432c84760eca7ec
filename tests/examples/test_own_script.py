"""docs/guides/own-script.md: its blocks are the scripts of examples/own_script, and every step trains as the plain one."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "examples" / "own_script"
PAGE = (ROOT / "docs" / "guides" / "own-script.md").read_text(encoding="utf-8")
LOSS = re.compile(r"^(?:\[(.+?)\] )?step (\d+): loss (\S+)$", re.MULTILINE)
STEPS = 16

FAILS_AT = """\
import os, runpy, signal
from mimo_role import RoleContext

report_step = RoleContext.step

def step(ctx, number):
    if number == {step} and ctx.rank == 1 and os.environ["MIMO_RESTART_COUNT"] == "0":
        os.kill(os.getpid(), signal.SIGKILL)
    report_step(ctx, number)

RoleContext.step = step
runpy.run_path({script!r})
"""


def blocks(kind):
    """By section of the page, the contents of its blocks of one kind."""
    sections = re.split(r"^## ", PAGE, flags=re.MULTILINE)
    found = [re.findall(rf"^```{kind}\n(.*?)^```", section, re.DOTALL | re.MULTILINE) for section in sections]
    return [of_section for of_section in found if of_section]


def patched(script, diff):
    """A script with all hunks of a diff applied, each at the only place where its old lines are."""
    for hunk in diff.split("@@\n"):
        lines = [line if line.strip() else " \n" for line in hunk.splitlines(keepends=True)]
        old, new = ("".join(line[1:] for line in lines if line[0] in kept) for kept in (" -", " +"))
        assert f"\n{script}".count(f"\n{old}") == 1, hunk
        script = f"\n{script}".replace(f"\n{old}", f"\n{new}").removeprefix("\n")
    return script


def test_the_pages_changes_lead_from_each_script_to_the_next():
    ((script,),) = blocks("python")
    scripts = [script]
    for of_step in blocks("diff"):
        for diff in of_step:
            script = patched(script, diff)
        scripts.append(script)
    assert scripts == [path.read_text(encoding="utf-8") for path in sorted(FOLDER.glob("step*.py"))]


def test_the_pages_configs_are_those_of_the_example_and_name_its_scripts_in_order():
    configs = [config for of_step in blocks("yaml") for config in of_step]
    files = {path.read_text(encoding="utf-8") for path in FOLDER.glob("*.yaml")}
    assert set(configs) == files
    named = [re.search(r"script: (\S+)}", config)[1] for config in configs]
    assert named == [path.name for path in sorted(FOLDER.glob("step*.py"))[1:]]


def losses_in(text):
    """Loss by step. One rank prints them."""
    lines = [match.groups() for match in LOSS.finditer(text)]
    assert len({label for label, _, _ in lines}) <= 1
    return {int(step): float(loss) for _, step, loss in lines}


@pytest.fixture(scope="module")
def plain():
    """The losses of the plain script."""
    command = [sys.executable, str(FOLDER / "step1_plain.py")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=90, check=True)
    losses = losses_in(done.stdout)
    assert list(losses) == list(range(1, STEPS + 1))
    assert losses[STEPS] < losses[1] / 2
    return losses


def run(config, run_dir, *overrides):
    environ = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE", "OMP_NUM_THREADS")}
    return subprocess.run(
        [sys.executable, "-m", "launcher", "run", str(FOLDER / config), f"run_dir={run_dir}", *overrides],
        cwd=ROOT,
        env=environ,
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )


def test_the_page_shows_the_losses_of_the_plain_script(plain):
    shown = [(int(step), float(loss)) for _, step, loss in LOSS.findall(PAGE)]
    assert len(shown) >= 18
    assert [loss for _, loss in shown] == pytest.approx([plain[step] for step, _ in shown], abs=1e-8)


@pytest.mark.ranks
@pytest.mark.parametrize(
    "words",
    ["one_rank.yaml", "two_modules.yaml", "replicas.yaml", "pipeline.yaml", "pipeline.yaml layout=colocated"],
)
def test_every_step_prints_the_losses_of_the_plain_script(words, plain, tmp_path):
    config, *overrides = words.split()
    done = run(config, tmp_path / "run", *overrides)
    assert done.returncode == 0, done.stderr
    assert losses_in(done.stdout) == pytest.approx(plain, abs=1e-9)


@pytest.mark.ranks
@pytest.mark.timeout(240)
def test_training_continues_after_failures_by_itself_and_in_another_layout(plain, tmp_path):
    script = tmp_path / "fails.py"

    def failing(step, *overrides):
        script.write_text(FAILS_AT.format(step=step, script=str(FOLDER / "step6_checkpoints.py")))
        return run("checkpoints.yaml", tmp_path / "run", f"entry={json.dumps({'script': str(script)})}", *overrides)

    first = failing(8, "runtime.max_restarts=0")
    assert (first.returncode, "killed by SIGKILL" in first.stderr) == (1, True)
    second = failing(12, "modules.vision.dp=1", "modules.language.pp=1", "modules.language.dp=2")
    assert second.returncode == 0, second.stderr
    before, after = re.split(r"continues after step 10$", second.stdout, flags=re.MULTILINE)
    assert "continues after step 5\n" in before
    of_attempts = [losses_in(text) for text in (first.stdout, before, after)]
    for losses, start, end in zip(of_attempts, (1, 6, 11), (5, 10, STEPS), strict=True):
        assert losses == pytest.approx({step: plain[step] for step in losses}, abs=1e-9)
        assert set(losses) >= set(range(start, end + 1))
        assert min(losses) == start
