"""The command, on run directories with recordings."""

import json
import re
from dataclasses import replace

import pytest

from launcher.advise.simulator import Costs, StageCost, StepShape
from launcher.cli import main
from launcher.run_dir.layout import RunDirLayout
from launcher.trace.recordings import save
from mimo_role import StageId
from mimo_role.host.node_dir import recording_file
from mimo_role.monitoring.ring import Ring
from tests.launcher.advise.recorded import recordings_of

POOLS = "pools: {small: {nodes: 1, procs_per_node: 4}, large: {nodes: 1, procs_per_node: 4}}\n"
STAGES = {
    StageId("vision", 0): StageCost(forward_s=0.010, backward_s=0.020, last_backward_s=0.020),
    StageId("language", 0): StageCost(forward_s=0.030, backward_s=0.060, last_backward_s=0.060),
}
COSTS = Costs(stages=STAGES, messages={}, rests={"vision": 0.005, "language": 0.005}, meets=True)


@pytest.fixture
def run(tmp_path, monkeypatch, plan_of):
    """Writes the run directory of a run that has recorded steps."""
    monkeypatch.chdir(tmp_path)

    def write(modules="{vision: {dp: 6}, language: {dp: 2}}", more="", steps=8):
        plan = plan_of(modules, more=more)
        files = RunDirLayout(tmp_path / "runs" / "job")
        files.attempt_dir(0).mkdir(parents=True)
        files.run_id_file.write_text("20260101T000000-1")
        files.plan_file.write_text(plan.to_json())
        files.config_file.write_text((tmp_path / "job.yaml").read_text())
        found = recordings_of(plan.topology, COSTS, StepShape(micro_batches=6), steps=steps)
        for rank, recording in found.by_rank.items():
            ring = Ring.create(recording_file(tmp_path, rank), rank, plan.topology.world_size)
            for each in recording.records:
                about = each.kind, ring.name_of(recording.names[each.name]), each.micro_batch, each.micro_batches, each.peer
                ring.add(about, each.begin_ns, each.end_ns, each.step, each.value)
        save(files, 0, tmp_path, range(plan.topology.world_size))
        return files

    return write


def printed(capsys, *words):
    assert main(["advise", "runs/job", *words]) == 0
    return capsys.readouterr().out


def test_the_present_layout_comes_first_then_the_best_with_their_basis(run, capsys):
    run()
    lines = printed(capsys, "--pp", "vision=1", "--pp", "language=1", "--top", "2").splitlines()
    present = r"present layout: measured 5\d\d ms, predicted 5\d\d ms per step \([+-]0\.\d%\); 6 steps, 6 micro-batches each, "
    assert re.fullmatch(present + "8 of 8 ranks recorded", lines[0])
    # Six forwards and backwards of language on two lanes take 6 * 90 ms; on four lanes 6 * 45 ms, and so do those of vision.
    assert re.fullmatch(r"vision 6 -> 4, language 2 -> 4 ranks: step 5\d\d -> 3\d\d ms \(predicted\)", lines[2])
    assert lines[3] == "  modules.vision.dp=4 modules.language.dp=4"
    assert lines[4].startswith("  vision: measured times x 1.5, its share of the samples of a lane (divided evenly)")
    assert lines[5] == "  language: measured times x 0.5, its share of the samples of a lane (divided evenly)"
    assert "  vision stage 0: forward 10 ms, backward 20 ms per run, of its slowest rank, measured" in lines
    assert "  memory is not modeled" in lines


def test_the_same_as_json(run, capsys):
    run()
    found = json.loads(printed(capsys, "--json", "--samples", "24", "--layers", "language=32"))
    assert found["measured_ms"] == pytest.approx(found["present"]["predicted_ms"], rel=0.01)
    assert found["present"]["modules"]["vision"] == {"ranks": 6, "tp": 1, "pp": 1, "dp": 6}
    times = [each["predicted_ms"] for each in found["best"]]
    assert (len(times), times) == (5, sorted(times))
    assert all(each["basis"] for each in found["best"])
    assert not any("--samples" in line for line in found["basis"])


def test_only_layouts_that_fit_the_pools_are_advised(run, capsys):
    pinned = "{vision: {dp: 4, pool: small}, language: {dp: 4, pool: large}}"
    run(pinned, POOLS)
    out = printed(capsys, "--pp", "vision=1", "--pp", "language=1")
    assert "there is no other layout on as many ranks that the planner accepts" in out
    assert "language pp 1 -> 2: step" in printed(capsys)


def test_new_warnings_of_the_plan_are_part_of_the_basis(run, capsys):
    run("{vision: {dp: 4}, language: {dp: 4}}", POOLS)
    assert "  warning (module_across_pools): modules.language: its 5 ranks lie on 2 pools" in printed(capsys)


def test_a_run_without_recordings_is_refused_with_what_to_do(run, capsys):
    files = run()
    for path in files.attempt_dir(0).iterdir():
        path.unlink()
    assert main(["advise", "runs/job"]) == 2
    assert (
        "runs/job: nothing is recorded here; advise needs a run under mimo-launch whose script trains"
        in capsys.readouterr().err
    )


def test_too_few_steps_are_refused_with_their_number(run, capsys):
    run(steps=4)
    assert main(["advise", "runs/job"]) == 2
    assert "runs/job: 2 whole training steps are recorded after the first 2" in capsys.readouterr().err
    assert main(["advise", "runs/job", "--steps", "90-91"]) == 2
    assert "runs/job: no forward or backward of these --steps is recorded" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        pytest.param(["--pp", "vision"], "--pp vision: give a module and a value, such as language=1,2,4", id="pp"),
        pytest.param(["--pp", "vision=0"], "--pp vision=0: give a module and a value", id="pp 0"),
        pytest.param(["--layers", "vision=a"], "--layers vision=a: give a module and a value", id="layers"),
        pytest.param(["--tp-efficiency", "vision=1.5"], "--tp-efficiency vision=1.5: give a module", id="tp"),
        pytest.param(["--top", "0"], "--top 0: give 1 or more", id="top"),
        pytest.param(["--samples", "-4"], "--samples -4: give 1 or more", id="samples"),
        pytest.param(["--steps", "x"], "--steps x: give a step or a range of them", id="steps"),
        pytest.param(["--pp", "audio=1"], "--pp audio: no such module; there are vision, language", id="module"),
    ],
)
def test_wrong_options_are_refused(run, capsys, words, message):
    run()
    assert main(["advise", "runs/job", *words]) == 2
    assert message in capsys.readouterr().err


def test_a_folder_that_is_no_run_directory_is_refused(tmp_path, capsys):
    assert main(["advise", str(tmp_path)]) == 2
    assert "not a run directory of mimo-launch" in capsys.readouterr().err


def test_a_large_overhead_between_steps_does_not_change_what_is_best(run, capsys, monkeypatch):
    rests = {"vision": 0.5, "language": 0.5}
    monkeypatch.setattr("tests.launcher.advise.test_advise_command.COSTS", replace(COSTS, rests=rests))
    run()
    assert "between the schedule and the next step: 500 ms measured" in printed(capsys)
