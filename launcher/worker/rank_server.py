"""The fork server: starts the ranks of one node, and reports how they end.

It imports torch and the modules of `runtime.preload` once; every rank begins as a copy of it. A forked rank leaves `serve`
and continues as the main program would in a new interpreter: it has a session of its own, the signal handlers, streams and
environment of a new process, and it ends as the interpreter ends a program, without taking apart what the server has
imported (`process_end`).
"""

import errno
import gc
import json
import linecache
import os
import select
import signal
import socket
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn

from launcher.errors import LaunchError
from launcher.host import limits
from launcher.host.server_channel import LENGTH
from launcher.worker import late_variables, process_end
from launcher.worker.folder_paths import folders_resolved_once
from mimo_role.host import environ

_STREAMS = 3
_RESTORED = (signal.SIGPIPE, signal.SIGXFSZ)
"""Python ignores them in its own process."""
_NOT_STARTED = 127
_NEEDED = (
    "mimo_role.lifecycle",
    "launcher.worker.entrypoint",
    "launcher.worker.debugging",
    "encodings.idna",  # imported by Python when it first looks up the name of a host
)
"""What ranks need, torch among it."""


def serve(descriptor: int, kind: str, *, started_with: Collection[str]) -> list[str]:
    """Start processes until the agent closes its end of the socket.

    It returns in the processes of forked ranks only.

    Args:
        descriptor: of the socket to the agent.
        kind: `preload` to import torch, `bare` for a server that starts commands only.
        started_with: the modules that were imported before mimo-launch's own.

    Returns:
        The command of the rank's program, and its arguments.
    """
    ignored = _leave_the_terminal()
    server = _Server(socket.socket(fileno=descriptor), ignored)
    server.send({"server": os.getpid()})
    if kind == "preload":
        _import_torch()
    preload = server.take_job()
    if kind == "preload":
        _get_ready(server, preload, started_with)
    words = server.run()
    if words is None:
        os._exit(0)
    return words


def _leave_the_terminal() -> set[signal.Signals]:
    """Take a session of its own, and ignore signals; return those that were ignored already, as by `nohup`.

    Ctrl-C in a terminal signals its foreground process group, and a scheduler every process of a job. This process must
    stay, to report the exit codes of the ranks.
    """
    os.setsid()
    ignored = {number for number in signal.Signals if signal.getsignal(number) == signal.SIG_IGN} - {*_RESTORED}
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    return ignored


def _import_torch() -> None:
    """Import what every rank needs. It does not initialize CUDA, which a forked child could not use afterwards."""
    process_end.prepare()
    gc.disable()  # importing torch allocates many objects that stay; collecting them takes a fifth of the time
    late_variables.remember()
    with folders_resolved_once():
        for name in _NEEDED:
            import_module(name)


def _get_ready(server: "_Server", preload: Mapping[str, Any] | None, started_with: Collection[str]) -> None:
    """Import the modules that the job preloads, and prepare what forked ranks share."""
    from launcher.worker import main_program

    late_variables.list_modules()
    main_program.list_modules()
    process_end.keep_modules()
    if preload is not None:
        _preload(server, preload, started_with)
        late_variables.list_modules()
        main_program.list_modules()
    _forget_sources()
    # Collecting does not write to frozen objects, so their memory stays shared with the ranks.
    gc.freeze()
    gc.enable()


def _forget_sources() -> None:
    """Forget the sources that torch has read: an ending interpreter would free each line. Those without a file stay."""
    for name, entry in list(linecache.cache.items()):
        if len(entry) > 1 and entry[1] is not None:
            del linecache.cache[name]


def _preload(server: "_Server", data: Mapping[str, Any], started_with: Collection[str]) -> None:
    """Import the modules that the job preloads, and report it. If one does not fit a fork, the server ends."""
    from launcher.host.preload_list import PreloadList
    from launcher.worker import preload

    wanted = PreloadList.from_json(data)
    try:
        found = preload.import_modules(wanted, started_with, lambda at: server.send({"importing": at}))
    except LaunchError as error:
        server.send({"refused": str(error)})
        os._exit(0)
    process_end.keep_preloaded(found)
    server.send({"imported": len(wanted.modules)})


