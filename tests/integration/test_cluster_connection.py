"""Which cluster a run gets, what it takes of it, and that it ends nothing but its own."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import pytest
import ray

from influray.config import ResourcesConfig
from influray.protocols import ConfigError
from influray.runtime.cluster import ClusterInfo, connect, resolve_resources, room_on

pytestmark = pytest.mark.ray

REPOSITORY = Path(__file__).parents[2]

PRIVATE = """
import os, signal
before = signal.getsignal(signal.SIGTERM)
from influray.config import ResourcesConfig
from influray.runtime.cluster import connect

with connect(ResourcesConfig()) as cluster:
    import ray
    assert cluster.owned and cluster.nodes == 1 and cluster.cpus >= 1
    with connect(ResourcesConfig()) as again:
        assert not again.owned and again.address == cluster.address
    assert ray.is_initialized(), "the inner connection closed the outer one"
    assert ray.get(ray.remote(lambda: 4).remote()) == 4
    try:
        print(len(os.environ["RAY_AUTH_TOKEN"]), ray.nodes()[0]["ObjectStoreSocketName"], flush=True)
        signal.pause()
    except KeyboardInterrupt:
        print("interrupted", flush=True)
assert not ray.is_initialized()
assert signal.getsignal(signal.SIGTERM) is before
print("down", flush=True)
"""

STARTING = """
import sys, tempfile
from influray.config import ResourcesConfig
from influray.runtime.cluster import connect

tempfile.tempdir = sys.argv[1]
try:
    with connect(ResourcesConfig()):
        print("up", flush=True)
except KeyboardInterrupt:
    print("interrupted", flush=True)
"""

ATTACHED = """
import sys
import tempfile
from influray.config import ResourcesConfig
from influray.runtime.cluster import connect

with connect(ResourcesConfig(), *sys.argv[1:]) as cluster:
    print(cluster.owned, cluster.address, flush=True)
"""


def script(text: str, *arguments: str, **environment: str) -> subprocess.Popen[str]:
    inherited = {k: v for k, v in os.environ.items() if k not in ("RAY_AUTH_MODE", "RAY_ADDRESS")}
    return subprocess.Popen(
        [sys.executable, "-c", text, *arguments],
        stdout=subprocess.PIPE,
        text=True,
        env={**inherited, "PYTHONPATH": str(REPOSITORY), **environment},
    )


def test_a_private_cluster_ends_with_its_block_and_leaves_nothing_behind(tmp_path):
    process = script(PRIVATE, HOME=str(tmp_path))
    assert process.stdout is not None
    token_length, socket = process.stdout.readline().split()
    assert token_length == "64"
    folder = Path(socket).parents[2]
    assert folder.name.startswith("influray-")
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=60)
    assert output == "interrupted\ndown\n"
    assert process.returncode == 0
    assert list(tmp_path.iterdir()) == [], "a token was written to the home folder"
    assert not folder.exists()


def test_a_signal_that_comes_while_a_private_cluster_starts_waits_until_it_can_be_ended(tmp_path):
    parent = tmp_path if len(str(tmp_path)) < 40 else Path(tempfile.mkdtemp(prefix="t-"))
    process = script(STARTING, str(parent))
    deadline = time.monotonic() + 60
    while not list(parent.glob("influray-*/session_*")) and time.monotonic() < deadline:  # Ray has begun to start
        time.sleep(0.02)
    (session,) = parent.glob("influray-*/session_2*")
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=60)
    assert (output, process.returncode) == ("interrupted\n", 0)
    assert not list(parent.glob("influray-*"))
    assert not [path for path in Path("/proc").glob("[0-9]*/cmdline") if str(session) in _read(path)]
    if parent != tmp_path:
        shutil.rmtree(parent)  # with the lock that drivers take when they make a folder in it


def _read(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:  # it has ended meanwhile
        return ""


@pytest.mark.parametrize("how", ["address", "job"])
def test_a_cluster_that_is_there_is_joined_and_survives(ray_cluster, how):
    arguments = [ray_cluster.address] if how == "address" else []
    job = {"RAY_ADDRESS": ray_cluster.address} if how == "job" else {}
    process = script(ATTACHED, *arguments, RAY_AUTH_MODE=os.environ.get("RAY_AUTH_MODE", "token"), **job)
    output, _ = process.communicate(timeout=60)
    assert output == f"False {ray_cluster.address}\n"
    assert ray.get(ray.remote(lambda: 4).remote()) == 4


def test_a_connection_that_is_there_is_used_and_kept(ray_cluster):
    handler = signal.getsignal(signal.SIGTERM)
    with connect(ResourcesConfig()) as cluster:
        assert (cluster.owned, cluster.address) == (False, ray_cluster.address)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)
    assert ray.is_initialized()
    assert signal.getsignal(signal.SIGTERM) is handler


def greet(listener: socket.socket) -> None:
    """Answer one connection as any server of HTTP/2 does, a Ray's too: with a frame of settings."""
    connection, _ = listener.accept()
    with connection:
        connection.sendall(bytes([0, 0, 0, 4, 0, 0, 0, 0, 0]))
        connection.recv(1024)


