"""Runs of real scripts on real ranks."""

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from launcher.config.reserved_variables import RESERVED_VARIABLES
from tests.launcher.jobs import SMALL, Job, lines_of

pytestmark = pytest.mark.ranks

RANKS = ["[vision r0]", "[language.tp0 r1]", "[language.tp1 r2]"]

COLLECTIVE = """
import torch, torch.distributed as dist, mimo_role
context = mimo_role.current()
total = torch.tensor(context.rank)
dist.all_reduce(total)
print(int(total), context.role.has_language_module)
"""


def test_a_script_runs_on_every_rank_in_its_role(job):
    done = job.run(COLLECTIVE)
    assert (done.returncode, done.stderr) == (0, "")
    assert [lines_of(done.stdout, prefix) for prefix in RANKS] == [["3 False"], ["3 True"], ["3 True"]]


GROUPS = """
import mimo_role, torch
context = mimo_role.current()
module = next(iter(context.role.modules))
group = context.group(module, "tp")
print(mimo_role.RankEnviron.from_environ().groups == {"language": mimo_role.GroupOptions(timeout_s=7.0)}, group.group_desc)
"""


def test_a_modules_group_options_reach_its_ranks(job):
    done = job.run(GROUPS, "modules.language.groups.timeout_s=7")
    assert done.returncode == 0, done.stderr
    assert [lines_of(done.stdout, prefix) for prefix in RANKS] == [["True self"], ["True language.tp"], ["True language.tp"]]


def test_verbose_ranks_print_the_time_of_each_round_of_groups(job):
    done = job.run("print('ran')", "--verbose")
    assert done.returncode == 0
    said = lines_of(done.stderr, "[language.tp1 r2]")
    assert [line.rpartition(":")[0] for line in said] == ["mimo-launch: round 0 (language.tp)"]


def test_the_run_directory_has_config_plan_and_each_ranks_output(job):
    done = job.run("import sys; print('out'); print('err', file=sys.stderr)", "name=other", "--", "--x")
    assert done.returncode == 0
    folder = job.folder / "runs" / "other"
    assert "run_dir: runs/other" in (folder / "config.yaml").read_text()
    assert json.loads((folder / "plan.json").read_text())["entry"]["args"] == ["--x"]
    for rank, prefix in enumerate(RANKS):
        assert (folder / "logs" / "attempt0" / f"rank{rank}.stdout.log").read_text() == "out\n"
        assert (folder / "logs" / "attempt0" / f"rank{rank}.stderr.log").read_text() == "err\n"
        assert lines_of(done.stderr, prefix) == ["err"]


def test_an_earlier_run_is_moved_to_previous_and_what_the_script_wrote_stays(job):
    write = "import mimo_role, pathlib; pathlib.Path(mimo_role.RankEnviron.from_environ().run_dir, 'kept').touch()"
    assert job.run(write).returncode == 0
    assert job.run("print('second')").returncode == 0
    folder = job.folder / "runs" / "small"
    assert (folder / "kept").exists()
    assert (folder / "logs" / "attempt0" / "rank0.stdout.log").read_text() == "second\n"
    (earlier,) = (folder / "previous").iterdir()
    assert (earlier / "logs" / "attempt0" / "rank0.stdout.log").read_text() == ""


AS_MAIN = """
import atexit, multiprocessing, pathlib, signal, sys
atexit.register(print, "at exit")
import neighbour
assert __name__ == "__main__" and sys.modules["__main__"].neighbour is neighbour
assert multiprocessing.get_start_method() == multiprocessing.get_all_start_methods()[0]
assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
print(sys.argv[1:], pathlib.Path(sys.argv[0]).name, pathlib.Path(sys.path[0]).name, pathlib.Path(__file__).name)
"""


