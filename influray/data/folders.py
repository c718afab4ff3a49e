"""Which files of a folder are its data, as other tools leave folders: datasets, hubs, Spark, desktops."""

from __future__ import annotations

import json
import os
import stat
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, NamedTuple

from influray.data.kinds import suffix_of
from influray.protocols import DataError
from influray.store.mirror import present

TEMPORARY = (".tmp", ".temp", ".part", ".partial", ".incomplete", ".crdownload", ".inprogress", ".lock", ".swp", "~")
# JSON that tells of data and holds none: of datasets, of its older versions, of LLaMA-Factory's folders.
METADATA = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json")
SHOWN = 3  # names of each kind that are not read


class Entry(NamedTuple):
    """A name in a folder. `real` is what it is once links are followed; it names nothing where a link is broken."""

    name: str
    what: str  # "file", "folder", "broken" or "special"
    linked: bool
    real: str


@dataclass
class Found:
    """The files to read, and reason -> those left out."""

    files: list[str] = field(default_factory=list)
    left: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))

    def told(self) -> str:
        """Return what is not read, counted, with examples."""
        kinds = []
        for reason, names in sorted(self.left.items()):
            examples = ", ".join(sorted(names)[:SHOWN]) + (", ..." if len(names) > SHOWN else "")
            kinds.append(f"{len(names)} {reason} ({examples})")
        count = sum(map(len, self.left.values()))
        return f"{count} {'entry is' if count == 1 else 'entries are'} not read: {'; '.join(kinds)}"


def search(folder: DiskFolder | StoredFolder, where: str) -> Found:
    """Return the data files of a folder and of those in it, relative to it.

    A file is data by its suffix. Left out are hidden names (.*), those of Spark and of desktops (_*, but for
    key=value), temporary ones, caches of `datasets` (cache-*.arrow) and metadata. A folder of `save_to_disk` gives the
    files that its state.json lists; one of several splits is refused, naming them; the cache of a hub gives the
    snapshot of its main revision. Links are followed; what is reached twice is read once, without a link if that can
    be. `where` is the config's key, for messages.

    Raises:
        DataError: a link that leads nowhere, a folder that cannot be listed, a split or a file that is missing.
    """
    walk = _Walk(folder, where)
    walk.visit("", folder.real(""))
    while walk.linked_folders:
        walk.visit(*walk.linked_folders.pop(0))
    for place, real in walk.linked_files:
        walk.keep(place, real)
    walk.found.files.sort(key=os.fsencode)
    return walk.found


class _Walk:
    def __init__(self, folder: DiskFolder | StoredFolder, where: str) -> None:
        self._folder = folder
        self._where = where
        self._seen: set[str] = set()
        self.found = Found()
        self.linked_folders: list[tuple[str, str]] = []
        self.linked_files: list[tuple[str, str]] = []

    def visit(self, place: str, real: str) -> None:
        """Take in a folder; what links lead to is put off, so that a file is found under its own name first."""
        if not self._first(place, real):
            return
        try:
            entries = {entry.name: entry for entry in sorted(self._folder.entries(place))}
        except OSError as error:
            raise self._error(place, f": cannot be listed: {error.strerror}") from error
        only = self._chosen(place, entries)
        for entry in entries.values():
            at = _joined(place, entry.name)
            if only is not None and entry.name not in only[0]:
                self.found.left[only[1]].append(at)
            else:
                self._take(at, entry, chosen=only is not None)

    def keep(self, place: str, real: str) -> None:
        """Keep a file, unless it is kept already under another name."""
        if self._first(place, real):
            self.found.files.append(place)

    def _first(self, place: str, real: str) -> bool:
        if real in self._seen:
            self.found.left["reached twice by links"].append(place)
            return False
        self._seen.add(real)
        return True

    def _take(self, at: str, entry: Entry, chosen: bool) -> None:
        is_folder = entry.what == "folder"
        reason = "" if chosen else _why_not(entry.name, is_folder)
        if reason or entry.what == "special":
            self.found.left[reason or "not a file"].append(f"{at}/" if is_folder else at)
        elif entry.what == "broken":
            mend = "; fetch it (git annex get)" if ".git/annex" in entry.real else ""
            raise self._error(at, f" is a link to {entry.real}, and nothing is there{mend}")
        elif entry.linked:
            (self.linked_folders if is_folder else self.linked_files).append((at, entry.real))
        else:
            (self.visit if is_folder else self.keep)(at, entry.real)

    def _error(self, place: str, text: str) -> DataError:
        return DataError(f"{self._where}: {self._folder.shown(place)}{text}")

    def _chosen(self, place: str, entries: dict[str, Entry]) -> tuple[set[str], str] | None:
        """Return the only names of a folder that count and why others do not, None where that is judged by name.

        Names that are dealt with here are taken out of `entries`.
        """
        for name, listed in (("dataset_dict.json", self._split), ("state.json", self._listed)):
            if name in entries and (found := listed(place, entries)) is not None:
                for metadata in METADATA:
                    entries.pop(metadata, None)
                return found, f"not in {name}"
        folders = {name for name, entry in entries.items() if entry.what == "folder"}
        if "snapshots" in folders and folders & {"refs", "blobs"}:
            self._visit_snapshot(place, folders)
            for name in ("snapshots", "refs", "blobs"):
                entries.pop(name, None)
        return None

    def _split(self, place: str, entries: Mapping[str, Entry]) -> set[str]:
        told = self._json(_joined(place, "dataset_dict.json"))
        splits = told.get("splits") if isinstance(told, dict) else None
        if not isinstance(splits, list) or not splits or not all(isinstance(split, str) for split in splits):
            return {name for name, entry in entries.items() if entry.what == "folder"}
        if len(splits) > 1:
            named = f"{self._folder.shown(place)}/{splits[0]}"
            raise self._error(place, f" holds the splits {', '.join(splits)}; name one: {named}")
        if splits[0] not in entries:
            raise self._error(place, f": the split {splits[0]!r} of dataset_dict.json is not there")
        return set(splits)

    def _listed(self, place: str, entries: Mapping[str, Entry]) -> set[str] | None:
        """Return the files of a saved data set, None where state.json is another tool's."""
        state = self._json(_joined(place, "state.json"))
        files = state.get("_data_files") if isinstance(state, dict) else None
        if not isinstance(files, list):
            return None
        names = {str(file.get("filename")) for file in files if isinstance(file, dict)}
        if missing := sorted(names - set(entries)):
            raise self._error(place, f": {missing[0]}, which state.json lists, is not there")
        if state.get("_indices_files") or state.get("_indices_data_files"):
            mend = "load it, flatten_indices() and save it again"
            raise self._error(place, f": saved with an index of its rows, by an old version of datasets; {mend}")
        return names

    def _visit_snapshot(self, place: str, folders: set[str]) -> None:
        """Take in one revision of a hub's cache: the one that refs/main names, or the only one."""
        snapshots = _joined(place, "snapshots")
        revisions = {entry.name: entry for entry in self._folder.entries(snapshots) if entry.what == "folder"}
        main = ""
        if "refs" in folders and any(entry.name == "main" for entry in self._folder.entries(_joined(place, "refs"))):
            main = self._folder.read(_joined(place, "refs/main")).decode("utf-8", "replace").strip()
        elif len(revisions) == 1:
            main = next(iter(revisions))
        if main not in revisions:
            raise self._error(snapshots, f" holds {len(revisions)} revisions and none is main; name one of them")
        self.visit(_joined(snapshots, main), revisions[main].real)
        if others := [f"{_joined(snapshots, name)}/" for name in revisions if name != main]:
            self.found.left["other revisions"] += others

    def _json(self, place: str) -> Any:
        try:
            return json.loads(self._folder.read(place))
        except (ValueError, RecursionError, OSError) as error:
            raise self._error(place, f": cannot be read: {error}") from error


