"""Which layouts are advised."""

import json
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from launcher.advise.advice import Request, advise
from launcher.advise.candidates import Axes, candidates, sizes_of
from launcher.advise.cost_model import Assumptions
from launcher.advise.measured import Measured, Traffic
from launcher.advise.predictor import Predictor
from launcher.advise.render import as_json, as_text
from launcher.advise.simulator import StageCost, StepShape
from launcher.errors import LaunchError, PlacementError
from mimo_role import StageId, Topology
from mimo_role.pipeline.timeline import Phase


def measured(modules, costs_s, *, micro_batches=6, meets=True, **more):
    topology = Topology.from_modules(modules)
    stages = {}
    for name, (forward_s, backward_s) in costs_s.items():
        for stage in range(topology.grids[name].axis_size("pp")):
            stages[StageId(name, stage)] = StageCost(
                forward_s=forward_s, backward_s=backward_s, last_backward_s=backward_s, overhead_s=0.0002
            )
    found = Measured(
        topology=topology,
        shape=StepShape(micro_batches=micro_batches),
        destinations={},
        stages=stages,
        traffic=Traffic(sends={}, messages={("vision", "language", Phase.FORWARD): 0.001}),
        rests=dict.fromkeys(modules, 0.005),
        meets=meets,
        step_s=0.5,
        steps=10,
        ranks=topology.world_size,
        is_known_order=True,
    )
    return replace(found, **more)


def no_remarks(_):
    return ()


TWO = measured({"vision": {"dp": 6}, "language": {"dp": 2}}, {"vision": (0.01, 0.02), "language": (0.03, 0.06)})


def ranks_of(advice):
    return [[grid.size for grid in each.topology.grids.values()] for each in advice.best]


def test_ranks_go_to_the_module_that_the_others_wait_for():
    advice = advise(TWO, Request(top=3, pp={"vision": (1,), "language": (1,)}), no_remarks)
    assert ranks_of(advice)[0] == [4, 4]  # 6 * 0.03 s on one rank, and 2 * 0.09 s
    times = [each.step_s for each in advice.best]
    assert times == sorted(times)
    assert times[0] < TWO.step_s
    assert advice.compared == 6


seconds = st.integers(1, 50).map(lambda number: number / 1000)


@given(st.integers(2, 10), st.tuples(*[st.tuples(seconds, seconds)] * 2), st.integers(1, 8), st.booleans(), st.integers(1, 4))
@settings(deadline=None, max_examples=40)
def test_no_layout_that_was_not_played_would_have_been_faster(world, costs_s, micro_batches, meets, top):
    modules = {"vision": {"dp": 1}, "language": {"dp": world - 1}}
    found = measured(modules, dict(zip(modules, costs_s, strict=True)), micro_batches=micro_batches, meets=meets)
    axes = {name: [Axes(1, pp) for pp in (1, 2, 3)] for name in modules}
    advice = advise(found, Request(top=top, pp=dict.fromkeys(modules, (1, 2, 3))), no_remarks)
    predictor = Predictor(found, Assumptions())
    layouts = candidates(sizes_of(found.topology), world, axes, colocated=False).layouts
    everything = sorted(predictor.predict(layout, Topology.from_modules(layout)).step_s for layout in layouts)
    everything.remove(pytest.approx(found.step_s))
    assert [each.step_s for each in advice.best] == pytest.approx(everything[:top])


def test_by_default_no_rank_has_more_weights_than_in_the_run():
    found = measured({"vision": {"dp": 2}, "language": {"dp": 2, "pp": 2}}, {"vision": (0.01, 0.02), "language": (0.03, 0.06)})
    advice = advise(found, Request(top=100), no_remarks)
    assert {each.layout["language"].pp for each in advice.best} == {2, 4}
    assert {each.layout["vision"].pp for each in advice.best} == {1, 2, 4}
    asked = advise(found, Request(top=100, pp={"language": (1,), "vision": (1,)}), no_remarks)
    assert ranks_of(asked) != []
    assert {(each.layout["vision"].pp, each.layout["language"].pp) for each in asked.best} == {(1, 1)}


def test_with_its_efficiency_other_tp_are_compared():
    request = Request(top=100, assumptions=Assumptions(tp_efficiency={"language": 0.9}))
    advice = advise(TWO, request, no_remarks)
    assert {each.layout["language"].tp for each in advice.best} == {1, 2, 4}
    assert {each.layout["vision"].tp for each in advice.best} == {1}
    found = next(each for each in advice.best if each.layout["language"].tp == 4)
    assert "x 0.309 for tp 1 -> 4 at the given efficiency 0.9" in " ".join(found.basis)


def test_each_prediction_has_the_basis_of_what_differs():
    (best,) = advise(TWO, Request(top=1, pp={"vision": (1,), "language": (2,)}), no_remarks).best
    by_module = dict(line.split(": ", 1) for line in best.basis)
    assert by_module["vision"].startswith("measured times x 1.5, its share of the samples of a lane (divided evenly)")
    assert "needs more memory for activations than the run" in by_module["vision"]
    assert "1 measured stage added up; 2 stages divide the module evenly" in by_module["language"]
    assert by_module["messages between stages of language"].startswith("as the slowest of the others")