class _Server:
    """The server's loop."""

    def __init__(self, own: socket.socket, ignored: set[signal.Signals]) -> None:
        self._socket = own
        self._ignored = ignored
        self._children: set[int] = set()

    def take_job(self) -> Mapping[str, Any] | None:
        """Wait for the job: take its environment, and return the modules to import (`PreloadList`)."""
        received = self._receive()
        if received is None:
            os._exit(0)
        job, _ = received
        environ.replace(job["environ"])
        preload: Mapping[str, Any] | None = job["preload"]
        return preload

    def run(self) -> list[str] | None:
        """Answer requests. In a forked rank it returns the rank's command and arguments, in the server `None` at the end."""
        with _child_signals() as woken:
            while True:
                ready = select.select([self._socket.fileno(), woken], [], [])[0]
                if woken in ready:
                    os.read(woken, 1 << 12)
                    self._report_ended()
                if self._socket.fileno() in ready:
                    received = self._receive()
                    if received is None:
                        return None
                    words = self._start(*received)
                    if words is not None:
                        break
        return words

    def send(self, message: dict[str, Any]) -> None:
        """Send a message to the agent, unless that has ended."""
        data = json.dumps(message).encode()
        with suppress(OSError):
            self._socket.sendall(LENGTH.pack(len(data)) + data)

    def _receive(self) -> tuple[dict[str, Any], list[int]] | None:
        try:
            head, streams, _, _ = socket.recv_fds(self._socket, LENGTH.size, _STREAMS)
        except ConnectionResetError:
            return None
        if len(head) < LENGTH.size:
            return None
        (left,), parts = LENGTH.unpack(head), []
        while left:
            parts.append(self._socket.recv(left))
            left -= len(parts[-1])
            if not parts[-1]:
                return None
        return json.loads(b"".join(parts)), streams

    def _start(self, request: dict[str, Any], streams: list[int]) -> list[str] | None:
        pid = -1
        answer: dict[str, Any] = {"error": errno.EMFILE}  # descriptors that this process has no room for are dropped
        if len(streams) == _STREAMS:
            if request["kind"] == "run":
                _read_plan(request["words"])
            try:
                pid = os.fork()
            except OSError as error:
                answer = {"error": error.errno}
        if pid == 0:
            return self._become_rank(request, streams)
        if pid > 0:
            self._children.add(pid)
            answer = {"pid": pid}
        for stream in streams:
            os.close(stream)
        self.send(answer)
        return None

    def _become_rank(self, request: dict[str, Any], streams: list[int]) -> list[str]:
        os.setsid()
        self._socket.close()
        _take_streams(streams)
        self._restore_signals()
        limits.restore_open_files(request["open_files"])
        environ.replace(request["environ"])
        words: list[str] = request["words"]
        if request["kind"] == "exec":
            _execute(words)
        return [request["kind"], *words]

    def _restore_signals(self) -> None:
        """Those of a process that the agent's own parent would have started. A rank ignores SIGUSR1 until it handles it: a
        scheduler warns all processes by it."""
        for number in {signal.SIGINT, signal.SIGTERM, signal.SIGCHLD} - self._ignored:
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)

    def _report_ended(self) -> None:
        for pid in list(self._children):
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                self._children.remove(pid)
                self.send({"pid": pid, "code": os.waitstatus_to_exitcode(status)})


def _read_plan(words: list[str]) -> None:
    """Read the plan before the first rank is forked. If it cannot be read, the rank reports that."""
    from launcher.worker import entrypoint

    with suppress(Exception):
        entrypoint.plan_of(Path(words[0]))


@contextmanager
def _child_signals() -> Iterator[int]:
    """A descriptor from which a byte can be read after each SIGCHLD."""
    reader, writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    try:
        yield reader
    finally:
        signal.set_wakeup_fd(-1)
        os.close(reader)
        os.close(writer)


def _take_streams(streams: list[int]) -> None:
    for target, stream in enumerate(streams):
        os.dup2(stream, target)
    for stream in streams:
        if stream >= _STREAMS:
            os.close(stream)


def _execute(words: list[str]) -> NoReturn:
    for number in _RESTORED:
        signal.signal(number, signal.SIG_DFL)
    try:
        os.execvp(words[0], words)
    except OSError as error:
        os.write(2, f"mimo-launch: cannot start {words[0]}: {error.strerror}\n".encode())
        os._exit(_NOT_STARTED)
