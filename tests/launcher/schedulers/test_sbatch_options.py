"""The options of a pool: which are refused, which are passed on with a warning, and which go to srun. No SLURM is needed."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher.errors import ConfigError
from launcher.schedulers.sbatch_options import check_options, review, seconds_of
from launcher.schedulers.slurm_vocabulary import SBATCH, SRUN

ANY = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=40)
NAMES = st.from_regex(r"[A-Za-z][A-Za-z0-9]+([-_][A-Za-z0-9]+){0,3}", fullmatch=True).filter(lambda name: name != "srun")


def warnings_of(options, pool="p"):
    return [warning.message for warning in check_options(pool, options).warnings]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"nodes": 3}, "pools.p.slurm.nodes: mimo-launch sets this option itself (pools set it); leave it out"),
        ({"gpus-per-task": 1}, "use gpus-per-node or gres"),
        ({"export": "A=1"}, "variables are set by env in the config"),
        (
            {"outp": "x"},
            "pools.p.slurm.outp: short for output, which mimo-launch sets itself (output goes to the run directory)",
        ),
        (
            {"kill-on-bad-exit": 0},
            "mimo-launch sets this option of srun itself (a task that fails ends the step); leave it out",
        ),
        ({"-p": "x"}, "not the long name of an sbatch option; write sbatch's long name without the dashes"),
        ({"p": "x"}, "not the long name of an sbatch option; write sbatch's long name without the dashes"),
        ({"--partition": "x"}, "not the long name of an sbatch option; did you mean 'partition'?"),
        ({"cpus per task": 4}, "not the long name of an sbatch option; did you mean 'cpus-per-task'?"),
        ({"mem=": 4}, "not the long name of an sbatch option"),
        ({"a\nb": 4}, "not the long name of an sbatch option"),
        ({"comment": "a\nb"}, "an option of a job script cannot contain a line break"),
        ({"lab_mode": "a\rb"}, "an option of a job script cannot contain a line break"),
        ({"comment": "x" * 1025}, "1025 characters; sbatch accepts 1024"),
        ({"gres": {"gpu": 4}}, "an option's value cannot be a mapping"),
        ({"nodelist": [["n1"], "n2"]}, "a collection in a list; items must be text or numbers"),
        ({"nodelist": ["n1", True]}, "true or false in a list; items must be text or numbers"),
        ({"signal": "B:USR1@60"}, "=B:USR1@60: B: signals the job script only, not the ranks"),
        ({"clusters": "a,b"}, "status, logs and cancel use the cluster of this machine"),
        ({"srun": ["--label"]}, "pools.p.slurm.srun: not a mapping of srun's options, such as {label: true}"),
        ({"srun": True}, "pools.p.slurm.srun: not a mapping of srun's options"),
        ({"srun": {"nodes": 3}}, "pools.p.slurm.srun.nodes: mimo-launch sets this option itself (pools set it); leave it out"),
        ({"srun": {"het-group": 0}}, "one step runs on all pools"),
        ({"srun": {"cpus-per-task": 4}}, "write it under pools.NAME.slurm"),
        (
            {"srun": {"array": "0-3"}},
            "mimo-launch sets this option of sbatch itself (a job is one run; submit it several times",
        ),
        ({"srun": {"-l": True}}, "pools.p.slurm.srun.-l: not the long name of an srun option; write srun's long name"),
        ({"srun": {"task-prolog": {"a": 1}}}, "an option's value cannot be a mapping"),
        ({"srun": {"task-prolog": "a\0b"}}, "an option of a job script cannot contain a zero byte"),
        (
            {"container-image": "a", "srun": {"container-image": "b"}},
            "pools.p.slurm.container-image: pools.p.slurm.srun has this option too; give it once",
        ),
    ],
    ids=str,
)
def test_options_that_would_break_the_script_are_refused(options, message):
    with pytest.raises(ConfigError) as error:
        check_options("p", options)
    assert str(error.value).startswith("pools.p.slurm.")
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"partitoin": "x"}, "pools.p.slurm.partitoin: no known option of sbatch; did you mean 'partition'?"),
        ({"cpus_per_task": 4}, "pools.p.slurm.cpus_per_task: no known option of sbatch; did you mean 'cpus-per-task'?"),
        ({"Account": "vlm"}, "pools.p.slurm.Account: no known option of sbatch; did you mean 'account'?"),
        ({"contianer-image": "x"}, "pools.p.slurm.contianer-image: no known option of sbatch; did you mean 'container-image'?"),
        ({"container-imagee": "x"}, "pools.p.slurm.container-imagee: no known option of srun; did you mean 'container-image'?"),
        ({"label": True}, "pools.p.slurm.label: an option of srun, not of sbatch; write it under pools.p.slurm.srun"),
        ({"srun": {"labell": True}}, "pools.p.slurm.srun.labell: no known option of srun; did you mean 'label'?"),
        (
            {"srun": {"requeue": True}},
            "pools.p.slurm.srun.requeue: an option of sbatch, not of srun; write it under pools.p.slurm",
        ),
    ],
    ids=str,
)
def test_a_probable_mistake_is_passed_on_with_a_warning(options, message):
    (warning,) = warnings_of(options)
    assert warning.startswith(message)
    checked = check_options("p", options)
    assert len(checked.sbatch) + len(checked.srun) == 1


@pytest.mark.parametrize(
    "name",
    ["brand-new", "gpu_cmode", "singularity-container", "environment", "uenv", "nohome", "image", "auks", "X11fwd", "x-2_y"],
)
def test_options_of_newer_releases_and_plugins_pass(name):
    for options in ({name: "v"}, {"srun": {name: "v"}}):
        checked = check_options("p", options)
        assert (checked.warnings, {**checked.sbatch, **checked.srun}) == ((), {name: "v"})


@given(NAMES)
def test_a_name_is_passed_on_unless_it_is_or_abbreviates_one_of_ours(name):
    ours = SBATCH.ours.keys() | SRUN.ours.keys()
    for options in ({name: "v"}, {"srun": {name: "v"}}):
        if any(option.startswith(name) for option in ours):
            continue
        checked = check_options("p", options)
        assert {**checked.sbatch, **checked.srun} == {name: "v"}


@pytest.mark.parametrize("command", [SBATCH, SRUN], ids=["sbatch", "srun"])
def test_each_option_of_ours_is_refused_with_its_reason_and_so_is_an_abbreviation_of_it_alone(command):
    for name, reason in command.ours.items():
        for written in {name, *(name[:length] for length in range(2, len(name)))}:
            if command.completed(written) == name and not written.endswith("-"):
                with pytest.raises(ConfigError, match=re.escape(f"({reason}); leave it out")):
                    check_options("p", {written: "v"} if command is SBATCH else {"srun": {written: "v"}})


@pytest.mark.parametrize("name", sorted(name for name in SBATCH.others | SRUN.others if len(name) >= 4))
def test_an_option_with_one_letter_left_out_or_doubled_is_recognised(name):
    for place in (place for place, letter in enumerate(name[:-1]) if place and letter != "-"):
        for wrong in (name[:place] + name[place + 1 :], name[: place + 1] + name[place:]):
            is_abbreviation = SBATCH.completed(wrong) != wrong
            assert [("did you mean" in warning) for warning in warnings_of({wrong: "x"})] == ([] if is_abbreviation else [True])


def test_options_of_pyxis_go_to_srun_wherever_they_are_written():
    boxed = {"container-image": "/i.sqsh", "no-container-mount-home": True, "container-brand-new": 1}
    above, below = check_options("p", boxed), check_options("p", {"srun": boxed})
    assert (
        above.srun == below.srun == {"container-image": "/i.sqsh", "no-container-mount-home": None, "container-brand-new": "1"}
    )
    assert (above.sbatch, above.warnings, below.sbatch, below.warnings) == ({}, (), {}, ())
    assert check_options("p", {"container": "/bundle", "container-id": "a"}).sbatch == {
        "container": "/bundle",
        "container-id": "a",
    }


def test_true_is_an_option_without_a_value_and_false_null_and_no_items_leave_it_out():
    left_out = {"hold": False, "qos": None, "nodelist": [], "nodes": None, "partitoin": False}
    for wrapped in ({"exclusive": True, **left_out}, {"srun": {"exclusive": True, **left_out}}):
        checked = check_options("p", wrapped)
        assert ({**checked.sbatch, **checked.srun}, checked.warnings) == ({"exclusive": None}, ())
    assert check_options("p", {"srun": None}).srun == {}
    assert check_options("p", {"nice": 0, "comment": ""}).sbatch == {"nice": "0", "comment": ""}


@pytest.mark.parametrize(("word", "is_on"), [("yes", True), ("On", True), ("no", False), ("OFF", False)])
def test_yes_and_no_are_true_and_false_for_an_option_without_a_value_and_words_for_others(word, is_on):
    assert check_options("p", {"exclusive": word}).sbatch == ({"exclusive": None} if is_on else {})
    assert check_options("p", {"requeue": word}).sbatch == {"requeue" if is_on else "no-requeue": None}
    assert check_options("p", {"container-writable": word}).srun == ({"container-writable": None} if is_on else {})
    assert check_options("p", {"srun": {"mpi": word}}).srun == {"mpi": word}
    assert check_options("p", {"mem-bind": word}).sbatch == {"mem-bind": word}


@given(st.lists(ANY, min_size=1, max_size=3))
def test_any_text_is_a_value_of_srun_and_a_list_is_joined_by_commas(items):
    assert check_options("p", {"srun": {"container-mounts": items}}).srun == {"container-mounts": ",".join(items)}


def test_a_list_of_nodes_may_be_longer_than_a_name():
    nodes = [f"n{number}" for number in range(1000)]
    assert check_options("p", {"exclude": nodes}).sbatch == {"exclude": ",".join(nodes)}


def test_messages_are_one_line_whatever_a_pool_is_called():
    (warning,) = warnings_of({"label": True}, pool="a\nb")
    assert warning == r"pools.a\nb.slurm.label: an option of srun, not of sbatch; write it under pools.a\nb.slurm.srun"


@pytest.mark.parametrize(
    ("of_a", "of_b", "message"),
    [
        ({"container-image": "/a"}, {"container-image": "/b"}, "slurm: container-image is /a in pools.a, /b in pools.b; SLURM"),
        ({"container-image": "/a"}, {}, "slurm: container-image is /a in pools.a, not given in pools.b; SLURM"),
        ({}, {"srun": {"nohome": True}}, "slurm: nohome is not given in pools.a, given in pools.b; SLURM"),
        (
            {"gpu_cmode": "shared"},
            {"gpu_cmode": "exclusive"},
            "slurm: gpu_cmode is shared in pools.a, exclusive in pools.b; SLURM",
        ),
        ({"container-image": "/a"}, {"container-image": "/a"}, None),
        ({"partition": "x", "srun": {"label": True}}, {"partition": "y", "srun": {"mem": 1}}, None),
        ({"no-such-node": 1}, {"no-such-node": True}, "slurm: no-such-node is 1 in pools.a, given in pools.b; SLURM"),
    ],
)
def test_options_of_plugins_that_differ_between_pools_are_a_warning(of_a, of_b, message):
    found = list(review({"a": check_options("a", of_a), "b": check_options("b", of_b)}))
    assert [warning.code for warning in found] == ["plugin_option_differs"] * (message is not None)
    assert message is None or found[0].message.startswith(message)


def test_the_warnings_of_each_pool_are_listed_and_a_misspelling_is_not_taken_for_an_option_of_a_plugin():
    found = review({"a": check_options("a", {"lable": True}), "b": check_options("b", {"partiton": "x"})})
    assert [warning.code for warning in found] == ["unknown_slurm_option"] * 2


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90", 5400),
        ("90:30", 5430),
        ("1:00:00", 3600),
        ("1-12", 129600),
        ("1-0:30", 88200),
        ("1-0:0:5", 86405),
        ("UNLIMITED", None),
    ],
)
def test_time_limits_are_read_as_sbatch_reads_them(text, seconds):
    assert seconds_of(text) == seconds
