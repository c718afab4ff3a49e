"""Which ids are taken, in 16 bytes a row: so much of a pool, and no more, has to be in memory at once.

Shape suffixes: R rows.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from influray.data.records import Record

FIRST = "#1"  # how the id of a content that comes for the first time ends


def id_hashes(ids: Iterable[str]) -> np.ndarray:
    """Return a 64-bit hash of each id, int64, the same in every process."""
    digests = (hashlib.blake2b(identity.encode("utf-8"), digest_size=8).digest() for identity in ids)
    return np.frombuffer(b"".join(digests), dtype="<i8").astype(np.int64, copy=False)


def content_name(record: Record) -> str:
    """Return the id of a row without one, where its content comes for the first time: a hash of it + "#1".

    Of turns that are a role and a content each, it is the hash of those alone; where there are other keys, turns that
    are not trained, tools or options of the template, these count as well.
    """
    turns: list[Any] = [(turn.role, turn.content) for turn in record.turns]
    if any(turn.extra or not turn.trained for turn in record.turns):
        turns = [[*pair, turn.extra, turn.trained] for pair, turn in zip(turns, record.turns, strict=True)]
    beside = [record.tools, record.template_options] if record.tools or record.template_options else []
    content = [turns, *beside] if beside else turns
    plain = json.dumps(content, ensure_ascii=False, separators=(",", ":"), sort_keys=True)
    return hashlib.sha256(plain.encode("utf-8")).hexdigest()[:32] + FIRST


class IdIndex:
    """Where each id was first used.

    Ids of the draft that is being numbered are kept as they are; those before it as sorted 64-bit hashes with their
    rows (in a few arrays of growing size, merged as they come). A hash only points at a row: `id_at(row)` decides, so
    two ids of one hash do no harm.
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

    def find_recent(self, identity: str) -> int | None:
        """Return the row since the last `settle` that has this id."""
        return self._recent.get(identity)

    def seen(self, hash_R: np.ndarray) -> np.ndarray:
        """Return whether each hash is that of a settled id, bool [R]. Where it is not, neither is the id."""
        found_R = np.zeros(len(hash_R), bool)
        for hashes, _ in self._levels:
            at_R = np.minimum(np.searchsorted(hashes, hash_R), len(hashes) - 1)
            found_R |= hashes[at_R] == hash_R
        return found_R

    def add(self, identity: str, row: int) -> None:
        self._recent[identity] = row

    def settle(self) -> None:
        """Move the ids that were added to the compact form; from now on `id_at` answers for them."""
        self.load(id_hashes(self._recent), next(iter(self._recent.values()), 0))
        self._recent = {}

    def load(self, hash_R: np.ndarray, first_row: int) -> None:
        """Take in the hashes of the ids of consecutive rows, for which `id_at` answers."""
        if not len(hash_R):
            return
        self._levels.append(_by_hash(hash_R, first_row + np.arange(len(hash_R), dtype=np.int64)))
        while len(self._levels) > 1 and 2 * len(self._levels[-1][0]) > len(self._levels[-2][0]):
            pairs = zip(*(self._levels.pop() for _ in range(2)), strict=True)
            self._levels.append(_by_hash(*(np.concatenate(arrays) for arrays in pairs)))

    def name_for(self, first: str) -> str:
        """Return the id of a row without one, `content_name` being `first`: with which one of that content it is."""
        content = first.removesuffix(FIRST)
        occurrence = self._occurrences.get(content, 1)
        while self.find(f"{content}#{occurrence}") is not None:
            occurrence += 1
            self._occurrences[content] = occurrence
        return f"{content}#{occurrence}"

    def _find_old(self, identity: str) -> int | None:
        value = id_hashes([identity])[0]
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