@pytest.mark.parametrize("start_method", ["forkserver", "spawn"])
def test_a_script_finds_what_a_fresh_interpreter_would_give_it(job, start_method):
    (job.folder / "neighbour.py").write_text("")
    (job.folder / "launcher.py").write_text("raise ImportError('the user has a launcher of their own')")
    job.program = [str(Path(sys.executable).with_name("mimo-launch"))]  # -m launcher would find the user's
    done = job.run(AS_MAIN, f"runtime.start_method={start_method}", "args=[--steps, 3]", "--", "--name", "a b", "--", "c")
    assert (done.returncode, done.stderr) == (0, "")
    expected = ["['--steps', '3', '--name', 'a b', '--', 'c'] script.py a folder with spaces script.py", "at exit"]
    assert [lines_of(done.stdout, prefix) for prefix in RANKS] == [expected] * 3


DATA_LOADER = """
import torch
from torch.utils.data import DataLoader, Dataset
class Squares(Dataset):
    def __init__(self): self.square = lambda x: x * x  # cannot be pickled
    def __len__(self): return 4
    def __getitem__(self, index): return self.square(index)
print([int(value) for value in DataLoader(Squares(), batch_size=None, num_workers=2, multiprocessing_context="fork")])
"""


def test_data_loader_workers_start_as_they_do_in_a_plain_script(job):
    done = job.run(DATA_LOADER)
    assert done.returncode == 0
    assert [lines_of(done.stdout, prefix) for prefix in RANKS] == [["[0, 1, 4, 9]"]] * 3


def test_a_module_runs_as_python_m_would_run_it(job):
    package = job.folder / "package"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "train.py").write_text("import sys, os; print(__name__, __package__, sys.path[0] == os.getcwd(), sys.argv[1:])")
    job.config = job.config.replace("script: script.py", "module: package.train")
    done = job.run("", "--", "x")
    assert (done.returncode, done.stderr) == (0, "")
    assert lines_of(done.stdout, RANKS[0]) == ["__main__ package True ['x']"]


def test_a_command_finds_its_role_in_the_environment(job):
    report = "echo $RANK/$WORLD_SIZE $MIMO_MODULES $MIMO_HAS_LANGUAGE_MODULE $EXTRA $0 $*"
    command = json.dumps(["bash", "-c", report, "me"])
    job.config = job.config.replace("script: script.py", f"command: {command}")
    done = job.run("", "modules.language.env={EXTRA: of-language}", "--", "a, b", "c")
    assert (done.returncode, done.stderr) == (0, "")
    assert [lines_of(done.stdout, prefix) for prefix in RANKS] == [
        ["0/3 vision 0 me a, b c"],
        ["1/3 language 1 of-language me a, b c"],
        ["2/3 language 1 of-language me a, b c"],
    ]


ENVIRONMENT = """
import os
prefixes = ("MIMO_", "TORCHELASTIC_", "ROLE_", "GROUP_")
print(*sorted(name for name in os.environ if name.startswith(prefixes)))
print(*(os.environ.get(name) for name in ("ALL", "SOME", "OMP_NUM_THREADS", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MIMO_RUN_ID")))
import torch; print(torch.get_num_threads())
"""


def test_the_configured_environment_reaches_all_ranks_or_one_modules(job):
    done = job.run(
        ENVIRONMENT,
        "env={ALL: 1, SOME: 2, MIMO_SHIM: 3, GROUP_BY: 4}",
        "modules.language.env={SOME: 'x, y', OMP_NUM_THREADS: 2}",
    )
    assert done.returncode == 0
    found = [lines_of(done.stdout, prefix) for prefix in RANKS]
    run_id = (job.folder / "runs" / "small" / "run_id").read_text()
    assert found[0][1:] == [f"1 2 1 0 3 {run_id}", "1"]
    assert found[2][1:] == [f"1 x, y 2 2 3 {run_id}", "2"]
    assert set(found[0][0].split()) - RESERVED_VARIABLES == {"MIMO_SHIM", "GROUP_BY"}


@pytest.mark.parametrize(
    "join",
    [
        pytest.param("dist.init_process_group('gloo'); context = mimo_role.init()", id="itself"),
        pytest.param("context = mimo_role.init()", id="by mimo_role"),
    ],
)
def test_a_script_may_join_for_itself(job, join):
    script = f"""
import torch, torch.distributed as dist, mimo_role
assert not dist.is_initialized()
role = mimo_role.RankEnviron.from_environ().role
{join}
assert context.role == role
total = torch.tensor(context.rank); dist.all_reduce(total); print(int(total))
"""
    done = job.run(script, "runtime.join=script")
    assert (done.returncode, done.stderr) == (0, "")
    assert lines_of(done.stdout, RANKS[1]) == ["3"]


