"""Breakpoints in ranks of a job that a user has started at a terminal; and a debugger that connects to a port."""

import json
import socket
import sys

import pytest

from tests.launcher.terminal_user import CTRL_C, CTRL_D, at_terminal

pytestmark = [pytest.mark.ranks, pytest.mark.timeout(180)]

ONE = """\
name: one
layout: colocated
modules: {language: {}}
entry: {script: script.py}
runtime: {backend: gloo}
"""
PROMPT = "(Pdb) "


@pytest.fixture
def one(job):
    job.config = ONE
    return job


EVERY_KIND = """
import pdb, sys, torch.distributed as dist
secret = 41
breakpoint()
secret += 1
pdb.set_trace()
secret += 1
dist.breakpoint(0)
try:
    secret / 0
except ZeroDivisionError:
    secret += 1
    pdb.post_mortem()
print("the end", secret, sys.stdin.isatty())
"""


def test_the_only_rank_of_a_job_may_use_the_terminal_in_any_case(one):
    with at_terminal(one, EVERY_KIND) as user:
        for commands in (["p secret", "c"], ["p secret * 2", "c"], ["up", "p secret", "c"], ["p secret", "p __name__", "q"]):
            for command in commands:
                user.wait_for(PROMPT)
                user.type(f"{command}\n")
        assert user.finish() == 0
    answers = [line for line in user.seen.splitlines() if line.isdigit() or line == "'__main__'"]
    assert answers == ["41", "84", "43", "44", "'__main__'"]
    assert "[language r0] the end 44 True\n" in user.seen
    assert "has the terminal" not in user.seen


IN_TURN = """
import torch, torch.distributed as dist, mimo_role
rank = mimo_role.current().rank
print("ready", rank, flush=True)
secret = 40 + rank
if rank < 2:
    breakpoint()
dist.barrier()
print("after", rank, secret)
"""


def test_ranks_have_the_terminal_one_after_the_other(job):
    with at_terminal(job, IN_TURN, "--debug", "0-1") as user:
        shown = []
        for _ in range(2):
            user.wait_for(" has the terminal\n")
            shown.append(user.seen.splitlines()[-1])
            user.wait_for(PROMPT)
            user.type("p 'the secret', secret\n")
            user.wait_for(PROMPT)
            user.type("secret += 100\n")
            user.wait_for(PROMPT)
            user.type("c\n")
        assert user.finish() == 0, user.seen
    headings = sorted(line for line in user.seen.splitlines() if "has the terminal" in line)
    assert headings == ["mimo-launch: rank 0 (vision) has the terminal", "mimo-launch: rank 1 (language.tp0) has the terminal"]
    assert sorted(line for line in user.seen.splitlines() if line.startswith("('the")) == [
        "('the secret', 40)",
        "('the secret', 41)",
    ]
    for line in ("[vision r0] after 0 140", "[language.tp0 r1] after 1 141", "[language.tp1 r2] after 2 42"):
        assert line in user.seen.splitlines()


ASKS_BEFORE_IT_ENDS = sys.version_info >= (3, 14)
"""pdb, which then exits with code 1."""
QUIT = "exit code 1" if ASKS_BEFORE_IT_ENDS else "bdb.BdbQuit"


@pytest.mark.parametrize(
    ("typed", "code", "shown"),
    [
        pytest.param("q\n", 1, f"rank 0 (language) failed first: {QUIT}", id="quit"),
        pytest.param(CTRL_D, 1, f"rank 0 (language) failed first: {QUIT}", id="end of input"),
        pytest.param(CTRL_C, 130, "mimo-launch: interrupted", id="Ctrl-C"),
    ],
)
def test_a_user_may_leave_at_a_breakpoint(one, typed, code, shown):
    with at_terminal(one, "breakpoint()\nprint('went on')", "runtime.grace_s=5") as user:
        user.wait_for(PROMPT)
        user.type(typed)
        if ASKS_BEFORE_IT_ENDS and code == 1:
            user.wait_for("[y/n]")
            user.type("y\n")
        assert user.finish() == code, user.seen
    assert shown in user.seen
    assert "Traceback" not in user.seen


