"""The rows of docs/guides/torchrun.md that no other test covers: what is equal under both launchers, and what differs."""

import json
import os
import re
import select
import signal
import time
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from torch.distributed.run import get_args_parser

from launcher import cli
from launcher.config.loader import load
from launcher.plan.planner import make_plan
from tests.unchanged.launches import (
    CONFIG,
    ROOT,
    WORLD_SIZE,
    Program,
    by_mimo_launch,
    by_torchrun,
    copy_project,
    mimo_launch_command,
    torchrun_command,
)
from tests.unchanged.terminal import INTERRUPT, at_a_terminal, read_to_end

pytestmark = [pytest.mark.ranks, pytest.mark.timeout(450)]

PAGE = ROOT / "docs" / "guides" / "torchrun.md"
GIVEN = "the first line\nthe second line\n"
WITHOUT_HANGUPS = ["env", "--ignore-signal=HUP"]
"""As by `nohup`, which also redirects the output."""
OF_ONE_RUN = {"MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_RUN_ID", "TORCHELASTIC_ERROR_FILE"}


class BothLaunches:
    """A program under both launchers."""

    def __init__(self, folder, program, given="", wrapper=()):
        self.torchrun = by_torchrun(program, folder / "torchrun", given, wrapper)
        self.mimo_launch = by_mimo_launch(program, folder / "mimo-launch", given, wrapper)

    def facts(self, name):
        """What `process_facts.py` has printed under one name, by rank: under torchrun, under mimo-launch."""
        return [[json.loads(rank.stdout)[name] for rank in launch.ranks] for launch in (self.torchrun, self.mimo_launch)]


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    program = Program("process_facts.py", ("--steps", "3"))
    return BothLaunches(tmp_path_factory.mktemp("facts"), program, GIVEN, WITHOUT_HANGUPS)


def test_the_variables_of_a_rank_are_those_of_torchrun(both):
    for expected, found in zip(*both.facts("variables"), strict=True):
        assert {name for name in found.keys() - expected.keys() if not name.startswith("MIMO_")} == {"GLOO_SOCKET_IFNAME"}
        assert expected.keys() - found.keys() == {"TORCHELASTIC_SIGNALS_TO_HANDLE"}
        different = {name for name in found.keys() & expected.keys() if found[name] != expected[name]}
        assert different - OF_ONE_RUN == {"ROLE_NAME"}
        assert (expected["ROLE_NAME"], found["ROLE_NAME"]) == ("default", "mimo")


@pytest.mark.parametrize("name", ["argv", "main", "path", "folder", "threads of torch"])
def test_a_script_finds_itself_as_under_torchrun(both, name):
    expected, found = both.facts(name)
    assert found == expected


def test_the_path_of_the_script_is_absolute(both):
    _, found = both.facts("argv")
    assert found == [["FOLDER/project/process_facts.py", "--steps", "3"]] * WORLD_SIZE


def test_ranks_read_what_the_launcher_reads(both):
    assert both.facts("first line of stdin") == [["the first line\n", None]] * 2


def test_each_rank_leads_a_process_group_and_a_session(both):
    assert both.facts("leads its process group and session") == [[[True, True]] * WORLD_SIZE] * 2


def test_the_command_line_and_the_parent_of_a_forked_rank_are_the_fork_servers(both):
    expected, found = both.facts("command line")
    assert all(words[-3:] == ["FOLDER/project/process_facts.py", "--steps", "3"] for words in expected)
    assert all("launcher/worker/program.py" in " ".join(words) for words in found)
    assert both.facts("parent")[1] == found


def test_torch_looks_as_if_it_were_not_imported_yet(both):
    expected, found = both.facts("imported")
    assert (expected, found) == ([[]] * WORLD_SIZE, [["numpy", "mimo_role"]] * WORLD_SIZE)
    expected, found = both.facts("import hooks")
    assert found == [["HiddenModules", *hooks] for hooks in expected]


def test_a_rank_has_a_thread_that_answers_the_agent(both):
    assert both.facts("threads") == [[["MainThread"]] * 2, [["MainThread", "mimo_role diagnostics"]] * 2]


def test_ranks_ignore_sigusr1_and_what_mimo_launch_was_started_with(both):
    expected, found = both.facts("ignored signals")
    assert expected == [["SIGPIPE", "SIGXFSZ"]] * WORLD_SIZE
    assert found == [["SIGHUP", "SIGPIPE", "SIGUSR1", "SIGXFSZ"]] * WORLD_SIZE


def test_ranks_of_one_machine_have_one_hash_seed(both):
    expected, found = both.facts("hash")
    assert len(set(expected)) == WORLD_SIZE
    assert len(set(found)) == 1


def test_ranks_that_seed_nothing_draw_different_numbers(both):
    expected, found = both.facts("drawn")
    assert len({*expected, *found}) == 2 * WORLD_SIZE


