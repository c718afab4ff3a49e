"""A folder on object storage and its mirror on this machine.

Everything is worked on in the mirror, an ordinary folder; what counts is what lies in the bucket. A file is uploaded
before it gets its name in the mirror, and a file of the mirror carries the size and the time of the object that it
is a copy of: where they differ it is fetched again. So processes of one machine share a mirror without a lock, and
the mirror can be deleted at any time.
"""

from __future__ import annotations

import functools
import logging
import os
import random
import shutil
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import TypeVar
from urllib.parse import quote

import pyarrow as pa
from pyarrow import fs

from influray.protocols import ConfigError, StorageError
from influray.store.uri import CREDENTIALS, StorageUri

logger = logging.getLogger(__name__)

ATTEMPTS = 5  # of each request, on top of those that the file system makes by itself
FIRST_PAUSE_SECONDS = 0.25  # doubled each time
SMALL = 2**22  # bytes; an object below is one PUT
BUFFER = 2**24  # bytes in memory at once
LONGEST = 255  # bytes of a name on a disk
PARTS = "part-"  # what begins so never changes once it is there: each attempt has a name of its own
# What no repetition mends: errors as AWS and Google name them.
_FINAL = ("ACCESS_DENIED", "NO_SUCH_BUCKET", "INVALID_ACCESS_KEY", "SIGNATURE_DOES_NOT_MATCH", "INVALID_CLIENT_TOKEN")
_FINAL += ("PERMISSION_DENIED", "UNAUTHENTICATED", "UNRECOGNIZED_CLIENT", "HTTP status 403", "HTTP status 401")

T = TypeVar("T")


