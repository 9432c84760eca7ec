"""The TCPStore over which the ranks of one job join."""

import socket
from datetime import timedelta

from torch.distributed import TCPStore  # type: ignore[attr-defined]

_BACKLOG = 4096
"""Connections that may wait to be accepted; the kernel lowers it to `net.core.somaxconn`."""


def serve(address: str, timeout: timedelta = timedelta(seconds=300)) -> TCPStore:
    """Start a store on a free port of an address of this host, IPv4 or IPv6.

    torch's server looks up the name of each client. By default its socket is of IPv6, where an IPv4 client has an address that
    is not in `/etc/hosts`: each rank then costs a query to the name server, and 5 s if that does not answer. So the socket is
    of the family of the address.

    Raises:
        OSError: the address is not of this host.
    """
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    listening = socket.create_server((address, 0), family=family, backlog=_BACKLOG)
    port = listening.getsockname()[1]
    return TCPStore(address, port, is_master=True, timeout=timeout, wait_for_workers=False, master_listen_fd=listening.detach())
