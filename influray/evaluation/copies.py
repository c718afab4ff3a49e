"""Rows that are copies: of each other, or of targets and tests.

Shape suffixes: N and n rows, B rows of a block, E pairs, k neighbours.
"""

from __future__ import annotations

import hashlib
import json
import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from influray.data.catalogue import Catalogue
from influray.data.records import Record
from influray.data.words import spaced_words

RECORDS_AT_ONCE = 1024
WORDS = 8  # of an n-gram; GPT-3 took 13, but questions are shorter than documents
CONTAINED = 0.7  # share of a target's n-grams from which a pool row holds it
_POINTS = re.compile(r"[.,;:!?'\"]+")


@dataclass(frozen=True)
class Text:
    """A record as copies are told: what is asked and what is answered, normalised."""

    row: int
    prompt: str
    answer: str


@dataclass(frozen=True)
class Group:
    """Rows that say the same, ascending; `kind` is "same text" or "near"."""

    rows: tuple[int, ...]
    kind: str


@dataclass(frozen=True)
class Contamination:
    """A pool row that holds a target or test row; `kind` is "copy", "same prompt" or "n-grams" (with their share)."""

    row: int
    split: str
    other: int
    kind: str
    share: float


def normalised(text: str) -> str:
    """Return what two texts are compared by: NFKC, case folded, no points or quotes, one space between.

    Other signs stay: 3 + 4 is not 3 - 4. A text of points alone is compared as it is.
    """
    folded = unicodedata.normalize("NFKC", text).casefold()
    return " ".join(_POINTS.sub(" ", folded).split()) or " ".join(folded.split())


def texts_of(catalogue: Catalogue) -> Iterator[Text]:
    """Yield the rows of a catalogue as copies are told."""
    for start in range(0, len(catalogue), RECORDS_AT_ONCE):
        records = catalogue.all_parsed(range(start, min(start + RECORDS_AT_ONCE, len(catalogue))))
        for row, record in enumerate(records, start=start):
            yield text_of(row, record)


def text_of(row: int, record: Record) -> Text:
    """Return a record as copies are told."""
    prompt = "\n".join(turn.text for turn in record.turns if turn.role != "assistant")
    answer = "\n".join(turn.text for turn in record.turns if turn.role == "assistant")
    return Text(row, normalised(prompt), normalised(answer))


def same_text(texts: Iterable[Text]) -> list[Group]:
    """Return the groups of rows of the same prompt and answer, the largest first, then by row."""
    found: dict[tuple[str, str], list[int]] = defaultdict(list)
    for text in texts:
        found[text.prompt, text.answer].append(text.row)
    return _ordered([Group(tuple(sorted(rows)), "same text") for rows in found.values() if len(rows) > 1])


def same_text_earlier(texts: Iterable[Text], before: Iterable[Text]) -> tuple[dict[int, int], dict[int, int]]:
    """Return which of these rows say the same as one of `before`, and which of the others as an earlier one of them.

    Row -> the first such row. `texts` are held in memory, `before` is read once.
    """
    rows: dict[tuple[str, str], list[int]] = defaultdict(list)
    for text in texts:
        rows[text.prompt, text.answer].append(text.row)
    known: dict[tuple[str, str], int] = {}
    for text in before:
        if (text.prompt, text.answer) in rows:
            known.setdefault((text.prompt, text.answer), text.row)
    found = {row: known[key] for key, its in rows.items() if key in known for row in its}
    again = {row: its[0] for key, its in rows.items() if key not in known for row in its[1:]}
    return found, again


def content_key(record: Record) -> bytes:
    """Return a digest of a record's turns: roles and contents, white space at their ends aside."""
    turns = [(turn.role, turn.text.strip()) for turn in record.turns]
    return hashlib.sha256(json.dumps(turns).encode()).digest()


def count_copies(catalogue: Catalogue, rows: np.ndarray) -> int:
    """Return how many of `rows` have the turns of one before them."""
    seen: set[bytes] = set()
    for start in range(0, len(rows), RECORDS_AT_ONCE):
        records = catalogue.all_parsed(rows[start : start + RECORDS_AT_ONCE].tolist())
        seen.update(map(content_key, records))
    return len(rows) - len(seen)