def test_a_script_that_joins_twice_gets_a_hint_at_the_setting(job):
    done = job.run("import torch.distributed as dist; dist.init_process_group('gloo')")
    assert done.returncode == 1
    assert "  hint: the launcher has joined torch.distributed before the script started; " in done.stderr
    assert "runtime.join: script" in done.stderr


def test_a_script_may_destroy_the_process_group_itself(job):
    done = job.run("import torch.distributed as dist; dist.barrier(); dist.destroy_process_group(); print('left')")
    assert (done.returncode, done.stderr) == (0, "")
    assert lines_of(done.stdout, RANKS[0]) == ["left"]


ENDINGS = {
    "raise": "raise ValueError('rank one fails\\nin two lines')",
    "exit code": "import sys; sys.exit(7)",
    "exit code at once": "import os; os._exit(7)",
    "exit with text": "import sys; sys.exit('a reason')",
    "signal": "import os, signal; os.kill(os.getpid(), signal.SIGKILL)",
    "interrupt": "raise KeyboardInterrupt",
}

FAIL_ON_RANK_ONE = """
import torch, torch.distributed as dist, mimo_role
dist.barrier()
if mimo_role.current().rank == 1:
    {ending}
while True:
    dist.all_reduce(torch.zeros(1))
"""


@pytest.mark.parametrize(
    ("ending", "code", "told"),
    [
        ("raise", 1, "ValueError: rank one fails"),
        ("exit code", 7, "exit code 7"),
        ("exit code at once", 7, "exit code 7"),
        ("exit with text", 1, "exit code 1 (a reason)"),
        ("signal", 1, "killed by SIGKILL"),
        ("interrupt", 130, "killed by SIGINT (KeyboardInterrupt)"),
    ],
)
def test_the_first_failing_rank_gives_the_exit_code_and_is_named(job, ending, code, told):
    done = job.run(FAIL_ON_RANK_ONE.format(ending=ENDINGS[ending]))
    assert done.returncode == code
    assert f"mimo-launch: rank 1 (language.tp0) failed first: {told}" in done.stderr.splitlines()


@pytest.mark.parametrize(
    ("ending", "code", "named"),
    [
        ("raise ValueError('rank one fails')", 1, "ValueError: rank one fails"),
        ("raise KeyboardInterrupt", 130, "killed by SIGINT (KeyboardInterrupt)"),
    ],
)
def test_a_rank_that_fails_is_named_though_its_peers_end_before_it(job, ending, code, named):
    """Rank 1 closes its connections, so rank 0 fails, and waits at its own end until SIGTERM ends it."""
    leave = "import atexit, signal; atexit.register(signal.pause); atexit.register(dist.destroy_process_group)"
    done = job.run(FAIL_ON_RANK_ONE.format(ending=f"{leave}; {ending}"))
    assert done.returncode == code
    assert f"mimo-launch: rank 1 (language.tp0) failed first: {named}" in done.stderr.splitlines()


def test_a_scripts_traceback_begins_in_the_script(job):
    done = job.run("def inner():\n    raise ValueError('boom')\n\ninner()\n")
    logs = (job.folder / "runs" / "small" / "logs" / "attempt0").glob("rank*.stderr.log")
    shown = next(text for log in logs if (text := log.read_text())).splitlines()
    assert shown[0] == "Traceback (most recent call last):"
    assert shown[1].endswith('script.py", line 4, in <module>')
    assert shown[-1] == "ValueError: boom"
    told = ["  script.py:4 in <module>", "      inner()", "  script.py:2 in inner", "      raise ValueError('boom')"]
    report = done.stderr.splitlines()
    assert report[0].endswith(" failed first: ValueError: boom")
    assert report[2:6] == told


