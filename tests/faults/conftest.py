import pytest

from tests.cluster.conftest import agents, hosts
from tests.launcher.jobs import Job

__all__ = ["agents", "hosts"]


@pytest.fixture
def job(tmp_path):
    return Job(tmp_path)