@pytest.mark.parametrize(
    ("layers", "line"),
    [
        pytest.param({}, "2 measured stages added up; 1 stage has the whole module", id="evenly"),
        pytest.param({"language": 30}, "2 measured stages added up; 1 stage has all 30 layers", id="by layers"),
    ],
)
def test_one_stage_has_what_several_divided(layers, line):
    found = measured({"vision": {"dp": 2}, "language": {"dp": 2, "pp": 2}}, {"vision": (0.01, 0.02), "language": (0.03, 0.06)})
    request = Request(top=1, pp={"vision": (1,), "language": (1,)}, assumptions=Assumptions(layers=layers))
    (best,) = advise(found, request, no_remarks).best
    assert line in " ".join(best.basis)


def test_where_no_layout_is_faster_that_comes_before_them_and_each_is_marked():
    advice = advise(TWO, Request(top=3, pp={"vision": (1,), "language": (1,)}), no_remarks)
    slower = replace(advice, measured=replace(TWO, step_s=min(each.step_s for each in advice.best) / 2))
    before, _, after = as_text(slower).partition("no other layout is predicted to be faster than the present one")
    assert ": step " not in before
    changes = [line for line in after.splitlines() if ": step " in line]
    assert len(changes) == 3
    assert all("ms, slower (predicted)" in line for line in changes)
    assert [each["is_faster"] for each in json.loads(as_json(slower))["best"]] == [False] * 3


def test_of_layouts_that_are_faster_and_slower_only_the_slower_are_marked():
    advice = advise(TWO, Request(top=6, pp={"vision": (1,), "language": (1,)}), no_remarks)
    marked = [", slower (" in line for line in as_text(advice).splitlines() if ": step " in line]
    assert marked == [each.step_s > TWO.step_s for each in advice.best]
    assert (marked[0], marked[-1]) == (False, True)
    assert "no other layout" not in as_text(advice)
    assert [each["is_faster"] for each in json.loads(as_json(advice))["best"]] == [not each for each in marked]


def test_a_layout_that_takes_as_long_is_not_faster():
    advice = advise(TWO, Request(top=1), no_remarks)
    same = replace(advice, measured=replace(TWO, step_s=advice.best[0].step_s))
    assert ", not faster (" in as_text(same)
    assert "no other layout is predicted to be faster" in as_text(same)


def test_what_the_planner_refuses_is_left_out_and_its_warnings_are_shown():
    def accepts(topology):
        if topology.grids["vision"].size == 4:
            raise PlacementError("does not fit")
        return ["warning (x): y"]

    advice = advise(TWO, Request(top=2, pp={"vision": (1,), "language": (1,)}), accepts)
    assert [4, 4] not in ranks_of(advice)
    assert all(each.basis[-1] == "warning (x): y" for each in advice.best)
    assert advise(TWO, Request(top=2, pp={"vision": (3,), "language": (7,)}), accepts).best == []


def test_modules_with_stages_of_different_roles_keep_their_pp():
    stage = StageId("language", 1)
    found = measured(
        {"vision": {}, "language": {"dp": 2, "pp": 2}},
        {"vision": (0.01, 0.02), "language": (0.03, 0.06)},
        destinations={"vision": (stage,)},
    )
    advice = advise(found, Request(top=100), no_remarks)
    assert {each.layout["language"].pp for each in advice.best} == {2}
    with pytest.raises(LaunchError, match="--pp language: some of its stages have roles of their own in the run"):
        advise(found, Request(pp={"language": (1,)}), no_remarks)


@pytest.mark.parametrize(("share", "is_rough"), [(0.8, True), (0.95, False), (1.05, False), (1.2, True)])
def test_a_run_that_the_model_does_not_explain_is_pointed_out(share, is_rough):
    played_s = advise(TWO, Request(), no_remarks).present_s
    advice = advise(replace(TWO, step_s=played_s / share), Request(), no_remarks)
    assert ("their times are rough" in as_text(advice)) is is_rough


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        pytest.param(Request(pp={"visio": (1,)}), "--pp visio: no such module; there are vision, language", id="pp"),
        pytest.param(Request(assumptions=Assumptions(layers={"x": 1})), "--layers x: no such module", id="layers"),
        pytest.param(
            Request(pp={"vision": (4,)}, assumptions=Assumptions(layers={"vision": 3})),
            "--pp vision=4: by --layers it has 3 layers",
            id="more stages than layers",
        ),
    ],
)
def test_a_request_that_does_not_fit_the_run_is_refused(request_, message):
    with pytest.raises(LaunchError, match=message):
        advise(TWO, request_, no_remarks)


@pytest.mark.timeout(60)
def test_large_worlds_take_seconds():
    found = measured(
        {"vision": {"dp": 64}, "audio": {"dp": 64}, "language": {"dp": 112, "pp": 8}},
        {"vision": (0.01, 0.02), "audio": (0.01, 0.02), "language": (0.03, 0.06)},
        micro_batches=32,
    )
    advice = advise(found, Request(top=3), no_remarks)
    assert len(advice.best) == 3
    assert advice.multiple > 1