@pytest.mark.parametrize(
    ("raised", "told"),
    [
        ("class Stop(BaseException): pass\nraise Stop('why')", "Stop: why"),
        ("import asyncio\nraise asyncio.CancelledError('why')", "CancelledError: why"),
        ("class Mute(ValueError):\n    def __str__(self): raise RuntimeError\nraise Mute", "Mute: <exception str() failed>"),
        ("raise ValueError('x' * 1_000_000)", "xxx"),
        ("raise ValueError(lambda: 0)", "ValueError: <function <lambda>"),
    ],
    ids=["base", "cancelled", "mute", "huge", "cannot be pickled"],
)
def test_exceptions_of_every_kind_are_in_the_ranks_log(job, raised, told):
    done = job.run(raised)
    assert done.returncode == 1
    assert " failed first: " in done.stderr
    logs = (job.folder / "runs" / "small" / "logs" / "attempt0").glob("rank*.stderr.log")
    assert any(told in log.read_text() for log in logs)
    assert "torch/multiprocessing" not in done.stderr


def test_threads_are_waited_for_while_the_job_is_still_joined(job):
    script = """
import atexit, threading, torch.distributed as dist
def late():
    threading.main_thread().join(0.5)
    print("thread", dist.is_initialized())
threading.Thread(target=late).start()
atexit.register(lambda: print("at exit", dist.is_initialized()))
atexit.register(dist.barrier)
"""
    done = job.run(script)
    assert (done.returncode, done.stderr) == (0, "")
    assert [lines_of(done.stdout, prefix) for prefix in RANKS] == [["thread True", "at exit True"]] * 3


@pytest.mark.parametrize("code", [0, 75], ids=["done", "requeue"])
def test_a_rank_that_ends_well_or_is_preempted_leaves_the_job_together_with_the_others(job, code):
    script = """
import sys, torch.distributed as dist
class End:
    def __del__(self, say=print, is_joined=dist.is_initialized): say("joined", is_joined())
end = End()
sys.exit(int(sys.argv[1]))
"""
    done = job.run(script, "--", str(code))
    assert done.returncode == code, done.stderr
    assert [lines_of(done.stdout, prefix) for prefix in RANKS] == [["joined False"]] * 3


def test_the_first_of_many_ranks_to_end_is_found_however_early_it_ends(job):
    script = "import os, time\nif os.environ['RANK'] == '0': os._exit(7)\ntime.sleep(60)"
    done = job.run(script, "modules.language={tp: 1, dp: 19}", "runtime.join=script")
    assert done.returncode == 7
    assert "mimo-launch: rank 0 (vision) failed first: exit code 7" in done.stderr


def test_simultaneous_exit_is_not_a_hang(job):
    assert job.run("import os; os._exit(0)", "runtime.join=script").returncode == 0


def test_a_restart_begins_without_what_the_failed_attempt_left_running(job):
    script = """
import os, subprocess, sys, mimo_role
rank, attempt = mimo_role.current().rank, os.environ["TORCHELASTIC_RESTART_COUNT"]
if attempt == "0":
    if rank == 1:
        child = subprocess.Popen(["sleep", "1000"], start_new_session=True)
        with open("writing", "w") as file: file.write(str(child.pid))
        os.rename("writing", "started")
    while not os.path.exists("started"): pass
    sys.exit(3)
if rank == 0:
    try: print("left:", open(f"/proc/{open('started').read()}/cmdline").read())
    except FileNotFoundError: print("left: ")
"""
    done = job.run(script, "runtime.max_restarts=1")
    assert done.returncode == 0
    assert lines_of(done.stdout, RANKS[0]) == ["left: "]
    assert "failed first: exit code 3; restarting all ranks (1 of 1)\n" in done.stderr


def test_after_a_failure_ranks_have_the_grace_time_to_end(job):
    script = """
import os, signal, threading, time, torch.distributed as dist
told = threading.Event()
signal.signal(signal.SIGTERM, lambda *_: told.set())
dist.barrier()
open("past" + os.environ["RANK"], "w").close()
if os.environ["RANK"] == "1":
    while not (os.path.exists("past0") and os.path.exists("past2")): pass  # its death would break their barrier
    os._exit(3)
while not told.wait(0.1): pass
for tenth in range(1000):
    print(tenth)
    time.sleep(0.1)
"""
    done = job.run(script, "runtime.grace_s=1")
    assert done.returncode == 3
    # torch's own patience is 30 s, 300 lines.
    assert 1 <= len(lines_of(done.stdout, RANKS[0])) < 200