def test_the_garbage_collector_leaves_out_what_the_fork_server_has_imported(both):
    assert both.facts("frozen objects") == [[False] * WORLD_SIZE, [True] * WORLD_SIZE]


def test_forked_ranks_ask_for_huge_pages_where_the_system_leaves_that_to_programs(both):
    asked, found = both.facts("asks for huge pages")
    choice = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    may_ask = choice.exists() and "[madvise]" in choice.read_text() and glibc() >= (2, 35) and linux() >= (5, 8)
    assert (asked, found) == ([False] * WORLD_SIZE, [may_ask] * WORLD_SIZE)


def linux():
    return tuple(int(part) for part in re.findall(r"\d+", os.uname().release)[:2])


def glibc():
    return tuple(int(part) for part in os.confstr("CS_GNU_LIBC_VERSION").split()[1].split("."))


def test_variables_that_a_script_sets_before_it_imports_torch_have_their_effect(tmp_path):
    both = BothLaunches(tmp_path, Program("late_variables.py"))
    assert [rank.stdout for rank in both.mimo_launch.ranks] == [rank.stdout for rank in both.torchrun.ranks]
    assert both.mimo_launch.ranks[0].stdout == "2 DebugLevel.INFO 10\n"
    for expected, found in zip(both.torchrun.ranks, both.mimo_launch.ranks, strict=True):
        assert expected.stderr == ""
        assert re.findall(r"\b[A-Z]+_[A-Z_]+\b(?=, set by the script)", found.stderr) == ["TORCH_SHOW_CPP_STACKTRACES"]


def test_modules_beside_the_script_are_found_before_those_of_mimo_launch(tmp_path):
    both = BothLaunches(tmp_path, Program("shadows/train.py"))
    assert both.mimo_launch.code == both.torchrun.code == 0
    assert both.mimo_launch.ranks == both.torchrun.ranks
    assert "launcher.trainer launcher/trainer.py launcher of the script" in both.mimo_launch.ranks[0].stdout


@pytest.fixture(scope="module")
def left_behind(tmp_path_factory):
    """`leaves_helper.py` under both launchers. What torchrun leaves is ended afterwards."""
    both = BothLaunches(tmp_path_factory.mktemp("leaves"), Program("leaves_helper.py"))
    yield both.torchrun, both.mimo_launch
    for rank in both.torchrun.ranks:
        os.kill(int(rank.stdout.split()[0]), signal.SIGKILL)


def test_what_ranks_leave_running_ends_with_mimo_launch(left_behind):
    left, ended = ([is_running(int(rank.stdout.split()[0])) for rank in launch.ranks] for launch in left_behind)
    assert (left, ended) == ([True] * WORLD_SIZE, [False] * WORLD_SIZE)


def is_running(pid):
    with suppress(FileNotFoundError):
        return Path(f"/proc/{pid}/comm").read_text() == "sleep\n"
    return False


def test_a_breakpoint_without_a_terminal_raises_and_names_the_option(tmp_path):
    both = BothLaunches(tmp_path, Program("breaks.py"))
    assert (both.torchrun.code, both.mimo_launch.code) == (1, 1)
    assert "bdb.BdbQuit" in both.torchrun.ranks[0].stderr
    assert re.search(r"bdb.BdbQuit: a breakpoint in rank 0, .*--debug 0", both.mimo_launch.ranks[0].stderr)


SHUTDOWN = "--shutdown-timeout"
"""Of newer releases; torch 2.11 waits for 30 s."""

COMMANDS = {
    "torchrun": lambda program, project: torchrun_command(
        program, project, *[f"{SHUTDOWN}=2"] * (SHUTDOWN in get_args_parser()._option_string_actions)
    ),
    "mimo-launch": lambda program, project: mimo_launch_command(program, project, "runtime.grace_s=2"),
}


@contextmanager
def waiting_ranks(launcher, folder, *args):
    """`waits.py` at a terminal, once both ranks wait: the launcher's process, the terminal, the ranks' process ids."""
    project = copy_project(folder / launcher)
    with at_a_terminal(COMMANDS[launcher](Program("waits.py", args), project), project) as (process, terminal):
        ready = [project / f"ready{rank}" for rank in range(WORLD_SIZE)]
        while not all(file.exists() for file in ready):
            assert process.poll() is None, read_to_end(terminal)
            time.sleep(0.05)
        yield process, terminal, [int(file.read_text()) for file in ready]


def saved(folder, launcher):
    """What each rank has saved after."""
    return [file.read_text().split() for file in sorted((folder / launcher / "project").glob("saved*"))]


