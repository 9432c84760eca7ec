"""Process 1 of a container: reaps every process that has lost its parent, which the kernel leaves to it."""

import os
import signal
import sys
from contextlib import suppress
from typing import NoReturn

_NOT_PASSED_ON = {signal.SIGKILL, signal.SIGSTOP, signal.SIGCHLD, signal.SIGTTIN, signal.SIGTTOU, signal.SIGPIPE}


def become_child_of_init() -> None:
    """If this is process 1, leave that place to a parent that reaps orphans and passes signals on; go on in its child."""
    if os.getpid() != 1:
        return
    child = os.fork()
    if child:
        _be_init(child)
    _take_terminal()


def _take_terminal() -> None:
    """The child gets the terminal's Ctrl-C itself: in a process group of its own, the terminal's foreground one."""
    os.setpgid(0, 0)
    if sys.stdin is not None and sys.stdin.isatty():
        handler = signal.signal(signal.SIGTTOU, signal.SIG_IGN)
        with suppress(OSError):
            os.tcsetpgrp(sys.stdin.fileno(), os.getpid())
        signal.signal(signal.SIGTTOU, handler)


def _be_init(child: int) -> NoReturn:
    for number in signal.valid_signals() - _NOT_PASSED_ON:
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, lambda number, _: _pass_on(child, number))
    while True:
        pid, status = os.wait()
        if pid == child:
            code = os.waitstatus_to_exitcode(status)
            os._exit(code if code >= 0 else 128 - code)


def _pass_on(child: int, number: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(child, number)
