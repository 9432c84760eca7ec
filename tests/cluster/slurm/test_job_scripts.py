"""The job scripts of examples/slurm, submitted unchanged."""

import json
import re

import pytest

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(180)]


def hosts_of(run_dir):
    nodes = json.loads((run_dir / "nodes.json").read_text())
    return {node["name"]: (node["host"], list(range(node["first_rank"], node["first_rank"] + node["procs"]))) for node in nodes}


def test_a_plain_job_puts_a_rank_on_each_of_four_nodes(lab):
    job = lab.sbatch("examples/slurm/plain.sbatch")
    assert lab.wait(job) == ["COMPLETED"], lab.output(job)
    assert hosts_of(lab.cwd / "runs" / "digits-slurm") == {
        "node0": ("n1", [0]),
        "node1": ("n2", [1]),
        "node2": ("n3", [2]),
        "node3": ("n4", [3]),
    }
    assert "held-out accuracy" in lab.output(job)


def test_a_heterogeneous_job_has_a_component_for_each_pool(lab):
    job = lab.sbatch("examples/slurm/two_pools.sbatch")
    assert lab.wait(job) == ["COMPLETED", "COMPLETED"], lab.output(job)
    where = hosts_of(lab.cwd / "runs" / "digits-two-pools")
    assert {name: ranks for name, (_, ranks) in where.items()} == {"node0": [0, 1], "node1": [2], "node2": [3]}
    assert len({host for host, _ in where.values()}) == 3


def test_pools_are_matched_where_slurm_numbers_their_nodes_in_another_order(lab):
    script = (lab.cwd / "examples/slurm/two_pools.sbatch").read_text()
    first, rest = script.split("#SBATCH hetjob\n")
    turned = f"{first}#SBATCH --nodelist=n4\n#SBATCH hetjob\n#SBATCH --nodelist=n[1-2]\n{rest}"
    (lab.cwd / "turned.sbatch").write_text(turned)
    job = lab.sbatch("turned.sbatch")
    assert lab.wait(job) == ["COMPLETED", "COMPLETED"], lab.output(job)
    where = hosts_of(lab.cwd / "runs" / "digits-two-pools")
    assert where == {"node0": ("n4", [0, 1]), "node1": ("n1", [2]), "node2": ("n2", [3])}


def test_ranks_that_srun_starts_find_each_other_without_an_agent(lab):
    job = lab.sbatch("examples/slurm/without_agent.sbatch")
    assert lab.wait(job) == ["COMPLETED"], lab.output(job)
    lines = re.findall(r"rank (\d) of 8 on (n\d): (.*)", lab.output(job))
    assert {int(rank): host for rank, host, _ in lines} == {rank: f"n{1 + rank // 4}" for rank in range(8)}
    places = {int(rank): place for rank, _, place in lines}
    assert places[1] == "vision {'tp': 0, 'cp': 0, 'dp': 1, 'pp': 0}"
    assert places[7].startswith("language {'tp': 1, ")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["-N2", "--ntasks-per-node=2"], "srun started 4 tasks on 2 nodes, and mimo-launch starts the ranks of a node itself"),
        (["-N2", "--ntasks-per-node=1"], "srun started mimo-launch on 2 nodes, but the plan has 4: use srun --nodes=4"),
    ],
)
def test_a_step_of_another_shape_is_refused(lab, words, message):
    done = lab.run("srun", *words, "mimo-launch", "run", "examples/slurm/plain.yaml", check=False)
    assert done.returncode == 2
    assert message in done.stderr


def test_a_batch_script_without_srun_is_refused(lab):
    done = lab.run("srun", "-N1", "bash", "-c", "unset SLURM_STEP_ID; mimo-launch run examples/slurm/plain.yaml", check=False)
    assert done.returncode == 2
    assert "the plan has 4 nodes, and inside SLURM job" in done.stderr
    assert "srun --ntasks-per-node=1 mimo-launch run" in done.stderr


def test_detection_can_be_switched_off(lab):
    command = ["srun", "-N2", "mimo-launch", "run", "examples/slurm/plain.yaml"]
    done = lab.run(*command, env={"MIMO_DETECT": "off"}, check=False)
    assert done.returncode == 2
    assert "the plan has 4 nodes: start it on each node with --node-rank I --rdzv-endpoint HOST:PORT" in done.stderr


def test_host_lists_are_read_as_scontrol_reads_them(lab):
    from mimo_role.host.slurm import expand

    for hostlist in [
        "n[1-3,07-10],gpu-a[1-2]b[3-4],x",
        "n[01-03,5]",
        "n[08-11]",
        "n[3,1-2]",
        "n3,n1,n3",
        "a,,b",
        "10.0.0.[1-2]",
    ]:
        assert expand(hostlist) == lab.run("scontrol", "show", "hostnames", hostlist).stdout.split()
