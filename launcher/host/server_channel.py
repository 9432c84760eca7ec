"""The agent's end of the connection to the fork server.

The two talk over a pair of connected sockets, which need no name in the file system. Each message is a length of four bytes
and JSON; a request carries the descriptors of the rank's standard streams (`SCM_RIGHTS`, see unix(7)).
"""

import errno
import json
import select
import socket
import struct
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

LENGTH = struct.Struct("!I")


class Channel:
    """The agent's end of the connection to one fork server."""

    def __init__(self, own: socket.socket) -> None:
        self._socket = own
        self._buffer = b""
        self._answers: list[dict[str, Any]] = []
        self.server = 0
        """The server's process id, once it has reported it."""
        self.codes: dict[int, int] = {}
        """The exit codes of processes that have ended."""
        self.importing: int | None = None
        """Which module of `runtime.preload` is being imported, once the server has reported it."""
        self.imported = 0
        """How many modules have been imported, once all have."""
        self.refusal: str | None = None
        """Why the server could not import them."""
        self.is_closed = False
        """Whether the server has exited."""

    def ask(self, request: Mapping[str, Any], streams: Sequence[int]) -> dict[str, Any]:
        """Send a request, and wait for its answer."""
        self.send(request, streams)
        while not self._answers and not self.is_closed:
            self.receive(timeout_s=None)
        return self._answers.pop(0) if self._answers else {"error": errno.ECONNRESET}

    def send(self, message: Mapping[str, Any], streams: Sequence[int] = ()) -> None:
        """Send a message. If the server has died, it is lost."""
        data = json.dumps(message).encode()
        with suppress(BrokenPipeError, ConnectionResetError):
            socket.send_fds(self._socket, [LENGTH.pack(len(data))], list(streams))
            self._socket.sendall(data)

    def wait(self, timeout_s: float) -> bool:
        """Wait until there is something to receive; return whether there is."""
        return bool(select.select([self._socket], [], [], timeout_s)[0])

    def receive(self, timeout_s: float | None = 0) -> None:
        """Read what the server has reported; wait for it until the timeout."""
        while not self.is_closed and select.select([self._socket], [], [], timeout_s)[0]:
            timeout_s = 0
            try:
                data = self._socket.recv(1 << 16)
            except ConnectionResetError:
                data = b""
            self.is_closed = not data
            self._buffer += data
            self._take_messages()

    def close(self) -> None:
        """Close this end: the server exits."""
        self.is_closed = True
        self._socket.close()

    def _take_messages(self) -> None:
        while len(self._buffer) >= LENGTH.size:
            end = LENGTH.size + LENGTH.unpack_from(self._buffer)[0]
            if len(self._buffer) < end:
                return
            message, self._buffer = json.loads(self._buffer[LENGTH.size : end]), self._buffer[end:]
            if "server" in message:
                self.server = message["server"]
            elif "code" in message:
                self.codes[message["pid"]] = message["code"]
            elif "importing" in message:
                self.importing = message["importing"]
            elif "imported" in message:
                self.imported = message["imported"]
            elif "refused" in message:
                self.refusal = message["refused"]
            else:
                self._answers.append(message)
                # An earlier process may have had the id of one that has been started.
                self.codes.pop(message.get("pid"), None)
