"""SLURM's variables. Host lists were compared with `scontrol show hostnames`; the variables are those of 22.05."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mimo_role import EnvironError
from mimo_role.host.slurm import expand, job_of, restarts_of, task_of


@pytest.mark.parametrize(
    ("hostlist", "hosts"),
    [
        ("", ""),
        ("x", "x"),
        ("n[1-3,07-10],gpu-a[1-2]b[3-4],x", "n1 n2 n3 n07 n08 n09 n10 gpu-a1b3 gpu-a1b4 gpu-a2b3 gpu-a2b4 x"),
        ("n[01-03,5]", "n01 n02 n03 n5"),
        ("n[08-11]", "n08 n09 n10 n11"),
        ("n[8-11]", "n8 n9 n10 n11"),
        ("n[098-101]", "n098 n099 n100 n101"),
        ("n[3]", "n3"),
        ("[1-2]", "1 2"),
        ("n[1-2].example.org", "n1.example.org n2.example.org"),
        ("b,a,b", "b a b"),
        ("n[2,1,2]", "n2 n1 n2"),
        ("n1 n[2-3]\tx\n", "n1 n2 n3 x"),
        ("n1,,n2,", "n1 n2"),
    ],
)
def test_a_host_list_names_its_hosts_in_its_order(hostlist, hosts):
    assert expand(hostlist) == hosts.split()


@pytest.mark.parametrize(
    ("hostlist", "message"),
    [
        ("n[2-1]", r"the range '2-1' is descending: 'n\[2-1\]'"),
        ("n[a-b]", r"'a-b' is not a number or a range of numbers: 'n\[a-b\]'"),
        ("n[]", "'' is not a number"),
        ("n[1-2-3]", "'1-2-3' is not a number"),
        ("n[1,]", "'' is not a number"),
        ("n[ 1]", "' 1' is not a number"),
        ("n[\u0661]", "'\u0661' is not a number"),
        ("n[1-2", "unbalanced brackets"),
        ("n[1,2", "unbalanced brackets"),
        ("n1-2]", "unbalanced brackets"),
        ("n[1,[2]]", "unbalanced brackets"),
        ("a]b,n[1-2]", "unbalanced brackets"),
        ("n[1-999999]", "more than 100000 names"),
        ("n[1-9999]m[1-9999]k[1-9999]", "more than 100000 names"),
        ("a[1-60000],b[1-60000]", "more than 100000 names"),
    ],
)
def test_an_invalid_host_list_is_refused(hostlist, message):
    with pytest.raises(EnvironError, match=f"^SLURM host list: {message}"):
        expand(hostlist)


def test_a_list_of_single_names_may_be_as_long_as_any_other():
    names = [f"node-{index * 7919:x}" for index in range(100_000)]
    assert expand(",".join(names)) == names


@st.composite
def spans(draw):
    """`1-3` or `07`, and its numbers as they are written."""
    width = draw(st.integers(1, 4))
    first = draw(st.integers(0, 10**width - 1))
    last = first + draw(st.integers(0, 12))
    numbers = [str(number).zfill(width) for number in range(first, last + 1)]
    text = f"{first:0{width}}-{last}" if len(numbers) > 1 or draw(st.booleans()) else numbers[0]
    return text, numbers


@st.composite
def written_hosts(draw):
    """One item of a host list, and its names."""
    text, names = "", [""]
    for letters in draw(st.lists(st.text("abz-.", min_size=1, max_size=3), min_size=1, max_size=3)):
        found = draw(st.lists(spans(), max_size=3))
        choices = [number for _, numbers in found for number in numbers] or [""]
        text += letters + (f"[{','.join(span for span, _ in found)}]" if found else "")
        names = [name + letters + choice for name in names for choice in choices]
    return text, names


@given(st.lists(written_hosts(), max_size=3), st.sampled_from([",", " ", ", ", "\n"]))
def test_expand_is_the_inverse_of_writing_a_host_list(items, between):
    assert expand(between.join(text for text, _ in items)) == [name for _, names in items for name in names]


# Task 5 of 8 on three nodes: `sbatch --nodes=3 --ntasks=8`, a script that srun starts.
STEP = {
    "SLURM_JOB_ID": "1234",
    "SLURM_STEP_ID": "0",
    "SLURM_PROCID": "5",
    "SLURM_NTASKS": "8",
    "SLURM_NODEID": "1",
    "SLURM_NNODES": "3",
    "SLURM_LOCALID": "2",
    "SLURM_STEP_NODELIST": "n[07-09]",
    "SLURM_JOB_NODELIST": "n[07-10]",
}

# The first component on n4, the second on n1 and n2; SLURM counts nodes in that order and sorts the step's list.
HETEROGENEOUS = STEP | {
    "SLURM_NODEID": "0",
    "SLURM_HET_SIZE": "2",
    "SLURM_STEP_NODELIST": "n[1-2,4]",
    "SLURM_JOB_NODELIST_HET_GROUP_0": "n4",
    "SLURM_JOB_NODELIST_HET_GROUP_1": "n[1-2]",
}


def test_a_task_of_a_step_has_its_place_and_nodes():
    task = task_of(STEP)
    assert (task.job_id, task.step_id, task.task, task.tasks, task.local_task) == ("1234", "0", 5, 8, 2)
    assert (task.node, task.nodes, task.hosts, task.restarts) == (1, 3, ("n07", "n08", "n09"), 0)
    assert task.to_environ() == {
        "RANK": "5",
        "WORLD_SIZE": "8",
        "LOCAL_RANK": "2",
        "MASTER_ADDR": "n07",
        "MASTER_PORT": str(task.port),
    }


def test_the_jobs_nodes_are_used_if_the_step_names_none():
    without = {name: value for name, value in STEP.items() if name != "SLURM_STEP_NODELIST"}
    assert task_of(without).hosts == ("n07", "n08", "n09", "n10")


@pytest.mark.parametrize("group", ["HET", "PACK"])
def test_a_heterogeneous_steps_nodes_are_in_the_order_of_its_components(group):
    environ = {name.replace("HET_GROUP", f"{group}_GROUP"): value for name, value in HETEROGENEOUS.items()}
    assert task_of(environ).hosts == ("n4", "n1", "n2")


def test_a_step_on_one_component_has_that_components_nodes():
    assert task_of(HETEROGENEOUS | {"SLURM_STEP_NODELIST": "n[1-2]"}).hosts == ("n1", "n2")
    assert task_of(HETEROGENEOUS | {"SLURM_STEP_NODELIST": "n4"}).hosts == ("n4",)


def test_components_that_do_not_name_the_steps_nodes_are_ignored():
    assert task_of(HETEROGENEOUS | {"SLURM_JOB_NODELIST_HET_GROUP_0": "n9"}).hosts == ("n1", "n2", "n4")


@pytest.mark.parametrize("step_id", [None, "4294967290", "4294967291", "4294967292", "4294967293"])
def test_a_job_script_is_in_the_job_but_not_a_task(step_id):
    environ = {"SLURM_JOB_ID": "1234", "SLURM_PROCID": "0", "SLURM_NNODES": "3", "SLURM_JOB_NODELIST": "n[07-09]"}
    if step_id is not None:
        environ |= {"SLURM_STEP_ID": step_id}
    assert task_of(environ) is None
    assert job_of(environ) == "1234"


def test_there_is_no_task_outside_of_slurm():
    assert (task_of({}), job_of({}), restarts_of({})) == (None, None, 0)


@pytest.mark.parametrize("word", ["off", "OFF", "0", "false", "no"])
def test_detection_can_be_turned_off(word):
    environ = STEP | {"SLURM_RESTART_COUNT": "1", "MIMO_DETECT": word}
    assert (task_of(environ), job_of(environ), restarts_of(environ)) == (None, None, 0)
    assert task_of(environ | {"MIMO_DETECT": "on"}) is not None


@pytest.mark.parametrize(
    "name", ["SLURM_JOB_ID", "SLURM_STEP_ID", "SLURM_PROCID", "SLURM_NTASKS", "SLURM_NODEID", "SLURM_NNODES", "SLURM_LOCALID"]
)
@pytest.mark.parametrize("value", ["", "-1", "1.0", "two", "\u0663"])
def test_a_malformed_number_is_named(name, value):
    with pytest.raises(EnvironError, match=rf"^{name}: .* is not a whole number; MIMO_DETECT=off ignores SLURM's") as caught:
        task_of(STEP | {name: value})
    assert caught.value.variable == name


def test_a_malformed_restart_count_is_named():
    with pytest.raises(EnvironError, match=r"SLURM_RESTART_COUNT: 'x' is not a whole number"):
        task_of(STEP | {"SLURM_RESTART_COUNT": "x"})


@pytest.mark.parametrize("name", ["SLURM_PROCID", "SLURM_NTASKS", "SLURM_NODEID", "SLURM_NNODES", "SLURM_LOCALID"])
def test_a_missing_variable_is_named(name):
    without = {other: value for other, value in STEP.items() if other != name}
    with pytest.raises(EnvironError, match=f"^{name}: not set in a job step of SLURM's; MIMO_DETECT=off"):
        task_of(without)


def test_a_step_without_a_node_is_refused():
    with pytest.raises(EnvironError, match="SLURM_STEP_NODELIST: names no node"):
        task_of(STEP | {"SLURM_STEP_NODELIST": ""})


def test_jobs_steps_and_requeues_have_different_ports():
    def port(job=1234, step=0, restarts=0):
        return task_of(STEP | {"SLURM_JOB_ID": str(job), "SLURM_STEP_ID": str(step), "SLURM_RESTART_COUNT": str(restarts)}).port

    assert len({port(job=job) for job in range(1000, 1500)}) == 500
    assert len({port(step=step) for step in range(100)}) == 100
    assert len({port(restarts=restarts) for restarts in range(100)}) == 100
    # Consecutive jobs, with their first requeues and steps, which a node may run at the same time.
    near = [(job, step, restarts) for job in range(1000, 1010) for step in range(2) for restarts in range(3)]
    assert len({port(*place) for place in near}) == len(near)


@given(st.integers(0, 2**32), st.integers(0, 2**16), st.integers(0, 2**16))
def test_ports_are_neither_privileged_nor_ephemeral(job, step, restarts):
    numbers = {"SLURM_JOB_ID": str(job), "SLURM_STEP_ID": str(step), "SLURM_RESTART_COUNT": str(restarts)}
    assert 15000 <= task_of(STEP | numbers).port <= 31999
