"""A Ray cluster of several nodes on this machine: each in a network namespace of its own, joined by a bridge.

    python jobs/local_cluster.py --nodes 2 --cpus 1 -- influray run configs/demo.yaml

The command runs beside the head and finds the cluster by RAY_ADDRESS. The nodes see each other's ports and disk, and
nothing outside reaches them: the bridge has a namespace too, so the machine's own network stays as it is. A node can
be cut off (its cable pulled, its processes alive) or killed whole. Needs root and the command `ip`.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PORT = 6379
START_SECONDS = 120.0
OBJECT_STORE_BYTES = 80 * 2**20
RAY = str(Path(sys.executable).with_name("ray"))


@dataclass(frozen=True)
class Node:
    """One node: `namespace` is where its processes live, `process` its `ray start --block`."""

    name: str
    namespace: str
    address: str
    folder: Path  # of Ray's files
    process: subprocess.Popen[bytes]


class LocalCluster:
    """A head and any number of nodes, which may come and go. `close` ends everything that was started here."""

    def __init__(
        self, environment: Mapping[str, str] | None = None, head: Sequence[str] = (), memory: bool = False
    ) -> None:
        """Start the head: `environment` is added to every process, `head` are more arguments of its `ray start`.

        With `memory` a file stands for each node's /proc/meminfo, so that one can look full (`fill_memory`).
        """
        self._memory = memory
        self._token = secrets.token_hex(3)  # names of namespaces and cables are of the whole machine
        self._count = 0
        self._folder = Path(tempfile.mkdtemp(prefix="ir-", dir="/tmp"))  # Ray needs short paths
        self._switch = f"ir{self._token}-sw"
        self.nodes: dict[str, Node] = {}
        self._namespaces: list[str] = []
        self.environment = {
            **os.environ,
            "RAY_USAGE_STATS_ENABLED": "0",
            # Nobody but the nodes reaches these ports; a token would be written to the home folder.
            "RAY_AUTH_MODE": "disabled",
            **(environment or {}),
        }
        for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"):
            self.environment.pop(name, None)
        try:
            self._make_namespace(self._switch)
            _ip("-n", self._switch, "link", "add", "name", "bridge", "type", "bridge")
            _ip("-n", self._switch, "link", "set", "bridge", "up")
            self.head = self._launch("head", ["--head", f"--port={PORT}", *head])
            self._wait_for(self.head)
        except BaseException:
            self.close()
            raise

    @property
    def address(self) -> str:
        """Where drivers find the cluster, from within it."""
        return f"{self.head.address}:{PORT}"

    def add_node(self, cpus: float = 1, *options: str) -> Node:
        """Start one more node and return it once it has joined."""
        return self.add_nodes(1, cpus, *options)[0]

    def add_nodes(self, count: int, cpus: float = 1, *options: str) -> list[Node]:
        """Start several nodes side by side and return them once all have joined."""
        argv = [f"--address={self.address}", f"--num-cpus={cpus}", *options]
        nodes = [self._launch(f"node-{self._count}", argv) for _ in range(count)]
        for node in nodes:
            self._wait_for(node)
        return nodes

    def command(self, argv: Sequence[str], node: Node | None = None) -> list[str]:
        """Return the command line that carries out `argv` on a node, by default the head."""
        return ["ip", "netns", "exec", (node or self.head).namespace, *argv]

    def popen(self, argv: Sequence[str], node: Node | None = None, **options: Any) -> subprocess.Popen[Any]:
        """Start a process on a node, by default the head, with RAY_ADDRESS set. `ip` becomes it: its pid is its own."""
        environment = {**self.environment, "RAY_ADDRESS": self.address, **options.pop("env", {})}
        return subprocess.Popen(self.command(argv, node), env=environment, **options)

    def cut(self, node: Node) -> None:
        """Pull a node's cable: its processes go on, and nobody hears of them."""
        _ip("-n", self._switch, "link", "set", _cable(node.namespace), "down")

    def mend(self, node: Node) -> None:
        """Put the cable back. Ray does not take back a node that it has given up: kill it and add another."""
        _ip("-n", self._switch, "link", "set", _cable(node.namespace), "up")

    def fill_memory(self, node: Node, full: bool) -> None:
        """Let a node's memory look full, or mostly free: Ray's monitor reads it there, and kills."""
        self._write_meminfo(node.name, full)

    def _write_meminfo(self, name: str, full: bool) -> None:
        total = 16 * 2**20  # KiB
        free = total // (100 if full else 2)
        lines = {"MemTotal": total, "MemFree": free, "MemAvailable": free}
        lines |= dict.fromkeys(("Buffers", "Cached", "SwapTotal", "SwapFree", "Shmem", "SReclaimable"), 0)
        path = self._meminfo(name)
        with open(path, "r+" if path.exists() else "w") as file:  # the same inode: it is mounted
            file.write("".join(f"{key + ':':<16}{value:>12} kB\n" for key, value in lines.items()))

    def pids(self, node: Node) -> list[int]:
        """Return the processes of a node, those that it runs for drivers among them."""
        found = subprocess.run(["ip", "netns", "pids", node.namespace], capture_output=True, text=True, check=True)
        return [int(pid) for pid in found.stdout.split()]

    def kill(self, node: Node) -> None:
        """End a node at once, as if its power had failed."""
        _kill_all(node.namespace)
        node.process.wait()
        self.nodes.pop(node.name, None)
        _ip("netns", "del", node.namespace)
        self._namespaces.remove(node.namespace)
        shutil.rmtree(node.folder, ignore_errors=True)

    def close(self) -> None:
        """End all nodes and delete the namespaces and Ray's files."""
        for namespace in reversed(self._namespaces):
            _kill_all(namespace)
        for node in self.nodes.values():
            node.process.wait()
        for namespace in self._namespaces:
            _ip("netns", "del", namespace)
        self._namespaces.clear()
        self.nodes.clear()
        shutil.rmtree(self._folder, ignore_errors=True)

    def __enter__(self) -> LocalCluster:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _launch(self, name: str, options: Sequence[str]) -> Node:
        self._count += 1
        namespace = f"ir{self._token}-{self._count}"
        address = f"10.77.0.{self._count}"
        self._make_namespace(namespace)
        cable = _cable(namespace)
        _ip("-n", self._switch, "link", "add", cable, "type", "veth", "peer", "name", "eth0", "netns", namespace)
        _ip("-n", self._switch, "link", "set", cable, "master", "bridge", "up")
        _ip("-n", namespace, "address", "add", f"{address}/24", "dev", "eth0")
        _ip("-n", namespace, "link", "set", "eth0", "up")
        folder = self._folder / name
        argv = [RAY, "start", "--block", f"--node-ip-address={address}", f"--temp-dir={folder}", *options]
        # A log monitor passes on what workers print, which a run writes to its own logs: 2 s of CPU a node.
        argv += [f"--object-store-memory={OBJECT_STORE_BYTES}", "--disable-usage-stats", "--include-log-monitor=false"]
        if self._memory:
            # `ip netns exec` gives a process a mount namespace of its own: nobody else sees the file.
            self._write_meminfo(name, full=False)
            mount = f'mount --bind "{self._meminfo(name)}" /proc/meminfo && exec "$@"'
            argv = ["sh", "-c", mount, "sh", *argv]
        with open(self._log(name), "wb") as log:
            process = subprocess.Popen(
                ["ip", "netns", "exec", namespace, *argv],
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C is for the command, which then ends the cluster
            )
        node = Node(name, namespace, address, folder, process)
        self.nodes[name] = node
        return node

    def _meminfo(self, name: str) -> Path:
        return self._folder / f"{name}.meminfo"

    def _log(self, name: str) -> Path:
        return self._folder / f"{name}.log"

    def _wait_for(self, node: Node) -> None:
        log = self._log(node.name)
        deadline = time.monotonic() + START_SECONDS
        while b"Ray runtime started" not in log.read_bytes():
            if node.process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{node.name} does not come up: {log.read_text(errors='replace')[-2000:]}")
            time.sleep(0.1)

    def _make_namespace(self, name: str) -> None:
        _ip("netns", "add", name)
        self._namespaces.append(name)
        _ip("-n", name, "link", "set", "lo", "up")