def near_groups(pair_E2: np.ndarray) -> list[Group]:
    """Return the rows that are joined by pairs [E, 2], directly or over others, the largest group first."""
    row_n, place = np.unique(pair_E2, return_inverse=True)
    label_n = joined(place.reshape(-1, 2), len(row_n))
    order_n = np.argsort(label_n, kind="stable")
    cuts = np.flatnonzero(np.diff(label_n[order_n])) + 1
    members = np.split(row_n[order_n], cuts) if len(row_n) else []
    return _ordered([Group(tuple(rows.tolist()), "near") for rows in members])


def joined(pair_E2: np.ndarray, count: int) -> np.ndarray:
    """Return for each of 0 to count - 1 the lowest one that pairs join it with, directly or over others, int64."""
    label_N = np.arange(count)
    while True:
        low_E, high_E = np.sort(label_N[pair_E2], axis=1).T
        apart_E = low_E != high_E
        if not apart_E.any():
            return label_N
        np.minimum.at(label_N, high_E[apart_E], low_E[apart_E])
        while not np.array_equal(above_N := label_N[label_N], label_N):
            label_N = above_N


def near_pairs(row_B: np.ndarray, row_Bk: np.ndarray, cosine_Bk: np.ndarray, threshold: float) -> np.ndarray:
    """Return the pairs (row, neighbour) whose cosine reaches the threshold, a row never with itself, int64 [E, 2]."""
    hit = (cosine_Bk >= threshold) & (row_Bk != row_B[:, None]) & (row_Bk >= 0)
    line_E, place_E = np.nonzero(hit)
    return np.stack([row_B[line_E], row_Bk[line_E, place_E]], axis=1).astype(np.int64)


def contaminated(pool: Iterable[Text], held: Mapping[str, Sequence[Text]]) -> list[Contamination]:
    """Return the pool rows that hold a row of `held` (split -> texts): whole copies first, then by row.

    A row of the same prompt and answer is a copy; of the same prompt alone, a leak of the question; one that holds
    70% of a prompt's different n-grams of 8 words, a rewording around it. Prompts of fewer words are compared whole.
    Source: contamination by n-grams, GPT-3, arXiv 2005.14165, appendix C.
    """
    by_prompt: dict[str, list[tuple[str, Text]]] = defaultdict(list)
    by_gram: dict[str, list[tuple[str, int]]] = defaultdict(list)
    grams_of: dict[tuple[str, int], int] = {}
    for split, texts in held.items():
        for text in texts:
            by_prompt[text.prompt].append((split, text))
            grams = ngrams(text.prompt)
            grams_of[split, text.row] = len(grams)
            for gram in grams:
                by_gram[gram].append((split, text.row))
    found = []
    for text in pool:
        equal = {(split, other.row): other for split, other in by_prompt.get(text.prompt, ())}
        for (split, row), other in equal.items():
            kind = "copy" if other.answer == text.answer else "same prompt"
            found.append(Contamination(text.row, split, row, kind, 1.0))
        hits: dict[tuple[str, int], int] = defaultdict(int)
        for gram in ngrams(f"{text.prompt} {text.answer}"):
            for key in by_gram.get(gram, ()):
                hits[key] += 1
        for key, count in hits.items():
            share = count / grams_of[key]
            if key not in equal and share >= CONTAINED:
                found.append(Contamination(text.row, *key, "n-grams", share))
    order = ("copy", "same prompt", "n-grams")
    return sorted(found, key=lambda one: (order.index(one.kind), -one.share, one.row, one.split, one.other))


def ngrams(text: str) -> set[str]:
    """Return the different n-grams of a normalised text, none where it has fewer words.

    A character of a script without spaces counts as a word.
    """
    words = spaced_words(text)
    return {" ".join(words[i : i + WORDS]) for i in range(len(words) - WORDS + 1)}


def _ordered(groups: list[Group]) -> list[Group]:
    return sorted(groups, key=lambda group: (-len(group.rows), group.rows))