def _why_not(name: str, is_folder: bool) -> str:
    """Return why a name is not read, "" where it is."""
    if name.startswith(".") or (name.startswith("_") and "=" not in name):
        return "hidden"
    if name.lower().endswith(TEMPORARY):
        return "temporary"
    if is_folder:
        return ""
    if fnmatch(name, "cache-*.arrow"):
        return "caches of datasets"
    if name in METADATA:
        return "metadata"
    return "" if suffix_of(name) else "of another kind"


def _joined(place: str, name: str) -> str:
    return f"{place}/{name}" if place else name


class DiskFolder:
    """A folder of this machine."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def shown(self, place: str) -> str:
        """Return the path of a place."""
        return str(self._path / place)

    def read(self, place: str) -> bytes:
        """Return the bytes of a file."""
        return (self._path / place).read_bytes()

    def real(self, place: str) -> str:
        """Return the path of a place once links are followed."""
        return os.path.realpath(self._path / place)

    def entries(self, place: str) -> Sequence[Entry]:
        """Return what a folder holds. Raises OSError where it cannot be listed."""
        here = self.real(place)
        with os.scandir(here) as found:
            return [_disk_entry(entry, here) for entry in found]


def _disk_entry(entry: os.DirEntry[str], folder: str) -> Entry:
    linked = entry.is_symlink()
    real = os.path.realpath(entry.path) if linked else os.path.join(folder, entry.name)
    try:
        mode = entry.stat().st_mode
    except OSError:  # also a link to itself
        return Entry(entry.name, "broken", linked, os.readlink(entry.path) if linked else real)
    what = "folder" if stat.S_ISDIR(mode) else "file" if stat.S_ISREG(mode) else "special"
    return Entry(entry.name, what, linked, real)


class StoredFolder:
    """A folder on object storage. `name` is what messages call it; `sizes` are those of the objects below it.

    Raises:
        DataError: an object is called as a folder is; an empty one is the mark that tools make of a folder.
    """

    def __init__(self, mirror: Path, name: str, sizes: Mapping[str, int]) -> None:
        self._mirror = mirror
        self._name = name
        self._below: dict[str, dict[str, Entry]] = defaultdict(dict)
        for place in sizes:
            parts = place.split("/")
            for depth, part in enumerate(parts[:-1]):
                above, here = "/".join(parts[:depth]), "/".join(parts[: depth + 1])
                self._below[above][part] = Entry(part, "folder", False, here)
                if sizes.get(here):
                    raise DataError(f"{self.shown(here)} is an object and a folder at once; copy one to another name")
        for place in sizes:
            above, _, part = place.rpartition("/")
            self._below[above].setdefault(part, Entry(part, "file", False, place))

    def shown(self, place: str) -> str:
        """Return what messages call a place."""
        return _joined(self._name, place) if place else self._name

    def real(self, place: str) -> str:
        """Return the place: there are no links."""
        return place

    def read(self, place: str) -> bytes:
        """Return the bytes of an object."""
        return present(self._mirror / place).read_bytes()

    def entries(self, place: str) -> Sequence[Entry]:
        """Return what a folder holds."""
        return list(self._below[place].values())
