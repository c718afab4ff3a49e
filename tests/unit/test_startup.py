"""Where Ray cannot be started or reached, a message says what would be right; none of this starts one."""

from __future__ import annotations

import http.server
import socket
import threading
from collections import namedtuple

import pytest

from influray.protocols import ConfigError, RunStopped
from influray.runtime import startup
from influray.runtime.cluster import connect
from influray.runtime.startup import connecting, require_ray, scratch_parent, starting

Usage = namedtuple("Usage", "total used free")


@pytest.fixture
def listener():
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server


def answering(server: socket.socket, answer: bytes) -> threading.Thread:
    def talk() -> None:
        connection, _ = server.accept()
        with connection:
            connection.recv(100)
            connection.sendall(answer)

    thread = threading.Thread(target=talk, daemon=True)
    thread.start()
    return thread


@pytest.mark.parametrize("answer", [b"", b"HTTP/1.1 400 Bad Request\r\n\r\n", b"SSH-2.0-OpenSSH_9\r\n", b"abc"])
def test_a_listener_that_is_no_ray_is_told_at_once(listener, answer):
    answering(listener, answer)
    host, port = listener.getsockname()
    with pytest.raises(ConfigError, match=r"--address: something listens .* but it is no Ray; give host:port"):
        require_ray(socket.create_connection((host, port), timeout=5), f"{host}:{port}", "--address")


def test_a_server_of_http_2_is_let_through(listener):
    answering(listener, bytes([0, 0, 6, 4, 0, 0, 0, 0, 0, 0, 5, 0, 0, 64, 0]))
    with socket.create_connection(listener.getsockname(), timeout=5) as connection:
        require_ray(connection, "here", "--address")


def test_a_server_of_grpc_is_let_through():
    grpc = pytest.importorskip("grpc")
    from concurrent.futures import ThreadPoolExecutor

    server = grpc.server(ThreadPoolExecutor(1))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
            require_ray(connection, "here", "--address")
    finally:
        server.stop(None)


def test_an_address_where_something_else_listens_is_refused_before_ray_is_imported():
    server = http.server.HTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler)
    threading.Thread(target=server.handle_request, daemon=True).start()
    address = f"127.0.0.1:{server.server_port}"
    from influray.config import ResourcesConfig

    with pytest.raises(ConfigError, match="it is no Ray"), connect(ResourcesConfig(), address):
        pass
    server.server_close()


@pytest.mark.parametrize("address", ["127.0.0.1", "http://127.0.0.1:1", "127.0.0.1:99999", "127.0.0.1:1"])
def test_a_wrong_address_is_named(address):
    from influray.config import ResourcesConfig

    with pytest.raises(ConfigError, match="^--address: "), connect(ResourcesConfig(), address):
        pass


def test_no_room_for_temporary_files_is_said(monkeypatch):
    monkeypatch.setattr(startup.shutil, "disk_usage", lambda place: Usage(1, 1, 2**20))
    with pytest.raises(ConfigError, match=r"needs 200 MiB .* has 1 MiB left; make room there, or set TMPDIR"):
        scratch_parent()


def test_what_ray_says_when_it_does_not_start_is_passed_on(tmp_path):
    logs = tmp_path / "session_1" / "logs"
    logs.mkdir(parents=True)
    (logs / "gcs_server.out").write_text("fine\nbind: Address already in use: 6379\nfine\n")
    message = r"Ray did not start .*: The node timed out.*gcs_server\.out: bind: Address already in use"
    with pytest.raises(RunStopped, match=message), starting(str(tmp_path)):
        raise Exception("The node timed out\nmore")
    with pytest.raises(ConfigError, match="as it was"), starting(str(tmp_path)):
        raise ConfigError("as it was")


def test_a_token_that_the_cluster_asks_for_is_named():
    with pytest.raises(ConfigError, match=r"--address: .*RAY_AUTH_TOKEN"), connecting("h:1", "--address"):
        raise RuntimeError("Unauthenticated: no token")