def test_a_process_that_is_connected_is_told_that_another_cluster_was_asked_for(ray_cluster):
    with socket.create_server(("127.0.0.1", 0)) as other:
        threading.Thread(target=greet, args=(other,), daemon=True).start()
        address = f"127.0.0.1:{other.getsockname()[1]}"
        with pytest.raises(ConfigError, match="connected to Ray at") as caught, connect(ResourcesConfig(), address):
            pass
    assert address in str(caught.value)
    with connect(ResourcesConfig(), ray_cluster.address) as cluster:
        assert cluster.address == ray_cluster.address


@pytest.mark.parametrize(
    ("address", "found"),
    [
        ("127.0.0.1:1", "no Ray cluster answers at '127.0.0.1:1'"),
        ("ray://head:10001", "host:port"),
        ("head", "host:port"),
    ],
)
def test_a_wrong_address_is_told_at_once(monkeypatch, address, found):
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    started = time.monotonic()
    with pytest.raises(ConfigError, match="^--address: ") as caught, connect(ResourcesConfig(), address):
        pass
    assert found in str(caught.value)
    assert time.monotonic() - started < 5


def cluster(cpus: float, gpus: float = 0, owned: bool = True) -> ClusterInfo:
    return ClusterInfo(cpus, gpus, 1, "here:1", owned)


@pytest.mark.parametrize(
    ("asked", "offered", "workers", "cpus", "gpus", "training"),
    [
        ({}, cluster(8), 8, 1, 0, 1),
        ({"cpus_per_worker": 2}, cluster(8), 4, 2, 0, 1),
        ({"cpus_per_worker": 4}, cluster(2), 1, 2, 0, 1),
        ({"workers": 3}, cluster(2), 3, 0.6666, 0, 1),
        ({"workers": 3}, cluster(2, owned=False), 3, 1, 0, 1),
        ({}, cluster(8, 4), 4, 1, 1, 4),
        ({"gpus_per_worker": 0.5}, cluster(8, 4), 8, 1, 0.5, 4),
        ({"gpus_per_worker": 2}, cluster(8, 4), 2, 1, 2, 4),
        ({"gpus_per_worker": 0}, cluster(8, 4), 8, 1, 0, 1),
        ({"gpus_per_worker": 0.1}, cluster(64, 1), 10, 1, 0.1, 1),
        ({"gpus_per_worker": 1}, cluster(8, owned=False), 1, 1, 1, 1),
        ({"training_workers": 2}, cluster(8, 4), 4, 1, 1, 2),
    ],
)
def test_auto_becomes_what_the_cluster_has_room_for(asked, offered, workers, cpus, gpus, training):
    resolved = resolve_resources(ResourcesConfig(**asked), offered)
    assert (resolved.workers, resolved.cpus_per_worker, resolved.gpus_per_worker) == (workers, cpus, gpus)
    assert resolved.training_workers == training
    if offered.owned:
        assert resolved.workers * resolved.cpus_per_worker <= offered.cpus, "a worker would wait for ever"


@pytest.mark.parametrize(
    ("asked", "offered", "key"),
    [
        ({"gpus_per_worker": 1}, cluster(8), "resources.gpus_per_worker"),
        ({"gpus_per_worker": 1.5}, cluster(8, 4), "resources.gpus_per_worker"),
        ({"gpus_per_worker": -1}, cluster(8, 4), "resources.gpus_per_worker"),
        ({"workers": 8, "gpus_per_worker": 1}, cluster(8, 4), "resources.workers"),
    ],
)
def test_what_a_private_cluster_can_never_give_is_refused(asked, offered, key):
    with pytest.raises(ConfigError, match=f"^{key}: "):
        resolve_resources(ResourcesConfig(**asked), offered)


def test_auto_follows_a_cluster_of_others_and_not_one_of_its_own(ray_cluster):
    shared = ClusterInfo(cpus=3, gpus=0, nodes=2, address="", owned=False)
    assert resolve_resources(ResourcesConfig(), shared).follows
    assert not resolve_resources(ResourcesConfig(workers=2), shared).follows
    assert not resolve_resources(ResourcesConfig(), ClusterInfo(3, 0, 1, "", owned=True)).follows
    resources = resolve_resources(ResourcesConfig(cpus_per_worker=0.5), shared)
    assert resources.room(0.0) == 2 * int(ray_cluster.cpus)
    assert resources.room(1.0) == 1, "one worker is asked for where there is room for none"


def test_room_is_counted_node_by_node():
    assert room_on({"CPU": 3.0, "GPU": 1.0}, {"CPU": 1.0, "GPU": 0.25}) == 3
    assert room_on({"CPU": 8.0, "GPU": 1.0}, {"CPU": 1.0, "GPU": 0.25}) == 4
    assert room_on({"CPU": 8.0, "GPU": 1.0}, {"CPU": 1.0, "GPU": 2.0}) == 0
    assert room_on({"CPU": 8.0}, {"CPU": 0.1, "GPU": 0.0}) == 80
