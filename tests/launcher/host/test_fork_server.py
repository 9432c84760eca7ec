"""The process from which ranks are forked."""

import multiprocessing
import subprocess
import sys

import pytest

FORK_SERVER = """
import multiprocessing, os
from launcher.host import fork_server

def parent():
    return os.getppid()

if __name__ == "__main__":
    fork_server.start_tracker()
    fork_server.start()
    with multiprocessing.get_context("forkserver").Pool(1) as pool:
        server = pool.apply(parent)
        pool.close()  # the server's children ignore SIGTERM, by which a pool is ended otherwise
        pool.join()
    print(server != os.getpid(), os.getpgid(server) == server)
    modules = open(f"/proc/{server}/maps").read()
    print("libtorch" in modules)
"""


@pytest.mark.ranks
def test_the_fork_server_has_imported_torch_and_has_its_own_process_group(tmp_path):
    """Fails if the undocumented functions behind it change."""
    (tmp_path / "serve.py").write_text(FORK_SERVER)
    done = subprocess.run([sys.executable, str(tmp_path / "serve.py")], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.split() == ["True", "True", "True"]
    assert multiprocessing.get_start_method(allow_none=True) in (None, "fork")
