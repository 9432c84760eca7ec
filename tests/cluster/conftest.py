import itertools
import os
import shutil
import subprocess

import pytest

from tests.cluster.agents import Agents
from tests.cluster.hosts import Hosts

PORTS = itertools.count(29500)


@pytest.fixture(scope="session")
def hosts(tmp_path_factory):
    """Three hosts that see each other. Fails with the reason where they cannot be made; make test leaves these tests out."""
    if missing := [program for program in ("ip", "nsenter", "unshare") if shutil.which(program) is None]:
        pytest.fail(f"hosts are network namespaces, made by programs that are not here: {', '.join(missing)}")
    if os.geteuid() != 0:
        pytest.fail("make test-cluster needs root: its hosts are network namespaces, which only root can make")
    try:
        three = Hosts(["alpha", "beta", "gamma"], tmp_path_factory.mktemp("hosts")).__enter__()
    except subprocess.CalledProcessError as error:
        pytest.fail(f"hosts are network namespaces, which cannot be made here: {error.stderr.strip()}")
    yield three
    three.__exit__()


@pytest.fixture
def agents(hosts, tmp_path):
    found = Agents(hosts, tmp_path, next(PORTS))
    yield found
    found.close()
