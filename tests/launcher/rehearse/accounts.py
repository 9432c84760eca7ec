"""What `--memory` needs."""

import pytest

from launcher.errors import LaunchError
from launcher.rehearse.memory import check_torch


def counts_memory():
    """Whether the installed torch does."""
    try:
        check_torch()
    except LaunchError:
        return False
    return True


NEEDS_ACCOUNTS = pytest.mark.skipif(not counts_memory(), reason="rehearse --memory needs a later torch")
