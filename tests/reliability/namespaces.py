"""Hosts on one machine: network namespaces on two switches with a cable between them that can be pulled. Needs root."""

import os
import subprocess
from types import TracebackType
from typing import Self

NETWORK = "10.77.5"


class Unavailable(Exception):
    """This machine can't make namespaces; the sentence says why."""


class Hosts:
    """So many hosts at either switch, the first switch's first; they are gone in the end."""

    def __init__(self, *at_switch: int) -> None:
        self._sizes = at_switch
        self._switches = f"conlora-{os.getpid()}-switches"
        self.names = [f"conlora-{os.getpid()}-{i}" for i in range(sum(at_switch))]
        self.addresses = [f"{NETWORK}.{i + 1}" for i in range(sum(at_switch))]

    def __enter__(self) -> Self:
        try:
            self._build()
        except Unavailable:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for name in (*self.names, self._switches):
            subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)

    def launcher(self, host: int) -> list[str]:
        """What a command has to begin with to run there."""
        return ["ip", "netns", "exec", self.names[host]]

    def pull(self) -> None:
        """Takes the cable between the switches out."""
        ip("-n", self._switches, "link", "set", "cable0", "down")

    def plug(self) -> None:
        """Puts it back."""
        ip("-n", self._switches, "link", "set", "cable0", "up")

    def _build(self) -> None:
        ip("netns", "add", self._switches)
        inside = ("-n", self._switches, "link")
        ip(*inside, "add", "cable0", "type", "veth", "peer", "name", "cable1")
        for switch in range(2):
            ip(*inside, "add", f"switch{switch}", "type", "bridge")
            ip(*inside, "set", f"cable{switch}", "master", f"switch{switch}", "up")
            ip(*inside, "set", f"switch{switch}", "up")
        for host, (name, address) in enumerate(zip(self.names, self.addresses, strict=True)):
            ip("netns", "add", name)
            ip(
                "-n",
                name,
                "link",
                "add",
                "eth0",
                "type",
                "veth",
                "peer",
                "name",
                f"host{host}",
                "netns",
                self._switches,
            )
            ip(*inside, "set", f"host{host}", "master", f"switch{int(host >= self._sizes[0])}", "up")
            ip("-n", name, "addr", "add", f"{address}/24", "dev", "eth0")
            for device in ("eth0", "lo"):
                ip("-n", name, "link", "set", device, "up")


def ip(*words: str) -> None:
    """The command; raises Unavailable where it does not do it."""
    try:
        done = subprocess.run(["ip", *words], capture_output=True, text=True, check=False)
    except OSError as error:
        raise Unavailable(f"ip can't be run ({error})") from None
    if done.returncode:
        raise Unavailable(f"ip {' '.join(words)}: {done.stderr.strip()}")
