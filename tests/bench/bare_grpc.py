"""What gRPC itself makes of an exchange: a bare stream over mutual TLS on loopback, with nobody who looks at the bytes.

`python -m tests.bench.bare_grpc MEGABYTES IDENTITY` is the receiving process: it prints its port, takes chunks until it has so
much, drops them, answers a byte, and begins anew until the stream ends.
"""

import asyncio
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import grpc
from tests.bench.raw_tls import CHUNK

from conlora.daemon.background import steady_memory
from conlora.net.credentials import SERVICE_OPTIONS, accepting_credentials, dialling_credentials
from conlora.net.identity import Identity, Peer, load_identity

METHOD = "Bare"
SERVICE = "bench.Bare"


class BareGrpc:
    """A sender with its receiving process."""

    def __init__(self, megabytes: float, identity: Path) -> None:
        """identity: a node's folder of key and certificate, which both ends show and trust."""
        self._payload = memoryview(bytes(int(megabytes * 1e6)))
        command = [sys.executable, "-m", "tests.bench.bare_grpc", str(megabytes), str(identity)]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        self.pid = self._process.pid  # of the receiving end
        assert self._process.stdout is not None
        address = f"127.0.0.1:{int(self._process.stdout.readline())}"
        mine = load_identity(identity)
        credentials, options = dialling_credentials(mine, _itself(mine, address))
        self._loop = asyncio.new_event_loop()
        self._channel = self._in_loop(self._dial(address, credentials, options))

    async def _dial(self, address: str, credentials: grpc.ChannelCredentials, options: Any) -> Any:
        channel = grpc.aio.secure_channel(address, credentials, options=options)
        self._call = channel.stream_stream(f"/{SERVICE}/{METHOD}")()
        return channel

    def _in_loop(self, work: Any) -> Any:
        return self._loop.run_until_complete(work)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._in_loop(self._call.done_writing())
        self._in_loop(self._channel.close())
        self._loop.close()
        self._process.wait(30)
        assert self._process.stdout is not None
        self._process.stdout.close()

    def seconds(self) -> float:
        """Sends the payload once; from the first chunk until the other side has it all."""
        began = time.perf_counter()
        self._in_loop(self._send())
        return time.perf_counter() - began

    async def _send(self) -> None:
        for start in range(0, len(self._payload), CHUNK):
            await self._call.write(bytes(self._payload[start : start + CHUNK]))  # gRPC takes nothing else
        assert await self._call.read() == b"k"


def _itself(identity: Identity, address: str) -> Peer:
    return Peer("itself", identity.node_id, address, identity.certificate)


async def receive(nbytes: int, identity: Identity) -> None:
    ended = asyncio.Event()

    async def take(chunks: AsyncIterator[bytes], _context: Any) -> AsyncIterator[bytes]:
        got = 0
        async for chunk in chunks:
            got += len(chunk)
            if got == nbytes:
                got = 0
                yield b"k"
        ended.set()

    service = grpc.aio.server(options=SERVICE_OPTIONS)
    handler = grpc.stream_stream_rpc_method_handler(take)
    service.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, {METHOD: handler}),))
    credentials = accepting_credentials(lambda: identity, lambda: [_itself(identity, "127.0.0.1:1")])
    print(service.add_secure_port("127.0.0.1:0", credentials), flush=True)
    await service.start()
    await ended.wait()
    await service.stop(1)


if __name__ == "__main__":
    steady_memory()
    asyncio.run(receive(int(float(sys.argv[1]) * 1e6), load_identity(Path(sys.argv[2]))))
