"""The service's server on real sockets: half-sent requests cost nobody else anything, and queries are let in by pace."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from influray.ask import http_server
from influray.ask.admission import LEAST, MOST, Admission, Busy
from influray.ask.http_guard import Access, Guard
from influray.ask.http_server import HttpServer, listen
from influray.protocols import ConfigError

HALF = b"POST /query HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\ncontent-length: 100\r\n\r\n{"
HEALTH = b"GET /health HTTP/1.1\r\nhost: 127.0.0.1\r\nconnection: close\r\n\r\n"
WHOLE = HALF.replace(b"content-length: 100", b"content-length: 1")


@contextlib.contextmanager
def serving(application: Any) -> Iterator[int]:
    with to_serve(application) as (port, start):
        start()
        yield port


@contextlib.contextmanager
def to_serve(application: Any) -> Iterator[tuple[int, Callable[[], None]]]:
    """A port that clients can connect to already, and what begins to serve them."""
    with contextlib.closing(listen("127.0.0.1", 0)) as listener:
        server = HttpServer(application, listener)
        try:
            yield listener.getsockname()[1], server.start
        finally:
            server.close()


async def echo(scope: Any, receive: Any, send: Any) -> None:
    body = (await receive())["body"]
    answer = json.dumps({"path": scope["path"], "bytes": len(body)}).encode()
    headers = [(b"content-length", str(len(answer)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": answer})


guarded = Guard(echo, Access())


def ask(port: int, request: bytes, stack: contextlib.ExitStack | None = None) -> socket.socket:
    client = socket.create_connection(("127.0.0.1", port), timeout=30)
    if stack is not None:
        stack.enter_context(client)
    client.sendall(request)
    return client


def answer(client: socket.socket) -> bytes:
    """Return all that comes until the server closes."""
    parts = []
    with contextlib.suppress(ConnectionResetError):
        while part := client.recv(65536):
            parts.append(part)
    return b"".join(parts)


def test_300_half_sent_bodies_block_nobody_and_are_told_that_they_are_late(monkeypatch):
    monkeypatch.setattr(http_server, "ARRIVAL_SECONDS", 3.0)
    with serving(guarded) as port, contextlib.ExitStack() as stack:
        half = [ask(port, HALF, stack) for _ in range(300)]
        with ask(port, HEALTH) as healthy:
            assert answer(healthy).startswith(b"HTTP/1.1 200")
        with ask(port, WHOLE.replace(b"\r\n\r\n", b"\r\nconnection: close\r\n\r\n")) as whole:
            assert b'"bytes": 1' in answer(whole)
        ends = [answer(client) for client in half]
    assert {end[:12] for end in ends} == {b"HTTP/1.1 408"}, "each is answered, those that gave way to others at once"


@pytest.mark.parametrize("sent", [b"", HALF])
def test_a_whole_request_does_not_give_way_to_a_crowd_that_comes_with_it(sent):
    with to_serve(guarded) as (port, start), contextlib.ExitStack() as stack:
        healthy = ask(port, HEALTH, stack)
        for _ in range(300):
            ask(port, sent, stack)
        start()
        assert answer(healthy).startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize("request_part", [b"", b"GET /heal", HALF[:-1], HALF])
def test_a_request_has_a_deadline_to_arrive_also_where_its_bytes_trickle(monkeypatch, request_part):
    monkeypatch.setattr(http_server, "ARRIVAL_SECONDS", 0.5)
    with serving(guarded) as port, ask(port, request_part) as client:
        with contextlib.suppress(OSError):
            for _ in range(20):
                client.sendall(b" ") if request_part == HALF else None
                client.settimeout(0.2)
                with contextlib.suppress(TimeoutError):
                    if client.recv(1, socket.MSG_PEEK):
                        break
        client.settimeout(30)
        assert answer(client)[:12] in (b"HTTP/1.1 408", b"")


def test_a_request_that_is_answered_slowly_is_not_late_and_a_second_one_on_its_connection_is_waited_for(monkeypatch):
    monkeypatch.setattr(http_server, "ARRIVAL_SECONDS", 0.5)

    async def slow(scope: Any, receive: Any, send: Any) -> None:
        await asyncio.sleep(1.5)
        await echo(scope, receive, send)

    with serving(slow) as port, ask(port, WHOLE) as client:
        for _ in range(2):
            found = b""
            while not found.endswith(b"}"):
                found += client.recv(65536)
            assert b'"bytes": 1' in found
            client.sendall(WHOLE)


def test_connections_that_are_being_answered_do_not_give_way_and_a_new_one_is_told_to_come_again(monkeypatch):
    monkeypatch.setattr(http_server.Connections.__init__, "__defaults__", (4, 3))
    monkeypatch.setattr(http_server, "CLOSE_SECONDS", 1.0)
    begun = threading.Semaphore(0)

    async def stuck(scope: Any, receive: Any, send: Any) -> None:
        begun.release()
        await asyncio.sleep(60)

    with serving(stuck) as port, contextlib.ExitStack() as stack:
        for _ in range(3):
            ask(port, WHOLE, stack)
            assert begun.acquire(timeout=30)
        with ask(port, HEALTH) as refused:
            assert answer(refused).startswith(b"HTTP/1.1 503")


def test_a_place_that_is_taken_is_named():
    with contextlib.closing(listen("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        with pytest.raises(ConfigError, match=f"--port: nothing can listen at 127.0.0.1 port {port}"):
            listen("127.0.0.1", port)
    listen("127.0.0.1", port).close()  # free again at once


def test_queries_are_let_in_as_far_as_the_pace_of_those_before_them_answers_them_in_time():
    admission = Admission(patience=8.0)
    with contextlib.ExitStack() as stack:
        for _ in range(MOST):  # nobody knows the pace yet
            stack.enter_context(admission.admitted())
        with pytest.raises(Busy), admission.admitted():
            pass
    for _ in range(32):
        admission.answered(9.6, 32)
    assert admission.pace == pytest.approx(0.3)
    with contextlib.ExitStack() as stack:
        for _ in range(26):  # 26 x 0.3 s = 7.8 s
            stack.enter_context(admission.admitted())
        with pytest.raises(Busy) as told, admission.admitted():
            pass
        assert told.value.retry_after >= 1
    for _ in range(200):
        admission.answered(30.0, 1)
    with contextlib.ExitStack() as stack:  # an engine that slow still gets some
        for _ in range(LEAST):
            stack.enter_context(admission.admitted())
        with pytest.raises(Busy), admission.admitted():
            pass
    for _ in range(400):
        admission.answered(0.001, 1)
    assert admission.pace < 0.002, "a pace is forgotten once others follow"


def test_two_engines_let_in_twice_as_many():
    one, two = Admission(1, 1.0), Admission(2, 1.0)
    for admission in (one, two):
        admission.answered(2.0, 20)
    assert one.pace == pytest.approx(2 * two.pace)


def test_the_server_ends_with_requests_half_sent():
    started = time.monotonic()
    with contextlib.ExitStack() as stack, serving(guarded) as port:
        ask(port, HALF, stack)
    assert time.monotonic() - started < http_server.CLOSE_SECONDS + 5
