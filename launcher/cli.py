"""The console script: the command that a command line names, messages of its errors, and exit codes."""

import logging
import os
import sys
from importlib import import_module
from typing import NoReturn

from launcher.command_line import parse
from launcher.commands.messages import say
from launcher.exit_code import ExitCode
from launcher.host.interpreter_exit import exit_without_teardown
from mimo_role.errors import MimoError


def entry() -> NoReturn:
    """The console script: run the command and end the process with its exit code."""
    _open_closed_streams()
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    exit_without_teardown(main())


def _open_closed_streams() -> None:
    """Open /dev/null in place of standard streams that the caller has closed, so that no other file gets their numbers."""
    for number, (name, mode) in enumerate({"stdin": "r", "stdout": "w", "stderr": "w"}.items()):
        if getattr(sys, name) is None:
            os.dup2(os.open(os.devnull, os.O_RDWR), number)
            os.set_inheritable(number, True)
            setattr(sys, name, os.fdopen(number, mode, closefd=False))


def main(argv: list[str] | None = None) -> int:
    """Run one command and return the exit code.

    Raises:
        SystemExit: after `--help` or `--version`.
    """
    try:
        arguments = parse(sys.argv[1:] if argv is None else argv)
        logging.basicConfig(level=logging.INFO if arguments.verbose else logging.WARNING, format="mimo-launch: %(message)s")
        code: int = import_module(f"launcher.commands.{arguments.command}").run(arguments)
        sys.stdout.flush()
    except MimoError as error:
        say(str(error))
        return ExitCode.USER_ERROR
    except KeyboardInterrupt:
        say("interrupted")
        return ExitCode.INTERRUPTED
    except BrokenPipeError:
        # The reader of stdout has exited, as in `mimo-launch plan ... | head`.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return ExitCode.SUCCESS
    return code
