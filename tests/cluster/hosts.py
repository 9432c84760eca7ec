"""Hosts on one machine: network namespaces on one bridge, each with an address, a host name and an /etc/hosts of its own.

Needs root and iproute2. What one host sends to another crosses real network interfaces.
"""

import itertools
import os
import shlex
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

_NUMBERS = itertools.count()


class Hosts:
    """Some hosts that reach each other and nothing else."""

    def __init__(self, names: Sequence[str], folder: Path, network: str = "10.78.0") -> None:
        self.names = list(names)
        self.address = {name: f"{network}.{11 + index}" for index, name in enumerate(self.names)}
        self._tag = f"mimo{os.getpid()}-{next(_NUMBERS)}"
        self._folder = folder
        lines = ["127.0.0.1 localhost", *(f"{address} {name}" for name, address in self.address.items())]
        self.hosts_file = folder / "hosts"
        self.hosts_file.write_text("\n".join(lines) + "\n")

    def __enter__(self) -> "Hosts":
        try:
            self._ip(f"netns add {self._tag}-switch")
            self._ip(f"-n {self._tag}-switch link add br0 type bridge")
            self._ip(f"-n {self._tag}-switch link set br0 up")
            for index, (name, address) in enumerate(self.address.items()):
                space = f"{self._tag}-{name}"
                self._ip(f"netns add {space}")
                self._ip(f"-n {space} link set lo up")
                self._ip(f"-n {self._tag}-switch link add v{index} type veth peer name net0 netns {space}")
                self._ip(f"-n {self._tag}-switch link set v{index} master br0 up")
                self._ip(f"-n {space} addr add {address}/24 dev net0")
                self._ip(f"-n {space} link set net0 up")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for name in [*self.names, "switch"]:
            subprocess.run(["ip", "netns", "del", f"{self._tag}-{name}"], capture_output=True, check=False)

    def popen(
        self,
        host: str,
        command: Sequence[str],
        *,
        cwd: Path,
        env: Mapping[str, str],
        hosts_file: Path | None = None,
        ahead_s: int = 0,
    ) -> subprocess.Popen[str]:
        """Start a command on a host; the caller ends it. Its CLOCK_MONOTONIC is ahead of this machine's by some seconds."""
        clock = f"unshare --time --monotonic {ahead_s} " if ahead_s else ""
        script = (
            f"hostname {host}; mount --bind {shlex.quote(str(hosts_file or self.hosts_file))} /etc/hosts; "
            f"exec {clock}env --default-signal=INT,HUP,QUIT {shlex.join(command)}"
        )
        # Not `ip netns exec`, which mounts another /sys.
        return subprocess.Popen(
            ["nsenter", f"--net=/run/netns/{self._tag}-{host}", "unshare", "--uts", "--mount", "bash", "-c", script],
            cwd=cwd,
            env=dict(env),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    @contextmanager
    def cut_off(self, host: str) -> Iterator[None]:
        """Lose all that goes to and from a host, for the time of a block: no connection is closed."""
        link = f"-n {self._tag}-switch link set v{self.names.index(host)}"
        self._ip(f"{link} down")
        try:
            yield
        finally:
            self._ip(f"{link} up")

    @staticmethod
    def _ip(words: str) -> None:
        subprocess.run(["ip", *words.split()], check=True, capture_output=True, text=True)
