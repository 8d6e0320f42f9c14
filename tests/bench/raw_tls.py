"""The measure of an exchange: a loop over a plain TLS 1.3 socket on loopback, from one buffer into another.

`python -m tests.bench.raw_tls MEGABYTES CERTIFICATE KEY` is the receiving process: it prints its port, fills a buffer that it
has touched before, answers a byte when it is full, and begins anew until the connection ends.
"""

import socket
import ssl
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Self

CHUNK = 1 << 20


class RawTls:
    """A sender with its receiving process."""

    def __init__(self, megabytes: float, identity: Path) -> None:
        """identity: a folder with node.crt and node.key."""
        files = [str(identity / name) for name in ("node.crt", "node.key")]
        self._payload = memoryview(bytes(int(megabytes * 1e6)))
        command = [sys.executable, "-m", "tests.bench.raw_tls", str(megabytes), *files]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        port = int(self._process.stdout.readline())
        context = ssl.create_default_context(cafile=files[0])
        context.check_hostname = False
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        self._socket = context.wrap_socket(socket.create_connection(("127.0.0.1", port)))
        cipher = self._socket.cipher()
        self.cipher = cipher[0] if cipher else ""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._socket.close()
        self._process.wait(30)
        assert self._process.stdout is not None
        self._process.stdout.close()

    def seconds(self) -> float:
        """Sends the payload once; from the first byte until the other side has it all."""
        began = time.perf_counter()
        for start in range(0, len(self._payload), CHUNK):
            self._socket.sendall(self._payload[start : start + CHUNK])
        assert self._socket.recv(1) == b"k"
        return time.perf_counter() - began


def receive(nbytes: int, certificate: str, key: str) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.load_cert_chain(certificate, key)
    buffer = memoryview(bytearray(b"\1" * nbytes))
    with socket.create_server(("127.0.0.1", 0)) as listening:
        print(listening.getsockname()[1], flush=True)
        plain, _ = listening.accept()
        with context.wrap_socket(plain, server_side=True, suppress_ragged_eofs=True) as connection:
            while True:
                got = 0
                while got < nbytes:
                    more = connection.recv_into(buffer[got : got + CHUNK])
                    if not more:
                        return
                    got += more
                connection.sendall(b"k")


if __name__ == "__main__":
    receive(int(float(sys.argv[1]) * 1e6), sys.argv[2], sys.argv[3])
