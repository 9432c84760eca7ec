import pytest

from tests.launcher.jobs import Job


@pytest.fixture
def job(tmp_path):
    folder = tmp_path / "a folder with spaces"
    folder.mkdir()
    return Job(folder)