@pytest.mark.parametrize(("launcher", "code"), [("torchrun", 1), ("mimo-launch", 130)])
def test_ctrl_c_reaches_scripts_as_keyboard_interrupt(launcher, code, tmp_path):
    with waiting_ranks(launcher, tmp_path) as (process, terminal, _):
        os.write(terminal, INTERRUPT)
        printed = read_to_end(terminal)
        assert process.wait() == code, printed
    assert saved(tmp_path, launcher) == [["KeyboardInterrupt"]] * WORLD_SIZE


@pytest.mark.parametrize(
    ("launcher", "received"), [("torchrun", ["KeyboardInterrupt"]), ("mimo-launch", ["KeyboardInterrupt", "SIGTERM"])]
)
def test_ranks_that_do_not_end_get_one_signal_after_the_other(launcher, received, tmp_path):
    with waiting_ranks(launcher, tmp_path, "stubborn") as (process, terminal, pids):
        os.write(terminal, INTERRUPT)
        printed = read_to_end(terminal)
        assert process.wait() != 0, printed
        assert not any(Path(f"/proc/{pid}").exists() for pid in pids)
    assert saved(tmp_path, launcher) == [received] * WORLD_SIZE


@pytest.mark.parametrize(("launcher", "code", "is_terminal"), [("torchrun", 1, True), ("mimo-launch", 143, False)])
def test_sigterm_reaches_scripts_whose_output_is_a_file(launcher, code, is_terminal, tmp_path):
    with waiting_ranks(launcher, tmp_path) as (process, terminal, _):
        process.terminate()
        printed = read_to_end(terminal)
        assert process.wait() == code, printed
    assert saved(tmp_path, launcher) == [["SIGTERM"]] * WORLD_SIZE
    assert printed.count(f"terminal: True, {is_terminal}") == WORLD_SIZE


@pytest.mark.parametrize(("launcher", "left"), [("torchrun", WORLD_SIZE), ("mimo-launch", 0)])
def test_ranks_end_with_a_launcher_that_is_killed(launcher, left, tmp_path):
    with waiting_ranks(launcher, tmp_path) as (process, _, pids):
        ranks = [os.pidfd_open(pid) for pid in pids]
        process.kill()
        process.wait()
        running = still_running(ranks, timeout_s=30 if left == 0 else 2)
        for rank in running:
            signal.pidfd_send_signal(rank, signal.SIGKILL)
        assert len(running) == left
        assert still_running(ranks, timeout_s=30) == []
    for rank in ranks:
        os.close(rank)


def still_running(pidfds, timeout_s):
    """Those of the processes that have not ended within a time."""
    running, deadline = set(pidfds), time.monotonic() + timeout_s
    while running and (left_s := deadline - time.monotonic()) > 0:
        running -= set(select.select(running, [], [], left_s)[0])
    return sorted(running)


def test_a_line_that_was_not_ended_is_kept_when_the_rank_ends_without_clean_up(left_behind):
    expected, found = ([rank.stdout.partition("\n")[2] for rank in launch.ranks] for launch in left_behind)
    assert expected == found == ["unfinished"] * WORLD_SIZE


OPTIONS = sorted({option for action in get_args_parser()._actions for option in action.option_strings if option[:2] == "--"})
ALSO_HERE = {"--help", "--node-rank", "--rdzv-endpoint"}


@pytest.mark.parametrize("option", [option for option in OPTIONS if "_" not in option and option not in ALSO_HERE])
def test_an_option_of_torchrun_that_is_not_one_here_is_refused(option, capsys):
    assert cli.main(["run", "job.yaml", option]) == 2
    assert f"mimo-launch: unknown option {option}" in capsys.readouterr().err
    assert f"`{option}" in PAGE.read_text(encoding="utf-8")


def test_variables_that_set_options_of_torchrun_have_no_effect(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PET_NPROC_PER_NODE", "3")
    mimo_launch_command(Program("ddp.py"), copy_project(tmp_path))
    assert cli.main(["plan", str(tmp_path / "project" / CONFIG), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["topology"]["world_size"] == WORLD_SIZE


def test_the_number_of_nodes_is_not_a_range(tmp_path, capsys):
    mimo_launch_command(Program("ddp.py"), copy_project(tmp_path))
    pools = 'pools={a: {nodes: "1:4", procs_per_node: 2}}'
    assert cli.main(["plan", str(tmp_path / "project" / CONFIG), pools]) == 2
    assert "pools.a.nodes='1:4' is not a whole number" in capsys.readouterr().err


def test_a_dollar_sign_is_an_interpolation_in_the_config_and_not_after_two_dashes(tmp_path, monkeypatch):
    monkeypatch.setenv("STEPS", "7")
    mimo_launch_command(Program("ddp.py"), copy_project(tmp_path))
    path = tmp_path / "project" / CONFIG
    config, _ = load(path, ["args=['${oc.env:STEPS}']"])
    plan = make_plan(config, path, ["${oc.env:STEPS}"])
    assert plan.entry.args == ("7", "${oc.env:STEPS}")
