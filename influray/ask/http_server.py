"""The HTTP server of the service: uvicorn in a thread, that no client can fill.

A client that sends half a request and waits costs a connection and nothing else: a request has a deadline to arrive
whole, and where there are too many connections the one that has waited longest for its client gives way to the new
one. So a question whether the service lives (/health) always gets in. Ray Serve's own proxy has no such limits: it
hands half a body on to the application, and 300 of them kept everybody else waiting until it gave up after 90 s.
"""

from __future__ import annotations

import asyncio
import logging
import math
import socket
import threading
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from influray.protocols import ConfigError

ARRIVAL_SECONDS = 10.0  # for a request to arrive whole, from its first byte, or from when the connection was made
IDLE_SECONDS = 5.0  # for a connection to bring another request
CLOSE_SECONDS = 5.0  # for requests under way when the service ends
CONNECTIONS = 512  # at a time
CLIENT_CONNECTIONS = 256  # of one address; all of this machine are one
ACCEPTED = 16  # connections at a time, before those that are open are read again
HEAD_BYTES = 32 * 2**10
_LATE = b"HTTP/1.1 408 Request Timeout\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"
_FULL = b"HTTP/1.1 503 Service Unavailable\r\nconnection: close\r\nretry-after: 2\r\ncontent-length: 0\r\n\r\n"


class Connections:
    """The open connections, in the order in which they began to wait for their client."""

    def __init__(self, total: int = CONNECTIONS, each: int = CLIENT_CONNECTIONS) -> None:
        self._total, self._each = total, each
        self._open: dict[Connection, str] = {}  # connection -> address of its client

    def add(self, connection: Connection, client: str) -> bool:
        """Take in a new connection and return True; False where there is no room, and nobody to give way.

        What gives way is of the same client, where that has too many.
        """
        own = sum(address == client for address in self._open.values())
        if own >= self._each and not self._make_way(client):
            return False
        if len(self._open) >= self._total and not self._make_way(None):
            return False
        self._open[connection] = client
        return True

    def remove(self, connection: Connection) -> None:
        self._open.pop(connection, None)

    def moved(self, connection: Connection) -> None:
        """Put a connection that has just begun to wait for its client behind all others."""
        if connection in self._open:
            self._open[connection] = self._open.pop(connection)

    def _make_way(self, client: str | None) -> bool:
        for connection, address in self._open.items():
            if client in (None, address) and connection.waits:
                del self._open[connection]
                connection.turn_away(_LATE)
                return True
        return False


class Connection(H11Protocol):
    """A connection that ends where its client is too slow."""

    def __init__(self, connections: Connections, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._all = connections
        self._deadline: asyncio.TimerHandle | None = None

    @property
    def waits(self) -> bool:
        """Whether it is the client's turn: to send a request or the rest of one, or to read the answer."""
        cycle = self.cycle
        return cycle is None or cycle.response_complete or cycle.more_body or self.flow.write_paused

    def connection_made(self, transport: asyncio.Transport) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]  uvicorn's own narrowing
        super().connection_made(transport)
        if not self._all.add(self, self.client[0] if self.client else ""):
            self.turn_away(_FULL)
            return
        self._deadline = self.loop.call_later(ARRIVAL_SECONDS, self._late)

    def connection_lost(self, exc: Exception | None) -> None:
        self._all.remove(self)
        self._arrived()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._deadline is None and self.waits:  # the first bytes of another request
            self._deadline = self.loop.call_later(ARRIVAL_SECONDS, self._late)
            self._all.moved(self)
        super().data_received(data)
        cycle = self.cycle
        if cycle is not None and not cycle.more_body and not cycle.response_complete:
            self._arrived()

    def on_response_complete(self) -> None:
        self._arrived()
        super().on_response_complete()

    def turn_away(self, answer: bytes) -> None:
        """Close the connection, with an answer where none has begun."""
        cycle = self.cycle
        if cycle is None or not cycle.response_started or cycle.response_complete:
            self.transport.write(answer)
        self.transport.close()
        if self.flow is not None and self.flow.write_paused:
            self.transport.abort()  # nobody reads what would be written first

    def _arrived(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _late(self) -> None:
        self._deadline = None
        if self.waits:
            self.turn_away(_LATE)


class _Server(uvicorn.Server):
    """A server that accepts a few connections at a time and lets many more wait.

    asyncio accepts as many at once as may wait. Of hundreds the first would have to give way before what it has sent
    was read.
    """

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        for listener in sockets or ():
            listener.listen(CONNECTIONS)


class HttpServer:
    """A server of an ASGI application in a thread of its own, on a socket that listens already."""

    def __init__(self, application: Any, listener: socket.socket) -> None:
        connections = Connections()

        class Protocol(Connection):
            def __init__(self, *arguments: Any, **options: Any) -> None:
                super().__init__(connections, *arguments, **options)

        logging.getLogger("uvicorn").setLevel(logging.CRITICAL)  # bad requests are their sender's matter, not ours
        config = uvicorn.Config(
            application,
            http=Protocol,
            ws="none",
            lifespan="off",
            loop="asyncio",
            log_config=None,
            access_log=False,
            proxy_headers=False,  # they would let a client name itself
            server_header=False,
            timeout_keep_alive=math.ceil(IDLE_SECONDS),
            timeout_graceful_shutdown=math.ceil(CLOSE_SECONDS),
            h11_max_incomplete_event_size=HEAD_BYTES,
            backlog=ACCEPTED,
        )
        self._server = _Server(config)
        self._thread = threading.Thread(target=self._server.run, args=([listener],), daemon=True)

    def start(self) -> None:
        """Begin to answer."""
        self._thread.start()

    def wait(self) -> None:
        """Wait until the server ends by itself, which it does where it cannot go on."""
        self._thread.join()

    def close(self) -> None:
        """End the server, once what is under way is answered or CLOSE_SECONDS have passed."""
        self._server.should_exit = True
        self._thread.join(CLOSE_SECONDS + 2)


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens at a place, port 0 at a free one. Raises ConfigError where that cannot be."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        listener = socket.socket(family, socket.SOCK_STREAM)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind((host, port))
            listener.listen(CONNECTIONS)
        except BaseException:
            listener.close()
            raise
        return listener
    except (OSError, OverflowError) as error:
        raise ConfigError(f"--port: nothing can listen at {host} port {port}: {error}") from error
