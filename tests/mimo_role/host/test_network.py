import os
import socket
import subprocess
import sys

import pytest

from mimo_role import MimoError
from mimo_role.host.network import (
    HostError,
    address_towards,
    addresses_of,
    interface_of,
    interface_towards,
    is_local,
    is_loopback,
)

ELSEWHERE = "192.0.2.1"
"""An address for documentation, which no machine has (RFC 5737)."""


def has_ipv6():
    try:
        with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True


needs_ipv6 = pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6 loopback address")


@pytest.mark.parametrize(
    ("host", "addresses"),
    [("127.0.0.1", ["127.0.0.1"]), (ELSEWHERE, [ELSEWHERE]), ("::1", ["::1"]), ("2001:db8::1", ["2001:db8::1"])],
)
def test_an_address_resolves_to_itself(host, addresses):
    assert addresses_of(host) == addresses


def test_a_name_has_each_of_its_addresses_once():
    found = addresses_of("localhost")
    assert found
    assert len(found) == len(set(found))
    assert all(is_loopback(address) for address in found)


@pytest.mark.parametrize(
    "host",
    [
        pytest.param("no-such-host.invalid", id="an unknown name"),
        pytest.param("", id="nothing"),
        pytest.param("a" * 64 + ".example", id="a label too long"),
        pytest.param("a..b", id="an empty label"),
        pytest.param("300.1.1.1", id="a number too large"),
        pytest.param("two words", id="a blank"),
    ],
)
def test_an_unresolvable_name_is_an_error_with_name_and_host(host):
    with pytest.raises(HostError, match=f"^'{host}' cannot be resolved on {socket.gethostname()}: .") as caught:
        addresses_of(host)
    assert isinstance(caught.value, MimoError)


@pytest.mark.parametrize(
    ("address", "answer"),
    [
        ("127.0.0.1", True),
        ("127.0.1.1", True),
        ("::1", True),
        ("0.0.0.0", False),
        (ELSEWHERE, False),
        ("fe80::1%lo", False),
        ("2001:db8::1", False),
    ],
)
def test_loopback_addresses_are_recognized(address, answer):
    assert is_loopback(address) is answer


def test_own_addresses_are_recognized():
    assert is_local("127.0.0.1")
    assert not is_local(ELSEWHERE)
    assert not is_local("2001:db8::1")


@needs_ipv6
def test_an_own_ipv6_address_is_local():
    assert is_local("::1")
    assert interface_of("::1") == "lo"
    assert interface_towards("::1") == "lo"
    assert address_towards("::1") == "::1"


def test_the_route_to_this_machine_is_its_loopback_interface():
    assert address_towards("127.0.0.1") == "127.0.0.1"
    assert interface_of("127.0.0.1") == "lo"
    assert interface_towards("127.0.0.1") == interface_towards("localhost") == "lo"


def test_an_address_without_an_interface_has_none():
    assert interface_of(ELSEWHERE) is None
    assert interface_of("2001:db8::1") is None


def test_a_route_starts_at_an_own_address():
    address = address_towards(ELSEWHERE)
    if address is None:
        pytest.skip("this machine has no way out")
    assert is_local(address)
    assert interface_of(address) == interface_towards(ELSEWHERE)


# A new network namespace has no interface that is up, so nothing can be reached from it.
ALONE = """
from mimo_role.host.network import address_towards, interface_towards
print(address_towards("192.0.2.1"), interface_towards("192.0.2.1"), address_towards("2001:db8::1"))
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make a network namespace")
def test_without_a_route_there_is_no_address_and_no_interface():
    done = subprocess.run(
        ["unshare", "--net", sys.executable, "-c", ALONE], capture_output=True, text=True, timeout=30, check=True
    )
    assert done.stdout == "None None None\n"
