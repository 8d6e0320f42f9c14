"""A cable that can be pulled: passes connections on to another port, and cuts all of them on demand."""

import asyncio
import contextlib
import threading
from types import TracebackType
from typing import Self

from tests.daemons import free_port


class Proxy:
    """Listens on a loopback port of its own while it is entered; runs in a thread."""

    def __init__(self, target: str) -> None:
        """target: host:port of whoever is dialled in the end."""
        host, _, port = target.rpartition(":")
        self._target = host, int(port)
        self._port = free_port()
        self.address = f"127.0.0.1:{self._port}"
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self.accepted = 0  # connections so far
        self._writers: set[asyncio.StreamWriter] = set()

    def __enter__(self) -> Self:
        self._thread.start()
        self._server = asyncio.run_coroutine_threadsafe(self._listen(), self._loop).result(10)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        asyncio.run_coroutine_threadsafe(self._close(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def cut(self) -> int:
        """Resets all connections, both ways; returns how many there were."""
        return asyncio.run_coroutine_threadsafe(self._cut(), self._loop).result(10)

    async def _listen(self) -> asyncio.Server:
        return await asyncio.start_server(self._accept, "127.0.0.1", self._port)

    async def _cut(self) -> int:
        ends = list(self._writers)
        for writer in ends:
            writer.transport.abort()
        return len(ends) // 2

    async def _close(self) -> None:
        self._server.close()
        await self._cut()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        await asyncio.gather(*others, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            far_reader, far_writer = await asyncio.open_connection(*self._target)
        except OSError:
            writer.transport.abort()
            return
        self.accepted += 1
        ends = {writer, far_writer}
        self._writers |= ends
        ways = [_carry(reader, far_writer), _carry(far_reader, writer)]
        await asyncio.gather(*ways)
        self._writers -= ends


async def _carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """One way, until either end is gone, which ends the other."""
    with contextlib.suppress(OSError):
        while data := await reader.read(1 << 16):
            writer.write(data)
            await writer.drain()
    writer.transport.abort()
