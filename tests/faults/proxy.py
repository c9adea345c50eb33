"""A network that fails as it is told to: a proxy between clients and a server, in a thread of its own."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Coroutine
from typing import Any

from tests.steady.ports import free_port

_CHUNK = 1 << 16


class _Link:
    """A connection of a client, and its counterpart to the server."""

    def __init__(self, client: asyncio.StreamWriter, server: asyncio.StreamWriter) -> None:
        self.client, self.server = client, server
        self.lost = False
        """Whether what is sent vanishes, and nobody is told."""

    def abort(self) -> None:
        """Reset both ends."""
        for end in (self.client, self.server):
            end.transport.abort()


class Proxy:
    """Passes bytes on to a port of 127.0.0.1, unless it is told otherwise. A context manager.

    Args:
        target: The port to which it passes them on; None as long as it is not known.
    """

    def __init__(self, target: int | None = None) -> None:
        self.target = target
        self._links: set[_Link] = set()
        self._delay, self._torn = 0.0, False
        self._open: list[asyncio.Server] = []
        self._passing = asyncio.Event()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy", daemon=True)

    def __enter__(self) -> Proxy:
        self._thread.start()
        self.port = free_port()
        self.flow()
        self.serve()
        return self

    def __exit__(self, *error: object) -> None:
        self.refuse()
        self.cut()
        self._do(self._ended())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    # What may happen.

    def cut(self) -> None:
        """Reset all connections."""
        self._do(self._each(_Link.abort))

    def half_close(self, *, client: bool) -> None:
        """End one direction of all connections: the client, or the server, hears that no more will come."""

        def end(link: _Link) -> None:
            with contextlib.suppress(OSError, RuntimeError):
                (link.client if client else link.server).write_eof()

        self._do(self._each(end))

    def lose(self) -> None:
        """Let vanish whatever the present connections still send, in both directions. New connections work."""

        def lost(link: _Link) -> None:
            link.lost = True

        self._do(self._each(lost))

    def tear(self) -> None:
        """Pass on the half of the next answer, then reset its connection."""
        self._torn = True

    def pause(self) -> None:
        """Hold all bytes back, until `flow`."""
        self._loop.call_soon_threadsafe(self._passing.clear)

    def delay(self, seconds: float) -> None:
        """Hold back each piece for a time, until `flow`."""
        self._delay = seconds

    def flow(self) -> None:
        """Pass bytes on again."""
        self._delay = 0.0
        self._loop.call_soon_threadsafe(self._passing.set)

    def refuse(self) -> None:
        """Refuse new connections, and reset the present ones, until `serve`."""
        self._do(self._closed())
        self.cut()

    def serve(self) -> None:
        """Take connections."""
        self._do(self._served())

    # In the thread of the loop.

    def _do(self, work: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(30)

    async def _each(self, act: Callable[[_Link], None]) -> None:
        for link in list(self._links):
            act(link)

    async def _served(self) -> None:
        if not self._open:
            self._open.append(await asyncio.start_server(self._link, "127.0.0.1", self.port))

    async def _closed(self) -> None:
        while self._open:
            self._open.pop().close()

    async def _ended(self) -> None:
        tasks = [task for task in asyncio.all_tasks(self._loop) if task is not asyncio.current_task()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _link(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            from_server, to_server = await asyncio.open_connection("127.0.0.1", self.target)
        except OSError:
            writer.transport.abort()
            return
        link = _Link(writer, to_server)
        self._links.add(link)
        try:
            await asyncio.gather(
                self._pass_on(link, reader, to_server, answers=False),
                self._pass_on(link, from_server, writer, answers=True),
            )
        finally:
            self._links.discard(link)
            link.abort()

    async def _pass_on(
        self, link: _Link, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, answers: bool
    ) -> None:
        with contextlib.suppress(OSError, RuntimeError):  # the latter: this direction was ended
            while data := await reader.read(_CHUNK):
                if self._delay:
                    await asyncio.sleep(self._delay)
                await self._passing.wait()
                if link.lost:
                    continue
                if answers and self._torn:
                    self._torn = False
                    writer.write(data[: len(data) // 2])
                    await asyncio.sleep(0)
                    link.abort()
                    return
                writer.write(data)
                await writer.drain()
            if not link.lost:
                writer.write_eof()