@contextlib.contextmanager
def local_cluster(
    nodes: int = 2,
    cpus: float = 1,
    environment: Mapping[str, str] | None = None,
    head: Sequence[str] = ("--num-cpus=0", "--include-dashboard=false"),
) -> Iterator[LocalCluster]:
    """Yield a cluster of a head and `nodes` nodes of `cpus` each; `head` are more arguments of its `ray start`."""
    with LocalCluster(environment, head) as cluster:
        cluster.add_nodes(nodes, cpus)
        yield cluster


def unavailable() -> str:
    """Return why this machine cannot have such a cluster, "" where it can."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        return "network namespaces need root and the command ip"
    probe = f"ir{secrets.token_hex(3)}-probe"
    made = subprocess.run(["ip", "netns", "add", probe], capture_output=True, text=True)
    if made.returncode:
        return f"network namespaces cannot be made: {made.stderr.strip()}"
    _ip("netns", "del", probe)
    return ""


def _cable(namespace: str) -> str:
    return f"v{namespace.rpartition('-')[2]}"


def _ip(*arguments: str) -> None:
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"ip {' '.join(arguments)}: {done.stderr.strip()}")


def _kill_all(namespace: str) -> None:
    """Kill what runs in a namespace, until nothing does: a process may have just started another."""
    while True:
        found = subprocess.run(["ip", "netns", "pids", namespace], capture_output=True, text=True)
        alive = [pid for pid in map(int, found.stdout.split()) if not ended(pid)]
        if not alive:
            return
        for pid in alive:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.02)


def ended(pid: int) -> bool:
    """Return whether a process is gone, or a zombie that nobody has waited for."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):  # the latter where it goes between the opening and the reading
        return True


def main() -> int:
    """Carry out a command on a fresh cluster and return its exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, default=2, help="beside the head")
    parser.add_argument("--cpus", type=float, default=1, help="of each node; the head has none")
    parser.add_argument("--dashboard", action="store_true", help="so that the command may be `ray job submit`")
    parser.add_argument("command", nargs=argparse.REMAINDER, metavar="-- COMMAND ...")
    arguments = parser.parse_args()
    command = arguments.command[1:] if arguments.command[:1] == ["--"] else arguments.command
    if not command:
        parser.error("a command is needed, after --")
    if reason := unavailable():
        parser.error(reason)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # the cluster is taken down whatever ends this
    head = ["--num-cpus=0", f"--include-dashboard={str(arguments.dashboard).lower()}", "--dashboard-host=127.0.0.1"]
    with local_cluster(arguments.nodes, arguments.cpus, head=head) as cluster:
        # The command runs on the head, where the dashboard listens.
        process = cluster.popen(command, env={"RAY_API_SERVER_ADDRESS": "http://127.0.0.1:8265"})
        try:
            return process.wait()
        except KeyboardInterrupt:
            return process.wait()
