import json
import subprocess
import sys
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher.cli import main
from launcher.config.loader import load
from launcher.config.schema import Backend, Join, PoolConfig
from launcher.plan.launch_plan import LaunchPlan
from launcher.plan.placement import Node, place
from launcher.plan.planner import make_plan
from mimo_role import ModuleLayout, Topology

FULL = """
name: digits-vlm
layout: non_colocated
modules:
  vision:   {tp: 1, dp: 2, pool: encoders}
  audio:    {dp: 2, colocate_with: vision}
  language: {tp: 2, pp: 2, dp: auto, pool: llm, env: {SIDE: right}}
pools:
  encoders: {nodes: 1, procs_per_node: 2}
  llm:      {nodes: 2, procs_per_node: 4, slurm: {partition: h100, gres: "gpu:4"}}
entry:    {script: train.py}
args:     [--steps, "300", --rate, 1e-3]
runtime:  {backend: gloo, timeout_s: 60}
env:      {NCCL_DEBUG: WARN, SIDE: left}
run_dir:  out/${name}
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "train.py").touch()
    (tmp_path / "job.yaml").write_text(FULL)
    return tmp_path


def plan_of(folder, *overrides, script_args=()):
    path = folder / "job.yaml"
    return make_plan(load(path, list(overrides))[0], path, list(script_args))


def test_a_config_with_every_section_becomes_a_plan(folder):
    plan = plan_of(folder, script_args=["--more"])
    assert plan.topology.layout is ModuleLayout.NON_COLOCATED
    assert [grid.ranks for grid in plan.topology.grids.values()] == [range(2), range(2), range(2, 10)]
    assert plan.nodes == (Node("node0", "encoders", 0, 2), Node("node1", "llm", 2, 4), Node("node2", "llm", 6, 4))
    assert plan.entry.script == str(folder / "train.py")
    assert plan.entry.args == ("--steps", "300", "--rate", "1e-3", "--more")
    assert (plan.runtime.backend, plan.runtime.join, plan.runtime.timeout_s) == (Backend.GLOO, Join.LAUNCHER, 60.0)
    assert plan.run_dir == str(folder / "out" / "digits-vlm")
    assert {warning.code for warning in plan.warnings} == {"bridge_across_pools"}


def test_the_environment_of_a_module_overrides_that_of_the_job(folder):
    plan = plan_of(folder)
    assert plan.env_of(0)["SIDE"] == "left"
    assert plan.env_of(2) == {"NCCL_DEBUG": "WARN", "SIDE": "right"}


def test_a_plan_is_equal_after_json(folder):
    for overrides in ([], ["entry.script=null", 'entry.command=[bash, -c, "a, b"]'], ["pools.llm.nodes=3"]):
        plan = plan_of(folder, *overrides)
        assert LaunchPlan.from_json(plan.to_json()) == plan


TYPED = ["0042", "1.50", "1e-3", "0x10", "1_000", "12:30:00", "3e8", "7"]


def test_arguments_and_variables_reach_the_script_as_they_were_written(folder):
    in_file = FULL.replace('args:     [--steps, "300", --rate, 1e-3]', f"args: [{', '.join(TYPED)}]")
    (folder / "job.yaml").write_text(in_file.replace("SIDE: left", "SIDE: 0042"))
    plan = plan_of(folder)
    assert plan.entry.args == tuple(TYPED)
    assert plan.env["SIDE"] == "0042"
    changed = plan_of(folder, f"args=[{', '.join(reversed(TYPED))}]", "name=007", "env.SIDE=1.50")
    assert changed.entry.args == tuple(reversed(TYPED))
    assert (changed.name, changed.env["SIDE"]) == ("007", "1.50")


def test_the_resolved_config_gives_the_same_job_from_any_folder(folder, tmp_path_factory):
    overrides = ["args=[0042, '\\${x}']", "name=007"]
    _, text = load(folder / "job.yaml", overrides)
    saved = tmp_path_factory.mktemp("saved") / "config.yaml"
    saved.write_text(text)
    first, again = plan_of(folder, *overrides), make_plan(load(saved, [])[0], saved, [])
    assert again == first
    assert first.entry.args == ("0042", "${x}")


def test_an_entry_on_the_command_line_replaces_that_of_the_file(folder):
    assert plan_of(folder, "entry.command=[bash]").entry.command == ("bash",)
    assert plan_of(folder, "entry={module: json}").entry.module == "json"


def test_auto_on_a_pool_takes_the_free_ranks_of_that_pool(folder):
    plan = plan_of(folder, "pools.encoders.procs_per_node=4")
    assert plan.topology.grids["language"].size == 8


def test_a_module_is_found_on_the_pythonpath_of_the_job(folder):
    (folder / "src" / "trainer").mkdir(parents=True)
    (folder / "src" / "trainer" / "__init__.py").touch()
    assert plan_of(folder, "entry.module=trainer", f"env.PYTHONPATH={folder / 'src'}").entry.module == "trainer"


def test_overrides_change_single_values_and_lists(folder):
    plan = plan_of(folder, "modules.language.tp=4", 'args=[--steps,"10"]', "name=other", "modules.language.pp=1")
    assert plan.topology.grids["language"].axis_size("tp") == 4
    assert plan.entry.args == ("--steps", "10")
    assert plan.run_dir.endswith("out/other")


def test_a_script_is_relative_to_its_config_and_not_to_the_current_folder(folder, monkeypatch, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    monkeypatch.chdir(elsewhere)
    plan = plan_of(folder)
    assert plan.entry.script == str(folder / "train.py")
    assert plan.run_dir == str(elsewhere / "out" / "digits-vlm")


def test_without_pools_all_ranks_are_on_one_node(folder):
    plan = plan_of(folder, "pools=null", "modules.language.dp=5")
    assert plan.nodes == (Node("node0", "local", 0, 22),)


def test_auto_without_pools_takes_this_machine_as_torchrun_does(folder, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2,3,4,5")
    plan = plan_of(folder, "pools=null")
    assert plan.topology.world_size == 6


def test_a_command_joins_by_itself(folder):
    assert plan_of(folder, "entry.script=null", "entry.command=[bash]").runtime.join is Join.SCRIPT


def test_modules_fill_pools_in_order_with_warnings_about_idle_slots():
    topology = Topology.from_modules({"vision": {"dp": 3}, "language": {"dp": 6}})
    pools = {"small": PoolConfig(nodes=2, procs_per_node=2), "large": PoolConfig(nodes=2, procs_per_node=8)}
    nodes = place(topology, pools, {"vision": None, "language": None})
    assert nodes == [Node("node0", "small", 0, 2), Node("node1", "small", 2, 2), Node("node2", "large", 4, 5)]


@given(
    st.lists(st.integers(1, 9), min_size=2, max_size=4),
    st.lists(st.tuples(st.integers(1, 3), st.integers(1, 5)), min_size=1, max_size=3),
)
def test_every_rank_is_on_one_node_and_no_node_is_overfull(sizes, shapes):
    names = ["language", "a", "b", "c"][: len(sizes)]
    topology = Topology.from_modules({name: {"dp": size} for name, size in zip(names, sizes, strict=True)})
    pools = {f"p{i}": PoolConfig(nodes=nodes, procs_per_node=procs) for i, (nodes, procs) in enumerate(shapes)}
    pools["rest"] = PoolConfig(nodes=40, procs_per_node=1)
    nodes = place(topology, pools, dict.fromkeys(names))
    assert [rank for node in nodes for rank in node.ranks] == list(range(topology.world_size))
    for name, pool in pools.items():
        used = [node for node in nodes if node.pool == name]
        assert len(used) <= pool.nodes
        assert all(1 <= node.procs <= pool.procs_per_node for node in used)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["modules.vision.pool=llm", "modules.audio.pool=encoders", "modules.language.dp=1"],
            "modules on the same ranks must be on the same pool",
        ),
        (
            ["modules.vision.dp=3", "modules.audio.dp=3", "modules.language.dp=1"],
            "do not fit: there are 1 x 2 on pool encoders",
        ),
    ],
)
def test_modules_that_do_not_fit_the_pools_are_refused(folder, capsys, overrides, message):
    assert main(["plan", "job.yaml", *overrides]) == 2
    assert message in capsys.readouterr().err


def test_the_table_has_a_line_for_each_rank_and_module(folder, capsys):
    assert main(["plan", "job.yaml"]) == 0
    table, notes = capsys.readouterr().out.split("\n\nwarning ")
    lines = table.splitlines()
    assert notes.startswith("(bridge_across_pools): bridge vision -> language: 2 ranks on encoders to 4 ranks on llm;")
    assert lines[0].startswith("digits-vlm: 10 ranks on 3 nodes, non_colocated, topology ")
    assert lines[2].split() == ["rank", "node", "local", "module", "stage", "coordinates"]
    assert [line.split() for line in lines[4:7]] == [
        ["0", "node0", "0", "vision", "1/1", "dp=0"],
        ["audio", "1/1", "dp=0"],
        ["1", "node0", "1", "vision", "1/1", "dp=1"],
    ]
    assert lines[-1].split() == ["9", "node2", "3", "language", "2/2", "tp=1", "dp=1", "pp=1"]


LARGE = ["modules.vision.dp=1024", "modules.audio.dp=1024", "modules.language.tp=8", "modules.language.pp=8"]
LARGE_POOLS = ["pools.encoders={nodes: 128, procs_per_node: 8}", "pools.llm={nodes: 1152, procs_per_node: 8}"]


def test_a_large_world_is_folded_by_stage(folder, capsys):
    assert main(["plan", "job.yaml", *LARGE, *LARGE_POOLS]) == 0
    lines = capsys.readouterr().out.split("\n\nwarning ")[0].splitlines()
    assert len(lines) == 4 + 1 + 1 + 8
    assert lines[4].split() == ["0-1023", "node0", "..", "node127", "8", "vision", "1/1", "dp=0-1023"]
    assert lines[-1].split() == ["9088-10239", "node1136", "..", "node1279", "8", "language", "8/8", "tp=0-7", "dp=0-143"]


def test_json_lists_every_rank(folder, capsys):
    assert main(["plan", "--json", "job.yaml", "pools.llm.nodes=3"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert set(found) == {"name", "digest", "topology", "nodes", "ranks", "warnings", "rounds", "groups", "nccl"}
    assert len(found["groups"]) == found["rounds"]
    topology = Topology.from_dict(found["topology"])
    assert found["digest"] == topology.digest
    assert [entry["rank"] for entry in found["ranks"]] == list(range(14))
    assert found["ranks"][3] == {
        "rank": 3,
        "node": "node1",
        "local_rank": 1,
        "role": topology.role_of(3).as_dict(),
        "coords": topology.coords_of(3),
    }


def test_the_communicators_of_each_stage_and_their_memory(folder, capsys):
    (folder / "small.yaml").write_text(
        "name: small\nlayout: non_colocated\n"
        "modules: {vision: {tp: 2}, language: {tp: 2, pp: 2, groups: {nccl: {max_ctas: 32}}}}\n"
        "entry: {command: ['true']}\n"
    )
    assert main(["plan", "small.yaml", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["nccl"]["stages"]
    assert [(stage["module"], stage["stage"], stage["rank"], stage["of_bridges"]) for stage in found] == [
        ("vision", 0, 0, 3),
        ("language", 0, 2, 5),
        ("language", 1, 4, 3),
    ]
    # A sender sends to both receivers, or each to one, whatever the size and the split of a batch; gradients come back so.
    assert found[0]["bridge_mib"] == 8 * (2 * 2 + 2 * 10 + 10 + 2)
    assert found[2]["bridge_mib"] == 32 * (2 * 2 + 2 * 10 + 10 + 2)


def test_options_may_stand_between_overrides(folder, capsys):
    assert main(["plan", "job.yaml", "name=a", "--json", "modules.language.dp=1"]) == 0
    assert json.loads(capsys.readouterr().out)["name"] == "a"


def test_ten_thousand_ranks_as_json(folder):
    command = [sys.executable, "-m", "launcher", "plan", "--json", str(folder / "job.yaml"), *LARGE, *LARGE_POOLS]
    started = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    print(f"plan --json for 10,240 ranks: {time.perf_counter() - started:.2f} s")
    assert len(json.loads(done.stdout)["ranks"]) == 10_240


def test_a_closed_stdout_is_not_an_error(folder):
    command = f"{sys.executable} -m launcher plan --json {folder / 'job.yaml'} {' '.join(LARGE)} | head -c 10"
    with (folder / "large.yaml").open("w") as file:
        file.write(FULL)
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", command + " 'pools=null'"], capture_output=True, text=True, timeout=60, check=False
    )
    assert "Traceback" not in done.stderr


def test_nccl_with_fewer_gpus_than_ranks_on_a_node_is_refused(folder, capsys):
    assert main(["plan", "job.yaml", "runtime.backend=nccl", "pools.llm.slurm.gres=gpu:2"]) == 2
    assert (
        "pools.llm: 4 ranks on a node, but slurm requests 2 GPUs per node; NCCL needs one for each rank"
        in capsys.readouterr().err
    )
