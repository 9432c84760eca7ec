"""`mimo-launch schema`."""

import argparse
import json

from launcher.config.json_schema import job_schema
from launcher.exit_code import ExitCode


def run(_: argparse.Namespace) -> int:
    """Print the JSON schema of configs."""
    print(json.dumps(job_schema(), indent=2))
    return ExitCode.SUCCESS
