"""The services of docker/compose.yaml without Docker: their very commands, each in a network namespace of its own.

    python jobs/containers.py [--env DEMO_SIZE=small] [--shared FOLDER]

Head, workers and submitter find each other by name over a bridge, share a folder in the place of the volume, and have
Ray folders of their own, as containers would. Returns the submitter's exit status. Images, users and limits of the
file are Docker's business and are not tried here. Needs root and the command `ip`.
"""

from __future__ import annotations

import argparse
import os
import re
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import yaml

from tests.cluster.local_cluster import _ip, _kill_all, unavailable

COMPOSE = Path(__file__).parents[2] / "docker" / "compose.yaml"
GATEWAY = "10.78.0.254"
START_SECONDS = 600.0
RAY_FOLDER = "/tmp/ray"
VARIABLE = re.compile(r"\$\{(\w+)(?::([-?])([^}]*))?\}")


def services(path: Path, variables: Mapping[str, str]) -> dict[str, Any]:
    """Return the services of a compose file with its variables put in; one that is required must be there."""

    def value(match: re.Match[str]) -> str:
        name, kind, text = match.groups()
        if variables.get(name):
            return variables[name]
        if kind != "-":
            raise ValueError(f"{name}: {text or 'required'}")
        return text

    return yaml.safe_load(VARIABLE.sub(value, path.read_text()))["services"]


class Containers:
    """Namespaces on a bridge, one a container; `close` ends what runs in them."""

    def __init__(self, shared: Path) -> None:
        self._shared = shared
        self._token = secrets.token_hex(3)
        self._folder = Path(tempfile.mkdtemp(prefix="ic-", dir="/tmp"))
        self._hosts = self._folder / "hosts"
        self._hosts.write_text("127.0.0.1 localhost\n")
        self._switch = f"ic{self._token}-sw"
        self._namespaces: dict[str, str] = {}
        _ip("netns", "add", self._switch)
        _ip("-n", self._switch, "link", "add", "name", "bridge", "type", "bridge")
        _ip("-n", self._switch, "address", "add", f"{GATEWAY}/24", "dev", "bridge")
        _ip("-n", self._switch, "link", "set", "bridge", "up")

    def __enter__(self) -> Containers:
        return self

    def __exit__(self, *_: object) -> None:
        for namespace in self._namespaces.values():
            _kill_all(namespace)
        for namespace in (*self._namespaces.values(), self._switch):
            _ip("netns", "del", namespace)
        shutil.rmtree(self._folder, ignore_errors=True)

    def execute(
        self, name: str, command: list[str], service: Mapping[str, Any], **options: Any
    ) -> subprocess.Popen[Any]:
        """Start a command in a container, with the environment, the volume and the names of its service."""
        ray = self._folder / name
        ray.mkdir(exist_ok=True)
        Path(RAY_FOLDER).mkdir(exist_ok=True)
        # `ip netns exec` gives the process mounts of its own, so these are seen by it and its children alone.
        mounts = {self._shared: "/srv", ray: RAY_FOLDER, self._hosts: "/etc/hosts"}
        binds = " && ".join(f"mount --bind {source} {place}" for source, place in mounts.items())
        script = f'{binds} && exec "$@"'
        argv = ["ip", "netns", "exec", self._namespaces[name], "sh", "-c", script, "sh", *command]
        environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")} | service["environment"]
        environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"
        environment["PYTHONPATH"] = str(COMPOSE.parents[1])
        return subprocess.Popen(argv, env=environment, **options)

    def healthy(self, name: str, service: Mapping[str, Any]) -> bool:
        """Return what the health check of a service says of a container."""
        kind, *command = service["healthcheck"]["test"]
        assert kind == "CMD"
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        return self.execute(name, command, service, **quiet).wait() == 0

    def log(self, name: str) -> Path:
        return self._folder / f"{name}.log"

    def plug_in(self, name: str) -> None:
        """Give a container its namespace, address and name."""
        number = len(self._namespaces) + 1
        namespace, cable = f"ic{self._token}-{number}", f"c{number}"
        _ip("netns", "add", namespace)
        self._namespaces[name] = namespace
        _ip("-n", namespace, "link", "set", "lo", "up")
        _ip("-n", self._switch, "link", "add", cable, "type", "veth", "peer", "name", "eth0", "netns", namespace)
        _ip("-n", self._switch, "link", "set", cable, "master", "bridge", "up")
        _ip("-n", namespace, "address", "add", f"10.78.0.{number}/24", "dev", "eth0")
        _ip("-n", namespace, "link", "set", "eth0", "up")
        # As Docker gives one, though nothing answers there: Ray takes for a node's address that of this route.
        _ip("-n", namespace, "route", "add", "default", "via", GATEWAY)
        with open(self._hosts, "a") as hosts:  # written in place: the file is what the containers have mounted
            hosts.write(f"10.78.0.{number} {name}\n")


def compose_up(variables: Mapping[str, str], shared: Path) -> int:
    """Carry out head, workers and submitter, and return the submitter's exit status."""
    of = services(COMPOSE, {"RAY_AUTH_TOKEN": secrets.token_hex(32), **variables})
    (shared / "influray").mkdir(parents=True, exist_ok=True)
    with Containers(shared) as containers:
        workers = [f"worker-{number + 1}" for number in range(int(of["worker"]["deploy"]["replicas"]))]
        for name in ("head", *workers):
            containers.plug_in(name)
        _start(containers, "head", of["head"])
        with ThreadPoolExecutor(max(1, len(workers))) as side_by_side:
            list(side_by_side.map(lambda name: _start(containers, name, of["worker"]), workers))
        assert of["submitter"]["network_mode"] == "service:head"
        return containers.execute("head", of["submitter"]["command"], of["submitter"]).wait()


def _start(containers: Containers, name: str, service: Mapping[str, Any]) -> None:
    """Start a container and wait until its health check is content, as `depends_on` has it; restart it as it says."""
    log, deadline = containers.log(name), time.monotonic() + START_SECONDS
    process = None
    while process is None or not (b"Ray runtime started" in log.read_bytes() and containers.healthy(name, service)):
        if time.monotonic() > deadline:
            raise RuntimeError(f"{name} is not healthy: {log.read_text(errors='replace')[-2000:]}")
        if process is None or (process.poll() is not None and service["restart"] == "on-failure"):
            if process is not None:
                tail = log.read_text(errors="replace")[-1000:]
                print(f"{name} ended with {process.returncode} and is started again; it said: {tail}", flush=True)
            with open(log, "wb") as file:
                process = containers.execute(name, service["command"], service, stdout=file, stderr=subprocess.STDOUT)
        time.sleep(0.5)
    print(f"{name} is healthy", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env", action="append", default=[], metavar="NAME=VALUE", help="as in docker/.env")
    parser.add_argument("--shared", type=Path, help="in the place of the volume; default: a temporary folder")
    args = parser.parse_args()
    if reason := unavailable():
        parser.error(reason)
    variables = dict(text.split("=", 1) for text in args.env)
    if args.shared:
        return compose_up(variables, args.shared.resolve())
    with tempfile.TemporaryDirectory() as shared:
        return compose_up(variables, Path(shared))
