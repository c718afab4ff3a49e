"""Which ids are taken, in 16 bytes a row: so much of a pool, and no more, has to be in memory at once."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from influray.data.records import Turn


class IdIndex:
    """Where each id was first used.

    Ids of the part that is being made are kept as they are; those before it as sorted 64-bit hashes with their rows
    (in a few arrays of growing size, merged as they come). A hash only points at a row: `id_at(row)` decides, so two
    ids of one hash do no harm, and Python's own hash, another in every process, will do.
    """

    def __init__(self, id_at: Callable[[int], str]) -> None:
        self._id_at = id_at
        self._recent: dict[str, int] = {}
        self._levels: list[tuple[np.ndarray, np.ndarray]] = []  # (hash, row), by hash
        self._occurrences: dict[str, int] = {}  # of contents without an id that came more than once

    def find(self, identity: str) -> int | None:
        """Return the row that has this id."""
        if identity in self._recent:
            return self._recent[identity]
        return self._find_old(identity) if self._levels else None

    def add(self, identity: str, row: int) -> None:
        self._recent[identity] = row

    def settle(self) -> None:
        """Move the ids of a finished part to the compact form; from now on `id_at` answers for them."""
        self.load(self._recent, next(iter(self._recent.values()), 0))
        self._recent = {}

    def load(self, ids: Iterable[str], first_row: int) -> None:
        """Take in the ids of consecutive rows of a part that is there already."""
        hashes = np.fromiter(map(hash, ids), dtype=np.int64)
        if not len(hashes):
            return
        self._levels.append(_by_hash(hashes, first_row + np.arange(len(hashes), dtype=np.int64)))
        while len(self._levels) > 1 and 2 * len(self._levels[-1][0]) > len(self._levels[-2][0]):
            pairs = zip(*(self._levels.pop() for _ in range(2)), strict=True)
            self._levels.append(_by_hash(*(np.concatenate(arrays) for arrays in pairs)))

    def name_for(self, turns: Sequence[Turn]) -> str:
        """Return the id of a row without one: a hash of its turns + "#" + which one of that content it is, from 1."""
        plain = json.dumps([(turn.role, turn.content) for turn in turns], ensure_ascii=False, separators=(",", ":"))
        content = hashlib.sha256(plain.encode("utf-8")).hexdigest()[:32]
        occurrence = self._occurrences.get(content, 1)
        while self.find(f"{content}#{occurrence}") is not None:
            occurrence += 1
            self._occurrences[content] = occurrence
        return f"{content}#{occurrence}"

    def _find_old(self, identity: str) -> int | None:
        value = hash(identity)
        for hashes, rows in self._levels:
            at = int(np.searchsorted(hashes, value))
            while at < len(hashes) and hashes[at] == value:
                if self._id_at(int(rows[at])) == identity:
                    return int(rows[at])
                at += 1
        return None


def _by_hash(hashes: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    order = np.argsort(hashes, kind="stable")
    return hashes[order], rows[order]
