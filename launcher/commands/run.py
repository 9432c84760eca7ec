"""`mimo-launch run`."""

import argparse
import gc

from launcher.agent.early_server import EarlyServer
from launcher.host.init_process import become_child_of_init


def run(arguments: argparse.Namespace) -> int:
    """Run this node's ranks of a job to their end."""
    gc.disable()  # until torch is imported: collecting what stays takes a tenth of the time up to then
    become_child_of_init()
    with EarlyServer() as early:
        # What reads the config and makes the plan is imported while the server imports torch.
        from launcher.commands.local_run import run_locally

        return run_locally(arguments, early)
