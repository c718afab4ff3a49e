"""Which ids are taken, in 24 bytes a row: so much of a pool, and no more, has to be in memory at once.

Shape suffixes: R rows.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from typing import Any

import numpy as np

from influray.data.records import Record

FIRST = "#1"  # how the id of a content that comes for the first time ends


def id_hashes(ids: Iterable[str]) -> np.ndarray:
    """Return 128 bits of hash of each id, int64 [R, 2], the same in every process."""
    digests = (hashlib.blake2b(identity.encode("utf-8"), digest_size=16).digest() for identity in ids)
    return np.frombuffer(b"".join(digests), dtype="<i8").reshape(-1, 2)


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
    """Where each id was first used: the place, a number that the caller gives, by the id's hash.

    Ids of the draft that is being numbered are in a dict; those before it in a few arrays of growing size, sorted by
    the first half of the hash and merged as they come.
    """

    def __init__(self) -> None:
        self.recent: dict[tuple[int, ...], int] = {}  # added since the last `settle`
        self._levels: list[np.ndarray] = []  # int64 [3, ids]: both halves of the hash, the place
        self._occurrences: dict[str, int] = {}  # of contents without an id that came more than once

    def find(self, hashed: tuple[int, ...]) -> int | None:
        """Return the place of the id of a hash, None where there is none."""
        if hashed in self.recent:
            return self.recent[hashed]
        for first, second, places in self._levels:
            at = int(np.searchsorted(first, hashed[0]))
            while at < len(first) and first[at] == hashed[0]:
                if second[at] == hashed[1]:
                    return int(places[at])
                at += 1
        return None

    def seen(self, hash_R2: np.ndarray) -> np.ndarray:
        """Return whether the first half of each hash is that of a settled id, bool [R]."""
        found_R = np.zeros(len(hash_R2), bool)
        for first, _, _ in self._levels:
            found_R |= first[np.minimum(np.searchsorted(first, hash_R2[:, 0]), len(first) - 1)] == hash_R2[:, 0]
        return found_R

    def settle(self) -> None:
        """Move the ids of `recent` to the arrays."""
        self.load(np.array(list(self.recent), np.int64).reshape(-1, 2), np.array(list(self.recent.values()), np.int64))
        self.recent = {}

    def load(self, hash_R2: np.ndarray, place_R: np.ndarray) -> None:
        """Take in ids."""
        if not len(place_R):
            return
        self._levels.append(_sorted(np.stack([*hash_R2.T, place_R])))
        while len(self._levels) > 1 and 2 * self._levels[-1].shape[1] > self._levels[-2].shape[1]:
            self._levels.append(_sorted(np.concatenate([self._levels.pop(), self._levels.pop()], axis=1)))

    def name_for(self, first: str) -> str:
        """Return the id of a row without one, `content_name` being `first`: with which one of that content it is."""
        content = first.removesuffix(FIRST)
        occurrence = self._occurrences.get(content, 1)
        while self.find(tuple(id_hashes([f"{content}#{occurrence}"])[0].tolist())) is not None:
            occurrence += 1
            self._occurrences[content] = occurrence
        return f"{content}#{occurrence}"


def _sorted(level: np.ndarray) -> np.ndarray:
    return level[:, np.argsort(level[0], kind="stable")]
