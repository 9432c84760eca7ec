"""`mimo-launch init`."""

import argparse
import shlex
from pathlib import Path

from launcher.exit_code import ExitCode
from launcher.init_project import write_project


def run(arguments: argparse.Namespace) -> int:
    """Write a project into a folder, and print what comes next."""
    names = write_project(arguments.folder, arguments.template)
    print(f"wrote {', '.join(names[:-1])} and {names[-1]}. Next:")
    if arguments.folder.resolve() != Path.cwd():
        print(f"  cd {shlex.quote(str(arguments.folder))}")
    print("  mimo-launch plan job.yaml    # which rank runs what")
    print("  mimo-launch run job.yaml     # train")
    return ExitCode.SUCCESS