def test_a_breakpoint_without_a_terminal_names_the_option(job):
    script = "import mimo_role\nif mimo_role.current().rank == 1:\n    breakpoint()\n    print('went on')\nmimo_role.current()"
    done = job.run(script)
    assert done.returncode == 1
    (headline,) = [line for line in done.stderr.splitlines() if "failed first" in line]
    assert headline.startswith("mimo-launch: rank 1 (language.tp0) failed first: ")
    assert "a breakpoint in rank 1, which has no terminal" in headline
    assert "mimo-launch run --debug 1" in headline
    assert "went on" not in done.stdout


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--debug", "9"], "--debug 9: no such rank; there are ranks 0-2"),
        (["--debug", "x"], "--debug x: not a list of ranks; write 3, or 0,4-5"),
        (["--debug-port", "70000"], "--debug-port 70000: not a port from 1 to 65535"),
    ],
)
def test_a_wrong_option_is_refused_in_one_line(job, words, message):
    port = [] if "--debug-port" in words else ["--debug-port", "5678"]  # which needs no terminal
    done = job.run("", *words, *port)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", f"mimo-launch: {message}\n")


def test_pdb_needs_a_terminal(job):
    done = job.run("", "--debug", "0")
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith("mimo-launch: --debug: standard input is not a terminal; ")
    assert "--debug-port" in line


class Client:
    """A small client of the Debug Adapter Protocol."""

    def __init__(self, port):
        self._connection = socket.create_connection(("127.0.0.1", port), timeout=60)
        self._file = self._connection.makefile("rwb")
        self._number = 0

    def request(self, command, **arguments):
        self._number += 1
        message = {"seq": self._number, "type": "request", "command": command, "arguments": arguments}
        data = json.dumps(message).encode()
        self._file.write(b"Content-Length: %d\r\n\r\n" % len(data) + data)
        self._file.flush()

    def wait_for(self, name):
        """The body of the next response to this command, or of the next event of this name."""
        while True:
            message = self._receive()
            if name in (message.get("command"), message.get("event")):
                return message.get("body", {})

    def close(self):
        self._file.close()
        self._connection.close()

    def _receive(self):
        size = 0
        while line := self._file.readline().strip():
            name, _, value = line.partition(b": ")
            size = int(value) if name == b"Content-Length" else size
        assert size, "the debugger has closed the connection"
        return json.loads(self._file.read(size))


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


TO_DEBUG = """
import mimo_role
secret = 40 + mimo_role.current().rank
print("after", secret)
"""


def test_a_debugger_connects_to_the_port_of_a_rank(job):
    pytest.importorskip("debugpy")
    port = free_port()
    process = job.start(TO_DEBUG, "--debug", "1", "--debug-port", str(port))
    try:
        waits = f"rank 1 (language.tp0) waits for a debugger (debugpy) at 127.0.0.1:{port}\n"
        assert any(waits in line for line in process.stderr)  # debugpy's own messages come before
        client = Client(port)
        client.request("initialize", adapterID="test")
        client.wait_for("initialize")
        client.request("attach", justMyCode=False)
        client.wait_for("initialized")
        client.request("setBreakpoints", source={"path": str(job.folder / "script.py")}, breakpoints=[{"line": 4}])
        client.request("configurationDone")
        thread = client.wait_for("stopped")["threadId"]
        client.request("stackTrace", threadId=thread)
        client.request(
            "setExpression", expression="secret", value="7", frameId=client.wait_for("stackTrace")["stackFrames"][0]["id"]
        )
        client.wait_for("setExpression")
        client.request("continue", threadId=thread)
        out, _ = process.communicate(timeout=60)
        client.close()
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == 0
    assert sorted(out.splitlines()) == ["[language.tp0 r1] after 7", "[language.tp1 r2] after 42", "[vision r0] after 40"]
