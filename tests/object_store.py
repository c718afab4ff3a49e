"""A local S3-compatible server, and a proxy in front of it that fails as object stores do."""

from __future__ import annotations

import contextlib
import http.client
import logging
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from pyarrow import fs

BUCKET = "bucket"


@dataclass
class Store:
    """A running server: its address, and its content past everything that may stand in front of it."""

    address: str  # host:port
    content: fs.FileSystem
    faults: Counter[str] = field(default_factory=Counter)

    def uri(self, folder: str, **options: str) -> str:
        query = "&".join(f"{name}={value}" for name, value in options.items())
        return f"s3://{BUCKET}/{folder}?endpoint_override=http://{self.address}" + (f"&{query}" if query else "")

    def names(self, folder: str) -> set[str]:
        """The objects below a folder, relative to it."""
        selector = fs.FileSelector(f"{BUCKET}/{folder}", recursive=True, allow_not_found=True)
        infos = self.content.get_file_info(selector)
        return {i.path.removeprefix(f"{BUCKET}/{folder}/") for i in infos if i.type == fs.FileType.File}

    def read(self, name: str) -> bytes:
        return self.content.open_input_stream(f"{BUCKET}/{name}").read()

    def write(self, name: str, data: bytes) -> None:
        with self.content.open_output_stream(f"{BUCKET}/{name}") as stream:
            stream.write(data)


@contextlib.contextmanager
def serving() -> Iterator[Store]:
    """A moto server with an empty bucket while the block runs; credentials are in the environment."""
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.CRITICAL)
    patch = pytest.MonkeyPatch()
    for name, value in (
        ("ACCESS_KEY_ID", "tester"),
        ("SECRET_ACCESS_KEY", "hushhush"),
        ("EC2_METADATA_DISABLED", "true"),
    ):
        patch.setenv(f"AWS_{name}", value)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    address = f"{host}:{port}"
    system = fs.S3FileSystem(
        endpoint_override=address,
        scheme="http",
        region="us-east-1",
        allow_bucket_creation=True,
        allow_bucket_deletion=True,
    )
    try:
        system.create_dir(BUCKET)
        yield Store(address, system)
        system.delete_dir(BUCKET)  # moto keeps its buckets for the life of the process
    finally:
        server.stop()
        patch.undo()


@contextlib.contextmanager
def failing(store: Store, fault: Callable[[str, str], str], stall_seconds: float = 5.0) -> Iterator[Store]:
    """The same store behind a proxy. `fault(method, path)` says what becomes of a request.

    "" passes it on; "500" answers so; "stall" answers after a while, when nobody waits any more; "cut" breaks the
    connection in the middle of the body that is sent, or of the answer.
    """
    behind = Store("", store.content)
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def handle_any(self) -> None:
            with lock:
                what = fault(self.command, self.path)
                behind.faults[what] += bool(what)
            length = int(self.headers.get("Content-Length") or 0)
            if what == "cut" and self.command in ("PUT", "POST"):
                self.rfile.read(min(length or 1000, 1000))
                self.close_connection = True
                return
            body = self._chunks() if self.headers.get("Transfer-Encoding") == "chunked" else self.rfile.read(length)
            if what == "500":
                self._answer(500, {}, b"<Error><Code>InternalError</Code></Error>")
                return
            if what == "stall":
                time.sleep(stall_seconds)
                self.close_connection = True
                return
            skip = {"transfer-encoding", "content-length", "connection", "expect"}
            headers = {name: value for name, value in self.headers.items() if name.lower() not in skip}
            upstream = http.client.HTTPConnection(store.address, timeout=30)
            upstream.request(self.command, self.path, body, headers | {"Content-Length": str(len(body))})
            answer = upstream.getresponse()
            self._answer(answer.status, dict(answer.getheaders()), answer.read(), cut=what == "cut")
            upstream.close()

        def _chunks(self) -> bytes:
            body = b""
            while size := int(self.rfile.readline().split(b";")[0], 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            while self.rfile.readline().strip():
                pass
            return body

        def _answer(self, status: int, headers: dict[str, str], body: bytes, cut: bool = False) -> None:
            skip = {"connection", "content-length", "transfer-encoding", "date", "server"}
            self.send_response(status)
            for name, value in headers.items():
                if name.lower() not in skip:
                    self.send_header(name, value)
            length = next((v for n, v in headers.items() if n.lower() == "content-length"), str(len(body)))
            self.send_header("Content-Length", length)
            self.end_headers()
            self.wfile.write(body[: len(body) // 2] if cut else body)
            if cut:
                self.close_connection = True

        do_GET = do_PUT = do_HEAD = do_POST = do_DELETE = handle_any

        def log_message(self, format: str, *args: Any) -> None:
            pass

        def handle(self) -> None:
            with contextlib.suppress(ConnectionError):  # the client has given up
                super().handle()

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    behind.address = f"127.0.0.1:{server.server_port}"
    try:
        yield behind
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def share(seed: int, **chances: float) -> Callable[[str, str], str]:
    """A `fault` that strikes at random: name -> share of the requests."""
    generator = random.Random(seed)

    def fault(method: str, path: str) -> str:
        drawn = generator.random()
        for name, chance in chances.items():
            if drawn < chance:
                return name.lstrip("_")
            drawn -= chance
        return ""

    return fault
