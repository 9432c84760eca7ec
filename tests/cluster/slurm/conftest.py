import os

import pytest

from tests.cluster.slurm.lab import BIN, ROOT, Lab


@pytest.fixture(scope="session")
def cluster(tmp_path_factory):
    """One cluster of four nodes for all tests; the repository's files lie in a folder with a space."""
    if os.geteuid() != 0:
        pytest.fail("the cluster tests start a SLURM cluster and need root; make test leaves them out")
    cwd = tmp_path_factory.mktemp("a user's home")
    for name in ("examples", "launcher", "mimo_role"):
        (cwd / name).symlink_to(ROOT / name)
    lab = Lab.start(4, cwd, str(BIN))
    try:
        yield lab
    finally:
        Lab.stop()


@pytest.fixture
def lab(cluster):
    yield cluster
    cluster.clear()