@pytest.mark.parametrize("ending", ["sys.exit()", "sys.exit(0)", "os._exit(0)", "pass"])
def test_every_kind_of_exit_code_0_is_a_success(job, ending):
    # Without a process group, whose other ranks a sudden end would fail.
    done = job.run(f"import os, sys\n{ending}", "runtime.join=script")
    assert (done.returncode, done.stderr) == (0, "")


def test_ranks_restart_after_a_failure_as_often_as_the_config_allows(job):
    script = """
import os, sys, mimo_role
attempt = int(os.environ["TORCHELASTIC_RESTART_COUNT"])
print("attempt", attempt, mimo_role.current().role.has_language_module)
sys.exit(0 if attempt == 2 else 9)
"""
    done = job.run(script, "runtime.max_restarts=2")
    assert done.returncode == 0
    attempts = [f"attempt {attempt} True" for attempt in range(3)]
    assert [line for line in lines_of(done.stdout, RANKS[2]) if line] == attempts
    assert job.run(script, "runtime.max_restarts=1").returncode == 9


def test_output_is_passed_on_whole_whatever_it_is(job):
    script = r"""
import sys
sys.stdout.buffer.write(b"caf\xc3\xa9 \xff\n")
sys.stdout.write("in "); sys.stdout.flush(); sys.stdout.write("parts\n\nno end of line")
"""
    done = job.run(script)
    assert lines_of(done.stdout, RANKS[0]) == ["café \N{REPLACEMENT CHARACTER}", "in parts", "", "no end of line"]


def test_two_runs_do_not_share_a_run_directory(job):
    first = job.start("import time; print('up', flush=True); time.sleep(60)")
    try:
        assert first.stdout.readline().endswith("up\n")
        second = job.run("print('second')")
        assert second.returncode == 2
        assert "is in use by a run that is still going on" in second.stderr
    finally:
        first.terminate()
        first.communicate(timeout=30)
    assert first.returncode == 143


def test_a_run_directory_that_cannot_be_written_is_refused(job):
    (job.folder / "runs").write_text("a file")
    done = job.run("")
    assert done.returncode == 2
    assert done.stderr.startswith("mimo-launch: run_dir: ")


def test_a_closed_stdout_stops_neither_the_run_nor_its_exit_code(job):
    script = "import sys\nfor number in range(20000): print(number)\nsys.exit(5)"
    job.write(script)
    command = f"{shlex.join(job.command())} | head -1; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(
        ["bash", "-c", command],
        cwd=job.folder,
        env=job.whole_environ(),
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )
    assert done.returncode == 5
    assert len(done.stdout.splitlines()) == 1
    assert "Traceback" not in done.stderr
    assert (job.folder / "runs" / "small" / "logs" / "attempt0" / "rank0.stdout.log").stat().st_size > 0


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_streams_are_empty_and_no_other_file_takes_their_place(job, closed):
    job.program = ["sh", "-c", f'exec "$0" "$@" {closed}', *job.program]
    done = job.run("import sys; print(repr(sys.stdin.read()))", "runtime.join=script")
    assert (done.returncode, done.stderr) == (0, "")
    logs = (job.folder / "runs" / "small" / "logs" / "attempt0").glob("rank*.stdout.log")
    assert [log.read_text() for log in logs] == ["''\n"] * 3


def test_arguments_and_folders_may_be_no_text(job):
    folder = job.folder / os.fsdecode(b"b\xe9d")
    folder.mkdir()
    done = Job(folder, SMALL).run(
        "import os, sys; print(*map(ascii, (sys.argv[1], os.getcwd()[-3:])))", "--", os.fsdecode(b"\xff")
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert lines_of(done.stdout, RANKS[0]) == [r"'\udcff' 'b\udce9d'"]
