"""The store over which ranks join."""

import socket
from datetime import timedelta
from pathlib import Path

import pytest
from torch.distributed import TCPStore

from mimo_role import rank_store


@pytest.mark.parametrize(("address", "table"), [("127.0.0.1", "tcp"), ("::1", "tcp6")])
def test_the_store_listens_in_the_family_of_its_address(address, table):
    try:
        store = rank_store.serve(address, timedelta(seconds=20))
    except OSError:
        pytest.skip(f"this machine has no {address}")
    listening = {line.split()[1] for line in Path(f"/proc/net/{table}").read_text().splitlines() if " 0A " in line}
    assert f"{store.port:04X}" in {local.rpartition(":")[2] for local in listening}
    client = TCPStore(address, store.port, wait_for_workers=False, timeout=timedelta(seconds=20))
    client.set("key", "value")
    assert store.get("key") == b"value"


def test_an_address_of_another_host_is_refused():
    with pytest.raises(OSError, match="assign requested address"):
        rank_store.serve(socket.inet_ntoa(b"\xc0\x00\x02\x01"))
