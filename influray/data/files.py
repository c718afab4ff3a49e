"""What a config names -> the files whose rows are read, each with what it holds."""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from influray.data import hub
from influray.data.folders import DiskFolder, Found, StoredFolder, search
from influray.data.kinds import SUFFIXES, Kind, recognise, suffix_of
from influray.data.reading import PLAIN, Reading
from influray.protocols import DataError
from influray.store.artifact import fingerprint
from influray.store.checks import hash_once
from influray.store.mirror import local, location_of, present
from influray.store.uri import is_uri, parse_uri

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class DataFile:
    """One source of rows. `path` is what messages show, `name` what the catalogue keeps: relative to the root."""

    path: str
    name: str
    kind: Kind
    compression: str = ""  # "", "gzip" or "zstd"
    reading: Reading = PLAIN  # what its entry says of its rows

    @property
    def real(self) -> str:
        """What links lead to."""
        return self.path if self.kind == "hub" else os.path.realpath(self.path)

    @property
    def stem(self) -> str:
        """The name without folders and suffixes: the source of rows that name none."""
        last = self.name.rstrip("/").rsplit("/", 1)[-1]
        suffix = suffix_of(last)
        return last[: -len(suffix)] if suffix else last


def resolve_files(entries: Sequence[str], root: str | Path, key: str, first: int = 0) -> list[DataFile]:
    """Return the files that config entries name, in byte order of their names.

    An entry is a file, which is read by its content whatever its name; a folder, of which `folders.search` says what
    is read; the same on object storage (`s3://`, `gs://`); or an `hf://` id. Relative ones start at `root`. `key` is
    the dotted key of the list, for messages, and `first` the place in it of the first entry. What a folder holds and
    is not read is counted in one warning.

    Raises:
        DataError: nothing there, a kind that is not read, a folder without data, a file named twice.
    """
    named = [(f"{key}.{i}", entry) for i, entry in enumerate(entries, first)]
    return in_order((where, file) for where, entry in named for file in _entry_files(entry, Path(root), where))


def in_order(named: Iterable[tuple[str, DataFile]]) -> list[DataFile]:
    """Return files in byte order of their names. Raises DataError where two entries (dotted key, file) name one."""
    found: dict[str, DataFile] = {}
    before: dict[str, str] = {}  # name, or what links lead to -> the entry
    for where, file in named:
        if first := before.get(file.name, before.get(file.real)):
            raise DataError(f"{where}: {file.path} is already named by {first}; name it once")
        found[file.name] = file
        before[file.name] = before[file.real] = where
    return [found[name] for name in sorted(found, key=os.fsencode)]


def file_digest(file: DataFile) -> str:
    """Return what identifies the content: the sha256 of the bytes, or of a hub data set's resolved revision."""
    if file.kind == "hub":
        return fingerprint(hub.origin(file.path))
    try:
        return hash_once(file.path)
    except OSError as error:
        raise DataError(f"{file.path}: cannot be read: {error.strerror}") from error


def _entry_files(entry: str, root: Path, where: str) -> Iterator[DataFile]:
    if entry.startswith(hub.PREFIX):
        hub.parse(entry, where)
        yield DataFile(entry, entry, "hub")
    elif is_uri(entry):
        yield from _stored_files(entry, where)
    else:
        path = root / entry
        if path.is_dir():
            for relative in _kept(search(DiskFolder(path), where), str(path), where):
                yield _data_file(path / relative, _name(path / relative, root), where)
        elif path.is_file():
            yield _data_file(path, _name(path, root), where)
        else:
            raise DataError(f"{where}: {path}: {_absence(path)}; relative paths start at data.root ({root})")


def _absence(path: Path) -> str:
    if path.is_symlink():
        return f"is a link to {os.readlink(path)}, and nothing is there"
    return "is neither a file nor a folder" if path.exists() else "no such file or folder"


def _stored_files(uri: str, where: str) -> Iterator[DataFile]:
    """Fetch a file or what is read of a folder of object storage into this machine's cache."""
    place, name = local(uri, where), parse_uri(uri, where).shown
    location = location_of(place)
    assert location is not None, uri
    info, below = location.stat(place), location.below(place)
    # Tools mark a folder by an empty object of its name.
    if info is not None and (info.size or not below):
        if below:
            raise DataError(f"{where}: {name} is an object and a folder at once; copy one of them to another name")
        yield _data_file(present(place), name, where)
        return
    if unsafe := location.unsafe(place):
        raise DataError(
            f"{where}: {name}: the key {unsafe[0]!r} has an empty name between slashes, . or .., or one of more than "
            "255 bytes, which no folder can hold; copy the object to another name"
        )
    sizes = {path.relative_to(place).as_posix(): size for path, size in below.items()}
    try:
        folder = StoredFolder(place, name, sizes)
    except DataError as error:
        raise DataError(f"{where}: {error}") from error
    for relative in _kept(search(folder, where), name, where):
        yield _data_file(present(place / relative), f"{name}/{relative}", where)


def _kept(found: Found, folder: str, where: str) -> list[str]:
    """Return the files to read, and tell of the others."""
    if not found.files:
        others = f"; {found.told()}" if found.left else ""
        raise DataError(
            f"{where}: {folder} holds no file with a suffix that is read ({', '.join(SUFFIXES)}; text also .gz, .zst)"
            f"{others}"
        )
    if found.left:
        _warn_once(f"{where}: in {folder} {found.told()}")
    return found.files


@functools.cache  # a run looks at its files more than once
def _warn_once(message: str) -> None:
    log.warning("%s", message)


def _name(path: Path, root: Path) -> str:
    relative = os.path.relpath(path, root)
    return (str(path) if relative.startswith("..") else relative).replace(os.sep, "/")


def _data_file(path: Path, name: str, where: str) -> DataFile:
    try:
        return DataFile(str(path), name, *recognise(str(path)))
    except DataError as error:
        raise DataError(f"{where}: {error}") from error