class Location:
    """A folder in a bucket; `root` is its mirror. Paths are those of files in the mirror.

    Every method raises StorageError where the storage does not answer, and ConfigError where it refuses.
    """

    def __init__(self, uri: StorageUri, root: Path) -> None:
        self.uri = uri
        self.root = root
        self._settled: set[Path] = set()

    @cached_property
    def filesystem(self) -> fs.FileSystem:
        """The pyarrow file system of the bucket; reaches for the network when first asked for."""
        return self.uri.filesystem()

    @cached_property
    def _in_parts(self) -> fs.FileSystem:
        return self.uri.filesystem(delayed=False)

    def address(self, path: Path) -> str:
        """Return the URI, and after a # what of it a path of the mirror is."""
        relative = quote(self._relative(path))
        return f"{self.uri}#{relative}" if relative else str(self.uri)

    def key(self, path: Path) -> str:
        """Return bucket and name of the object of a path."""
        return f"{self.uri.key}/{self._relative(path)}".rstrip("/")

    def shared(self, path: Path) -> bool:
        """Return whether a path is one of the bucket's: what is being made (.NAME.tmp) is this machine's own."""
        pieces = path.relative_to(self.root).parts
        return not any(piece.startswith(".") and piece.endswith((".tmp", ".old")) for piece in pieces)

    def stat(self, path: Path) -> fs.FileInfo | None:
        """Return size and time of the object of a path, None where there is none."""
        info = self._ask("looking for", path, lambda system: system.get_file_info(self.key(path)))
        return info if info.type == fs.FileType.File else None

    def upload(self, source: Path, path: Path) -> None:
        """Make the file `source` the object of `path`, and give it the object's time."""
        size = source.stat().st_size

        def put(system: fs.FileSystem) -> fs.FileInfo:
            # In another thread, which no signal reaches: a stream that is given up half-way leaves half an object.
            _uploads().submit(self._put, source, self.key(path)).result()
            info = system.get_file_info(self.key(path))
            if info.type != fs.FileType.File or info.size != size:
                raise OSError(f"{info.size} bytes arrived of {size}")
            return info

        info = self._ask("writing", path, put)
        _stamp(source, info)
        self._settled.add(path)

    def fetch(self, path: Path, anew: bool = False) -> None:
        """Bring the file of the mirror to what the object is; where there is no object, none is left.

        A part that this process has seen once is looked at again only where `anew` says so.
        """
        if not anew and path in self._settled and path.name.startswith(PARTS) and path.exists():
            return
        info = self.stat(path)
        if info is None:
            if not path.is_dir():
                path.unlink(missing_ok=True)
            return
        # A time is of whole seconds: what may change within one is read anew.
        if path.suffix == ".json" or not _same(path, info):
            self._download(path, info)
        self._settled.add(path)

    def fetch_folder(self, folder: Path) -> None:
        """Bring all files below a folder of the mirror to what the bucket holds."""
        infos = {self._path(info.path): info for info in self._files(folder)}
        for path in [path for path in folder.rglob("*") if path.is_file()]:
            if path not in infos and self.shared(path):
                path.unlink(missing_ok=True)
        for path, info in infos.items():
            if not _same(path, info):
                self._download(path, info)
            self._settled.add(path)

    def below(self, folder: Path) -> dict[Path, int]:
        """Return path -> bytes of all objects below a folder, sorted; they need not be in the mirror."""
        return dict(sorted((self._path(info.path), info.size) for info in self._files(folder)))

    def unsafe(self, folder: Path) -> list[str]:
        """Return the keys below a folder that no file can have: two slashes on end, `.` or `..`, a name too long."""
        selector = fs.FileSelector(self.key(folder), allow_not_found=True, recursive=True)
        infos = self._ask("listing", folder, lambda system: system.get_file_info(selector))
        return sorted(info.path for info in infos if info.type == fs.FileType.File and not self._safe(info.path))

    def paths(self, folder: Path) -> list[Path]:
        """Return the paths of all objects below a folder, sorted; they need not be in the mirror."""
        return list(self.below(folder))

    def names(self, folder: Path) -> list[str]:
        """Return the names directly below a folder, of objects and of folders of them, sorted."""
        selector = fs.FileSelector(self.key(folder), allow_not_found=True, recursive=False)
        infos = self._ask("listing", folder, lambda system: system.get_file_info(selector))
        return sorted(info.base_name for info in infos)

    def sizes(self, folder: Path) -> dict[str, int]:
        """Return name -> bytes of the objects in a folder, without those of folders in it."""
        return {path.name: size for path, size in self.below(folder).items() if path.parent == folder}

    def delete(self, path: Path) -> None:
        """Delete the object of a path where there is one; its file stays."""

        def remove(system: fs.FileSystem) -> None:
            try:
                system.delete_file(self.key(path))
            except FileNotFoundError:
                return

        self._ask("deleting", path, remove)
        self._settled.discard(path)

    def probe(self, path: Path) -> int:
        """Return the storage's own time in nanoseconds, by an object that is written and deleted."""
        source = self.root / f".{uuid.uuid4().hex}.tmp"
        source.parent.mkdir(parents=True, exist_ok=True)
        source.write_bytes(b"")
        try:
            self.upload(source, path)
            return source.stat().st_mtime_ns
        finally:
            source.unlink()
            self.delete(path)

    def _files(self, folder: Path) -> Iterator[fs.FileInfo]:
        selector = fs.FileSelector(self.key(folder), allow_not_found=True, recursive=True)
        infos = self._ask("listing", folder, lambda system: system.get_file_info(selector))
        return (info for info in infos if info.type == fs.FileType.File and self._safe(info.path))

    def _download(self, path: Path, info: fs.FileInfo) -> None:
        self._make_way(path)
        temporary = path.with_name(f".{uuid.uuid4().hex}.tmp")  # a name of its own may be as long as names can be

        def get(system: fs.FileSystem) -> bool:
            nonlocal info
            try:
                stream = system.open_input_file(info.path)
            except FileNotFoundError:  # deleted meanwhile
                return False
            with stream, open(temporary, "wb") as file:
                while piece := stream.read(BUFFER):
                    file.write(piece)
            # Read as a range of the size that it had when it was opened: what replaced it since may be cut off there.
            before, info = info, info if path.name.startswith(PARTS) else system.get_file_info(info.path)
            if info.type == fs.FileType.NotFound:
                return False
            if (info.size, info.mtime_ns) != (before.size, before.mtime_ns):
                raise OSError("it was replaced meanwhile")
            if (arrived := temporary.stat().st_size) != info.size:
                raise OSError(f"{arrived} bytes arrived of {info.size}")
            return True

        try:
            if self._ask("reading", path, get):
                _stamp(temporary, info)
                os.replace(temporary, path)
            else:
                path.unlink(missing_ok=True)
        finally:
            temporary.unlink(missing_ok=True)

    def _make_way(self, path: Path) -> None:
        """Make the folder of a file, in the place of what an object of an earlier day left in the mirror."""
        for above in path.parents:
            if above.is_relative_to(self.root) and above.is_file():
                above.unlink()
        if path.is_dir():
            shutil.rmtree(path)
        path.parent.mkdir(parents=True, exist_ok=True)

    def _put(self, source: Path, key: str) -> None:
        """Write the object `key`. pyarrow's copy_files will not do: it drops the error of closing (26.0)."""
        with open(source, "rb") as file:
            data = file.read(SMALL)
            if len(data) < SMALL:
                stream = self.filesystem.open_output_stream(key)
                stream.write(data)
            else:
                # Opened as an upload in parts. Where a delayed one cannot be begun, pyarrow (26.0) gives it up by
                # writing an empty object, whatever was there before.
                stream = self._in_parts.open_output_stream(key)
                while data:
                    stream.write(data)
                    data = file.read(BUFFER)
        stream.close()

    def _ask(self, doing: str, path: Path, request: Callable[[fs.FileSystem], T]) -> T:
        shown = self.uri.join(self._relative(path)).shown
        for attempt in range(1, ATTEMPTS + 1):
            try:
                return request(self.filesystem)
            except pa.ArrowInvalid as error:
                # pyarrow (26.0) gives up a whole listing for one name with an empty piece.
                raise ConfigError(
                    f"{shown}: {error}; an object below it has a name that cannot be read, such as one with two "
                    "slashes on end: copy it to another name"
                ) from error
            except OSError as error:
                text = str(error).partition(" (Request ID")[0]
                if any(name in text for name in _FINAL):
                    raise ConfigError(
                        f"{shown}: refused while {doing} it: {text}; check the bucket, its region and its rights; "
                        f"credentials are taken from {CREDENTIALS[self.uri.scheme]}"
                    ) from error
                if attempt == ATTEMPTS:
                    raise StorageError(
                        f"{shown}: the storage failed {ATTEMPTS} times while {doing} it, the last time with: {text}; "
                        "what is committed there is safe: run the same command again when it answers"
                    ) from error
                pause = FIRST_PAUSE_SECONDS * 2 ** (attempt - 1) * random.uniform(0.5, 1.5)
                logger.warning("%s: %s it failed (%s); again in %.1f s", shown, doing, text, pause)
                time.sleep(pause)
        raise AssertionError

    def _relative(self, path: Path) -> str:
        relative = path.relative_to(self.root).as_posix()
        return "" if relative == "." else relative

    def _path(self, key: str) -> Path:
        return self.root / key.removeprefix(self.uri.key).lstrip("/")

    def _safe(self, key: str) -> bool:
        """Whether the file of an object lies in the mirror: a name in a bucket may hold anything."""
        pieces = key.removeprefix(self.uri.key).removeprefix("/").split("/")
        return "\0" not in key and all(
            piece not in ("", ".", "..") and len(piece.encode("utf-8", "surrogateescape")) <= LONGEST
            for piece in pieces
        )


@functools.cache
def _uploads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(8, "upload")


def _stamp(path: Path, info: fs.FileInfo) -> None:
    os.utime(path, ns=(info.mtime_ns, info.mtime_ns))


def _same(path: Path, info: fs.FileInfo) -> bool:
    try:
        found = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    return found.st_size == info.size and found.st_mtime_ns == info.mtime_ns
