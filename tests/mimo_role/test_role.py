import copy
import logging
import pickle
import threading
from dataclasses import dataclass

import pytest

import mimo_role.role
from mimo_role import MIMO_LANGUAGE_MODULE_KEY, ModuleLayout, ModuleStageInfo, RankGrid, RankNotInGridError, RankRole

WHOLE = ModuleStageInfo(True, True)


@dataclass
class ForeignGrid:
    """Has the attributes of Megatron-Core's HyperCommGrid, with lists instead of tuples."""

    rank_offset: int
    size: int
    shape: list[int]
    dim_names: list[str]


@pytest.fixture
def grids():
    """Vision on ranks 0-3 with two stages, language on ranks 4-11 with tp=2 and four stages."""
    return {
        "vision": RankGrid([1, 2, 2], ["tp", "dp", "pp"]),
        "language": RankGrid([2, 1, 4], ["tp", "dp", "pp"], rank_offset=4),
    }


def test_the_names_and_defaults_are_megatrons():
    assert MIMO_LANGUAGE_MODULE_KEY == "language"
    assert [layout.value for layout in ModuleLayout] == ["colocated", "non_colocated"]
    assert mimo_role.role.logger is logging.getLogger("mimo_role.role")
    assert RankRole() == RankRole(modules={}, mode=ModuleLayout.COLOCATED)


def test_without_a_grid_map_every_rank_runs_every_module_with_language_last():
    role = RankRole.build(["vision", "audio"])
    assert list(role.modules.items()) == [("vision", WHOLE), ("audio", WHOLE), ("language", WHOLE)]
    assert role.mode is ModuleLayout.COLOCATED


def test_grids_on_the_same_ranks_are_colocated_whatever_their_shapes():
    grids = {"vision": RankGrid([1, 4], ["tp", "dp"]), "language": RankGrid([4, 1], ["tp", "dp"])}
    assert RankRole.build(["vision"], grids) == RankRole.build(["vision"])


@pytest.mark.parametrize(("rank", "stages"), [(0, (True, False)), (1, (True, False)), (2, (False, True)), (3, (False, True))])
def test_a_colocated_grid_with_a_pipeline_gets_its_true_stages(rank, stages):
    grids = {"vision": RankGrid([4], ["dp"]), "language": RankGrid([2, 2], ["dp", "pp"])}
    role = RankRole.build(["vision"], grids, rank=rank)
    assert role.modules == {"vision": WHOLE, "language": ModuleStageInfo(*stages)}


@pytest.mark.parametrize(
    ("rank", "module", "first", "last"),
    [
        (1, "vision", True, False),
        (2, "vision", False, True),
        (4, "language", True, False),
        (7, "language", False, False),
        (11, "language", False, True),
    ],
)
def test_a_rank_has_the_stage_of_the_grid_that_contains_it(grids, rank, module, first, last):
    role = RankRole.build(["vision"], grids, rank=rank)
    assert role == RankRole({module: ModuleStageInfo(first, last)}, ModuleLayout.NON_COLOCATED)


def test_a_grid_without_a_pipeline_has_one_stage():
    grids = {"vision": RankGrid([2], ["dp"]), "language": RankGrid([2], ["dp"], rank_offset=2)}
    assert RankRole.build(["vision"], grids, rank=3).modules == {"language": WHOLE}


def test_grids_of_another_class_are_accepted():
    grids = {"vision": ForeignGrid(0, 2, [2], ["dp"]), "language": ForeignGrid(2, 4, [2, 2], ["tp", "pp"])}
    assert RankRole.build(["vision"], grids, rank=5).modules == {"language": ModuleStageInfo(False, True)}


def test_a_rank_in_no_grid_is_refused_by_name(grids):
    with pytest.raises(RuntimeError, match=r"rank 12 is in no module's grid \(vision 0-3, language 4-11\)"):
        RankRole.build(["vision"], grids, rank=12)


def test_the_rank_is_read_from_the_environment_by_default(grids, monkeypatch):
    monkeypatch.setenv("RANK", "2")
    assert RankRole.build(["vision"], grids).modules == {"vision": ModuleStageInfo(False, True)}


def test_a_process_without_a_rank_is_refused(grids, monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(RankNotInGridError, match="RANK is not set; pass rank="):
        RankRole.build(["vision"], grids)


def test_the_three_steps_of_build_have_megatrons_names(grids):
    assert not RankRole._all_grids_colocated(grids)
    assert RankRole._colocated(["vision"]) == RankRole.build(["vision"])
    assert RankRole._from_grid_map(grids, rank=0) == RankRole.build(["vision"], grids, rank=0)


@pytest.mark.parametrize(
    ("names", "modality", "language"),
    [
        ([], False, False),
        (["language"], False, True),
        (["vision"], True, False),
        (["vision", "language", "audio"], True, True),
    ],
)
def test_properties_of_a_role_follow_from_its_modules(names, modality, language):
    role = RankRole(dict.fromkeys(names, WHOLE))
    assert role.has_modality_modules is modality
    assert role.has_language_module is language
    assert role.modality_module_names == [name for name in names if name != "language"]


def test_stages_of_a_module_that_the_rank_does_not_run_are_false():
    role = RankRole({"vision": ModuleStageInfo(True, False)})
    assert role.is_first_stage("vision")
    assert not role.is_last_stage("vision")
    assert not role.is_first_stage("language")
    assert not role.is_last_stage("language")


def test_roles_are_values():
    one, other = (RankRole({"vision": WHOLE}, ModuleLayout.NON_COLOCATED) for _ in range(2))
    assert one == other
    assert hash(one) == hash(other)
    assert {one: "found"}[other] == "found"
    assert pickle.loads(pickle.dumps(one)) == copy.deepcopy(one) == one
    assert one != RankRole({"vision": WHOLE}, ModuleLayout.COLOCATED)
    with pytest.raises(AttributeError):
        one.mode = ModuleLayout.COLOCATED


def test_a_role_is_read_by_many_threads_at_once():
    role = RankRole.build(["vision", "audio"])
    seen = []
    threads = [threading.Thread(target=lambda: seen.append((role.has_language_module, hash(role)))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == [(True, hash(role))] * 8


def test_json_keeps_everything_and_the_order():
    role = RankRole({"b": ModuleStageInfo(True, False), "a": WHOLE}, ModuleLayout.NON_COLOCATED)
    again = RankRole.from_dict(role.as_dict())
    assert again == role
    assert list(again.modules) == ["b", "a"]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([], 'keys "mode" and "modules"'),
        ({"mode": "colocated"}, 'keys "mode" and "modules"'),
        ({"mode": "sideways", "modules": {}}, "colocated, non_colocated, not 'sideways'"),
        ({"mode": "colocated", "modules": []}, "modules is an object"),
        ({"mode": "colocated", "modules": {"vision": {"is_first_stage": 1, "is_last_stage": True}}}, "modules.vision"),
    ],
)
def test_another_form_of_json_is_refused_with_the_part_that_is_wrong(value, message):
    with pytest.raises(ValueError, match=message):
        RankRole.from_dict(value)
