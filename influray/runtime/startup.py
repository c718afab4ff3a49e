"""Starting Ray, or connecting to one: what goes wrong there ends in a message that says what would be right."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

from influray.protocols import USER_ERRORS, ConfigError, RunStopped

logger = logging.getLogger(__name__)

LEAST_BYTES = 200 * 2**20  # of sockets, logs and what spills over; Ray itself refuses to work on a full disk
SHORT_FOLDER = 40  # characters; Ray's socket paths add about 65, and a system allows 103 to 107


def scratch_parent() -> str:
    """Return where the folder of a private Ray is made.

    Raises:
        ConfigError: there is no folder for temporary files that can be written, or too little room in it.
    """
    try:
        parent = tempfile.gettempdir()
        if len(parent) > SHORT_FOLDER:
            parent = "/tmp"  # noqa: S108 - a folder of our own is made in it
        free = shutil.disk_usage(parent).free
    except OSError as error:
        raise ConfigError(
            f"Ray needs a folder for temporary files, and there is none that can be written ({error}); set TMPDIR"
        ) from error
    if not os.access(parent, os.W_OK | os.X_OK):
        raise ConfigError(f"Ray needs a folder for temporary files, and {parent} cannot be written; set TMPDIR")
    if free < LEAST_BYTES:
        raise ConfigError(
            f"Ray needs {LEAST_BYTES / 2**20:.0f} MiB for its sockets and logs, and {parent} has "
            f"{free / 2**20:.0f} MiB left; make room there, or set TMPDIR to a folder that has some"
        )
    return parent


def require_ray(connection: socket.socket, address: str, named: str) -> None:
    """Raise ConfigError where what listens is no gRPC server, which Ray's is: ray.init would try for five minutes.

    Both sides of HTTP/2 begin with a SETTINGS frame (RFC 9113, section 3.4).
    """
    if os.environ.get("RAY_USE_TLS", "0") not in ("", "0"):
        return  # nothing is said before the handshake
    try:
        connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0]))
        answer = connection.recv(9)
    except OSError:
        answer = b""
    if len(answer) < 4 or answer[3] != 4:
        raise ConfigError(
            f"{named}: something listens at {address!r}, but it is no Ray; give host:port of the cluster's head "
            "(the port of `ray start --head`, 6379 by default, not that of the dashboard)"
        )


@contextlib.contextmanager
def starting(folder: str) -> Iterator[None]:
    """Put what went wrong while a private Ray started into a message; `folder` holds its logs.

    Raises:
        RunStopped: Ray did not start, or not in time. The same command may succeed when repeated.
    """
    try:
        yield
    except USER_ERRORS:
        raise
    except Exception as error:
        raise RunStopped(
            f"Ray did not start on this machine: {_first(error)}{_shared_memory()}{_said(Path(folder))}; nothing is "
            f"lost: run the same command again when the machine is less busy (load {os.getloadavg()[0]:.1f} on "
            f"{os.cpu_count()} cores), or on a cluster with --address; Ray's own logs are in {folder}"
        ) from error


@contextlib.contextmanager
def connecting(address: str, named: str) -> Iterator[None]:
    """Put what went wrong while this process connected to a Ray into a message.

    Raises:
        ConfigError: nothing at `address`, no Ray, or one of another version or token; `named` is where it was given.
    """
    try:
        yield
    except USER_ERRORS:
        raise
    except Exception as error:
        text = _first(error)
        if "uthenticat" in text or "nauthorized" in text or "token" in text.lower():
            text += "; the cluster asks for its token (RAY_AUTH_TOKEN)"
        raise ConfigError(f"{named}: no Ray cluster answers at {address!r} to this process: {text}") from error


def _first(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__)[:300].rstrip(".")


def _shared_memory() -> str:
    with contextlib.suppress(OSError):
        free = shutil.disk_usage("/dev/shm").free  # noqa: S108 - nothing is written there
        if free < 2**27:
            return f" (/dev/shm has {free / 2**20:.0f} MiB left; a container takes more with --shm-size)"
    return ""


def _said(folder: Path) -> str:
    """Return the last complaint of Ray's processes, where their logs hold one."""
    for log in sorted((*folder.glob("session_*/logs/gcs_server.out"), *folder.glob("session_*/logs/raylet.out"))):
        with contextlib.suppress(OSError):
            lines = log.read_bytes()[-20_000:].decode(errors="replace").splitlines()
            found = [
                line
                for line in lines
                if any(word in line for word in ("Address already in use", " C ", " F ", "No space"))
            ]
            if found:
                return f" ({log.name}: {found[-1].strip()[:200]})"
    return ""
