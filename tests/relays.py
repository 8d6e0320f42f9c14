"""A wire between a dialler and a peer's address that can fail as networks do: silently, in one direction, or with a reset."""

import asyncio
import contextlib
from typing import Self

from tests.daemons import free_port

FORTH, BACK = "forth", "back"  # from the dialler, and to it


class Relay:
    """Passes TCP on to `target`. What is stopped is kept, as by senders that get no acknowledgement."""

    def __init__(self, target: str) -> None:
        """target: host:port."""
        self.address = f"127.0.0.1:{free_port()}"
        self._target = target
        self._open = {FORTH: asyncio.Event(), BACK: asyncio.Event()}
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self.heal()

    async def __aenter__(self) -> Self:
        host, port = self.address.split(":")
        self._server = await asyncio.start_server(self._connected, host, int(port))
        return self

    async def __aexit__(self, *exc: object) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        self.reset()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def stop(self, *directions: str) -> None:
        """Nothing comes through any more, and nobody is told."""
        for direction in directions:
            self._open[direction].clear()

    def heal(self) -> None:
        """All that was stopped goes on."""
        for event in self._open.values():
            event.set()

    def reset(self) -> None:
        """Breaks all connections off."""
        for writer in self._writers:
            writer.transport.abort()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self._writers.add(writer)
        with contextlib.suppress(OSError):
            host, port = self._target.split(":")
            there, to_there = await asyncio.open_connection(host, int(port))
            self._writers.add(to_there)
            await asyncio.gather(self._pump(FORTH, reader, to_there), self._pump(BACK, there, writer))
            to_there.close()
        writer.close()
        self._tasks.discard(task)

    async def _pump(self, direction: str, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        while True:
            try:
                data = await source.read(1 << 16)
            except OSError:
                data = b""
            await self._open[direction].wait()
            if not data:
                sink.close()
                return
            sink.write(data)
            await sink.drain()
