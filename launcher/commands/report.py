"""`mimo-launch report`."""

import argparse

from launcher.commands.found_run import run_of
from launcher.errors import LaunchError
from launcher.exit_code import ExitCode
from launcher.run_report import text
from launcher.run_report.page import write_page
from launcher.run_report.run_record import read_run, with_timelines


def run(arguments: argparse.Namespace) -> int:
    """Print a run's report, or write its page."""
    for option, given in (("--step", arguments.step), ("--out", arguments.out)):
        if given is not None and not arguments.html:
            raise LaunchError(f"{option}: only with --html")
    job, files, plan = run_of(arguments.job, or_rehearsal=True)
    record = read_run(files, plan, job.hosts(plan))
    if arguments.html:
        if record.rehearsal is not None:
            raise LaunchError(f"--html: {record.path}: a rehearsal has no page; leave out --html to print its result")
        page = write_page(with_timelines(record, files, arguments.step), arguments.out or files.page_file)
        print(f"wrote {page}")
    else:
        print(text.as_json(record) if arguments.json else text.as_text(record))
    return ExitCode.SUCCESS
