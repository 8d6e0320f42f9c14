"""A service manager's end of sd_notify(3), for tests: a socket that collects what a service tells."""

import os
import select
import socket
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.daemons import wait_until


class Manager:
    """Listens at a path, or where that begins with @ at an abstract address."""

    def __init__(self, address: str | Path) -> None:
        self.address = str(address)
        self.told: list[str] = []  # lines, in the order in which they came
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind("\0" + self.address[1:] if self.address.startswith("@") else self.address)
        if not self.address.startswith("@"):
            os.chmod(self.address, 0o777)  # as systemd's

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._socket.close()
        if not self.address.startswith("@"):
            Path(self.address).unlink(missing_ok=True)

    def hear(self) -> list[str]:
        """All that was told so far."""
        while select.select([self._socket], [], [], 0)[0]:
            self.told += self._socket.recv(65536).decode().splitlines()
        return self.told

    def wait_for(self, beginning: str, times: int = 1, seconds: float = 60.0) -> str:
        """The line that begins like this, once so many were told; the last of them."""
        found = wait_until(
            lambda: (
                lines if len(lines := [line for line in self.hear() if line.startswith(beginning)]) >= times else None
            ),
            f"{beginning} is told {times} times; told: {self.told}",
            seconds,
        )
        return str(found[-1])
