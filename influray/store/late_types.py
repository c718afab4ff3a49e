"""Whether `datasets` will load a file of JSON lines: it decides on the types of all lines by the first 10 MiB.

Within that, records of different keys are no matter: they are kept as JSON. A value that first appears behind it,
where there were only nulls or other keys before, ends its loading in an error.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from influray.protocols import DataError

CHUNK_BYTES = 10 * 2**20


class FirstChunk:
    """Sees every record of a file in order. `mend` is what a user can do."""

    def __init__(self, file: str, mend: str) -> None:
        self._file, self._mend = file, mend
        self._bytes = self._lines = 0
        self._kinds: set[tuple[str, str]] = set()
        self._keys: dict[str, set[frozenset[str]]] = {}
        self._free: set[str] | None = None

    def add(self, record: dict[str, Any], size: int) -> None:
        """Take note of a record of `size` bytes. Raises DataError where its types come too late."""
        self._lines += 1
        if self._bytes < CHUNK_BYTES:
            for path, kind, keys in _walk("", record):
                self._kinds.add((path, kind))
                if keys is not None:
                    self._keys.setdefault(path, set()).add(keys)
        else:
            self._check(record)
        self._bytes += size

    def _check(self, record: dict[str, Any]) -> None:
        if self._free is None:  # kept as JSON: below them anything goes
            self._free = {path for path, keys in self._keys.items() if path and (len(keys) > 1 or frozenset() in keys)}
        for path, kind, keys in _walk("", record, self._free):
            if kind != "null" and ((path, kind) not in self._kinds or (keys and keys not in self._keys[path])):
                raise DataError(
                    f"{self._file}: {path.lstrip('.')} of line {self._lines} is the first of its kind, behind the "
                    f"10 MiB by which `datasets` decides on types; {self._mend}, which states them"
                )


def _walk(path: str, value: Any, stop: frozenset[str] | set[str] = frozenset()) -> Iterator[tuple[str, str, Any]]:
    """Yield (path, kind, keys of an object) of a value and all within."""
    if path in stop:
        return
    if isinstance(value, dict):
        yield path, "object", frozenset(value)
        for key, item in value.items():
            yield from _walk(f"{path}.{key}", item, stop)
    elif isinstance(value, list):
        yield path, "list", None
        for item in value:
            yield from _walk(f"{path}[]", item, stop)
    else:
        yield path, "null" if value is None else type(value).__name__, None
