"""A plan as torchx's AppDef: the manifest for Kubernetes, and the command on each node."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from launcher.errors import LaunchError
from launcher.plan.launch_plan import LaunchPlan
from launcher.plan.plan_file import load_plan
from launcher.schedulers.app_def import pools_in_order, self_contained
from launcher.schedulers.submit import dry_run, runner, status_of, submit
from tests.launcher.schedulers.plans import CONFIG, request

ODD = 'it\'s $(HOME) $$ $x "x", y'
POOLS = CONFIG.replace(
    "llm:      {nodes: 1, procs_per_node: 4}", "llm: {nodes: 2, procs_per_node: 2, resources: {gpu: 2, cpu: 8}}"
)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def manifest(folder, *overrides):
    text = dry_run(request(folder, *overrides, config=POOLS, to="kubernetes", image="vlm:1", options=("queue=train",)))
    return yaml.safe_load(text)


def tasks_of(found):
    return {task["name"]: task["template"]["spec"]["containers"][0] for task in found["spec"]["tasks"]}


def environ_of(container):
    return {entry["name"]: entry["value"] for entry in container["env"]}


def test_the_manifest_has_a_task_for_each_node_with_its_pools_resources(folder):
    found = manifest(folder)
    assert (found["kind"], found["spec"]["queue"]) == ("Job", "train")
    tasks = tasks_of(found)
    assert list(tasks) == ["encoders-0", "llm-0", "llm-1"]
    assert {container["image"] for container in tasks.values()} == {"vlm:1"}
    limits = tasks["llm-1"]["resources"]["limits"]
    assert (limits["nvidia.com/gpu"], limits["cpu"]) == ("2", "8000m")
    assert "nvidia.com/gpu" not in tasks["encoders-0"]["resources"]["limits"]


def test_the_plan_is_in_the_environment_with_paths_below_the_images_working_directory(folder, monkeypatch):
    container = tasks_of(manifest(folder))["llm-1"]
    monkeypatch.setenv("MIMO_PLAN", environ_of(container)["MIMO_PLAN"])
    image = folder / "image"
    image.mkdir()
    monkeypatch.chdir(image)
    plan, _ = load_plan(Path("@MIMO_PLAN"))
    assert isinstance(plan, LaunchPlan)
    assert (plan.entry.script, plan.run_dir) == (str(image / "train.py"), str(image / "runs/vlm"))
    assert [(node.pool, node.procs) for node in plan.nodes] == [("encoders", 2), ("llm", 2), ("llm", 2)]


@pytest.mark.parametrize(
    ("task", "host", "expected"),
    [
        ("encoders-0", {"TORCHX_RANK0_HOST": "localhost"}, ["encoders:0", "pod:29400"]),
        ("llm-1", {"VC_ENCODERS_0_HOSTS": "encoders-0-0.vlm"}, ["llm:1", "encoders-0-0.vlm:29400"]),
    ],
)
def test_each_tasks_command_names_its_node_and_node_0s_host(folder, task, host, expected):
    container = tasks_of(manifest(folder))[task]
    # A program called mimo-launch that prints its arguments, and the host name of a pod.
    for name, script in (("mimo-launch", 'printf "%s\\n" "$@"'), ("hostname", "echo pod"), ("getent", "exit 0")):
        (folder / name).write_text(f"#!/bin/sh\n{script}\n")
        (folder / name).chmod(0o755)
    environ = environ_of(container) | host | {"PATH": f"{folder}:/usr/bin:/bin"}
    done = subprocess.run(container["command"], env=environ, capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["run", "@MIMO_PLAN", "--node-rank", expected[0], "--rdzv-endpoint", expected[1]]


def test_variables_reach_the_pod_unchanged(folder):
    found = manifest(folder, f"env.ODD={yaml.safe_dump(ODD, default_flow_style=True).strip()}")
    assert environ_of(tasks_of(found)["llm-0"])["ODD"] == ODD


def test_a_script_outside_the_working_directory_is_refused(folder, monkeypatch):
    made = request(folder, config=POOLS, to="kubernetes", image="vlm:1", options=("queue=train",))
    (folder / "sub").mkdir()
    monkeypatch.chdir(folder / "sub")
    with pytest.raises(LaunchError, match=r"entry.script: .* is outside .*, the counterpart of the image's working directory"):
        dry_run(made)


def test_an_option_that_the_scheduler_does_not_have_is_refused(folder):
    with pytest.raises(LaunchError, match=r"--option quue=x: kubernetes takes NAME=VALUE with the names .*queue"):
        dry_run(request(folder, to="kubernetes", image="i", options=("quue=x",)))


def test_a_missing_option_is_refused_by_torchx(folder):
    with pytest.raises(LaunchError, match=r"--to kubernetes: .*queue"):
        dry_run(request(folder, to="kubernetes", image="i"))


@pytest.mark.ranks
def test_torchxs_local_scheduler_runs_the_ranks_of_a_role(folder, monkeypatch):
    one = "name: one\nlayout: colocated\nmodules: {vision: {dp: 2}, language: {dp: 2}}\nentry: {script: train.py}\n"
    made = request(folder, config=one, to="local_cwd")
    (folder / "train.py").write_text("import mimo_role\nprint('rank', mimo_role.current().rank)")
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent), prepend=os.pathsep)
    app = self_contained(made.plan, pools_in_order(made.plan, made.pools), str(folder), folder)
    with runner() as torchx_runner:
        handle = torchx_runner.run(app, "local_cwd", cfg={"log_dir": str(folder / "logs")})
        status = torchx_runner.wait(handle, wait_interval=0.1)
    out = "".join(path.read_text() for path in (folder / "logs").rglob("stdout.log"))
    assert status.state.name == "SUCCEEDED", out
    assert sorted(line for line in out.splitlines() if "rank" in line) == [
        f"[vision.dp{rank}+language.dp{rank} r{rank}] rank {rank}" for rank in range(2)
    ]


def test_a_scheduler_that_ends_its_jobs_with_this_process_is_refused(folder):
    with pytest.raises(LaunchError, match=r"torchx ends its local jobs when this program ends; use mimo-launch run"):
        submit(request(folder, to="local_cwd"))


def test_an_unknown_job_of_torchxs_schedulers_is_an_error(folder):
    with pytest.raises(LaunchError, match=r"--to nowhere: .*nowhere"):
        status_of("nowhere://mimo/1")
    with pytest.raises(LaunchError, match=r"local_cwd://mimo/none: torchx finds no such job"):
        status_of("local_cwd://mimo/none")
