"""Addresses and interfaces of this machine, and those by which it reaches others."""

import fcntl
import ipaddress
import socket
import struct
from pathlib import Path

from mimo_role.errors import MimoError

_SIOCGIFADDR = 0x8915  # netdevice(7)
_IPV6_ADDRESSES = Path("/proc/net/if_inet6")


class HostError(MimoError, OSError):
    """A host name or address that cannot be used."""


def addresses_of(host: str) -> list[str]:
    """The addresses of a host, as this machine resolves its name.

    Raises:
        HostError: the name cannot be resolved here.
    """
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise HostError(f"{host!r} cannot be resolved on {socket.gethostname()}: {error}") from None
    return list(dict.fromkeys(str(info[4][0]) for info in found))


def is_loopback(address: str) -> bool:
    """Whether an address is one of the loopback interface."""
    return ipaddress.ip_address(address.partition("%")[0]).is_loopback


def is_local(address: str) -> bool:
    """Whether an address is one of this machine's own."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            probe.bind((address, 0))
        except OSError:
            return False
    return True


def address_towards(address: str) -> str | None:
    """This machine's own address on the route to another; `None` if there is no route. Nothing is sent."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((address, 9))
        except OSError:
            return None
        return str(probe.getsockname()[0])


def interfaces() -> list[str]:
    """The names of this machine's interfaces, without the loopback interface."""
    return [name for _, name in socket.if_nameindex() if name != "lo"]


def address_of(interface: str) -> str | None:
    """The IPv4 address of an interface; `None` if it has none."""
    request = struct.pack("256s", interface.encode()[:15])
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            return socket.inet_ntoa(fcntl.ioctl(probe.fileno(), _SIOCGIFADDR, request)[20:24])
        except OSError:
            return None


def interface_of(address: str) -> str | None:
    """The name of the interface that has an address, such as `eth0`; `None` if none is found."""
    if ":" in address:
        return _interface_of_ipv6(address)
    return next((name for _, name in socket.if_nameindex() if address_of(name) == address), None)


def interface_towards(host: str) -> str | None:
    """The interface by which this machine reaches a host, or has its address if the host is this machine itself.

    Raises:
        HostError: the name cannot be resolved here.
    """
    for address in addresses_of(host):
        own = address if is_local(address) else address_towards(address)
        if own is not None and (name := interface_of(own)) is not None:
            return name
    return None


def _interface_of_ipv6(address: str) -> str | None:
    wanted = ipaddress.IPv6Address(address.partition("%")[0]).packed.hex()
    try:
        lines = _IPV6_ADDRESSES.read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    return next((fields[5] for line in lines if (fields := line.split())[0] == wanted), None)
