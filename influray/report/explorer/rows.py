"""The rows of a committed selection as a table that people page through, search and filter.

The table stays in memory between calls (some tens of bytes a row), the texts stay in the pool's catalogue; what a
search looks through is a file of lower-case texts, made at the first search and mapped. So a page of a selection of
300K rows costs milliseconds.

Shape suffixes: n chosen rows.
"""

from __future__ import annotations

import math
import mmap
import tempfile
from collections.abc import Iterator, Mapping
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from influray.config import load_config
from influray.config_messages import near
from influray.data.catalogue import Catalogue
from influray.data.records import Record
from influray.protocols import ArtifactMismatch, ConfigError
from influray.report.selections import committed
from influray.store.artifact import fingerprint, hash_bytes, read_sealed, require_manifest
from influray.store.run_directory import RunDirectory
from influray.store.selection import read_table

SORTS = ("rank", "merit", "row", "source")
MAX_TEXT = 4000  # characters of a row that a page shows
MAX_LIMIT = 500  # rows of a page
MAX_SEARCH = 1000  # characters
TEXTS_AT_ONCE = 4096


class ChosenRows:
    """A committed selection with the pool it was chosen from; see `open_chosen`."""

    def __init__(self, run: RunDirectory, name: str) -> None:
        self.name = name
        self.folder = run.selection(name)
        self.catalogue = Catalogue(run.data("pool"))
        columns = ["rank", "row", "id", "source", "merit", "target_id", "task"]
        table = read_table(self.folder, columns)
        self.row_n = table["row"].to_numpy()
        if not len(self.row_n) or self.row_n.max() >= len(self.catalogue):
            raise ArtifactMismatch(
                f"{self.folder}: its rows are not those of {run.data('pool')}; run `influray select` again"
            )
        self.merit_n = table["merit"].to_numpy()
        self.id_n = table["id"].combine_chunks()
        self.source_n = _encoded(table["source"])
        self.task_n = _encoded(table["task"])
        self.target_n = _encoded(table["target_id"])
        self._times_n, self.variants = _chosen_again(_stability(run), name, self.row_n)
        self._ordered = lru_cache(len(SORTS))(self._order)
        self._matching = lru_cache(16)(self._match)

    def __len__(self) -> int:
        return len(self.row_n)

    def find(
        self, *, text: str = "", source: str = "", task: str = "", sort: str = "rank", budget: int = 0
    ) -> np.ndarray:
        """Return the places of the rows that fit, int64 in the order asked for, equal ones in order of choice.

        `text` is looked for in id, prompt and answer, whatever its case; `source` and `task` (that of the target which
        won the row) must be equal, "" being any; `budget` > 0 looks at the first rows only.
        """
        place_n = self._ordered(sort)
        keep_n = np.ones(len(self), bool)
        if text:
            keep_n &= self._matching(text.casefold())
        if source:
            keep_n &= _equals(self.source_n, source)
        if task:
            keep_n &= _equals(self.task_n, task)
        if budget > 0:
            keep_n[budget:] = False
        return place_n[keep_n[place_n]]

    def facts(self, place: int) -> dict[str, Any]:
        """Return rank (from 1), row, id, source, merit, task, target_id and chosen_in of one place, as plain values.

        `chosen_in` is in how many of `variants` of the run the row is chosen, its own included; None where no
        `influray validate` has told.
        """
        merit = float(self.merit_n[place])
        return {
            "rank": int(place) + 1,
            "row": int(self.row_n[place]),
            "id": self.id_n[place].as_py(),
            "source": self.source_n[place].as_py() or "",
            "merit": merit if math.isfinite(merit) else None,
            "task": self.task_n[place].as_py() or "",
            "target_id": self.target_n[place].as_py() or "",
            "chosen_in": None if self._times_n is None else int(self._times_n[place]),
        }

    def text(self, place: int) -> dict[str, Any]:
        """Return {"text", "cut"} of one place: see `plain`."""
        text = plain(self.catalogue.parsed(int(self.row_n[place])))
        return {"text": text[:MAX_TEXT], "cut": len(text) > MAX_TEXT}

    def _order(self, sort: str) -> np.ndarray:
        if sort == "merit":
            return np.argsort(-self.merit_n, kind="stable")  # rows without a merit (NaN) come last
        if sort == "row":
            return np.argsort(self.row_n, kind="stable")
        if sort == "source":
            names = self.source_n.dictionary.to_pylist()
            place = np.argsort(np.argsort(np.array(names, dtype=object), kind="stable"), kind="stable")
            code_n = self.source_n.indices.fill_null(0).to_numpy(zero_copy_only=False)
            return np.argsort(place[code_n], kind="stable")
        return np.arange(len(self))

    def _match(self, text: str) -> np.ndarray:
        found = pc.call_function("match_substring", [self.texts], pc.MatchSubstringOptions(text))
        return found.to_numpy() if isinstance(found, pa.ChunkedArray) else found.to_numpy(zero_copy_only=False)

    @cached_property
    def texts(self) -> pa.ChunkedArray:
        """What a search looks through, [n] in order of choice: id and text in lower case. Made once, 0.1 ms a row.

        It is mapped from a file without a name: the texts of a large selection would fill the memory.
        """
        schema = pa.schema({"text": pa.large_string()})
        with tempfile.TemporaryFile(prefix="influray-") as file:
            with pa.ipc.new_file(file, schema) as writer:
                for batch in self._folded():
                    writer.write_batch(pa.record_batch([batch], schema=schema))
            file.flush()
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        return pa.ipc.open_file(pa.py_buffer(mapped)).read_all()["text"]

    def _folded(self) -> Iterator[pa.Array]:
        for start in range(0, len(self), TEXTS_AT_ONCE):
            stop = min(len(self), start + TEXTS_AT_ONCE)
            ids = self.id_n.slice(start, stop - start).to_pylist()
            records = self.catalogue.all_parsed(self.row_n[start:stop].tolist())
            texts = [f"{id}\n{plain(record)}".casefold() for id, record in zip(ids, records, strict=True)]
            yield pa.array(texts, pa.large_string())


def open_chosen(run_dir: str | Path, selection: str) -> ChosenRows:
    """Return the rows of a committed selection; the same object while neither selection nor pool change.

    Raises:
        ConfigError: no such selection in the run.
        ArtifactMismatch: its files cannot be read, or do not belong to the pool.
    """
    run = RunDirectory(run_dir)
    known = committed(run, [selector.name for selector in load_config(run.check_config()).selectors])
    run.require_made("data", "select")
    if selection not in known:
        hint = near(selection, dict.fromkeys(known))
        raise ConfigError(
            f"selection: none is called {selection!r}{hint} (committed: {', '.join(known) or 'none'}); "
            "`influray select` makes those of the config"
        )
    manifests = [require_manifest(folder, "select") for folder in (run.selection(selection), run.data("pool"))]
    again = _stability(run)
    return _opened(run.path, selection, fingerprint([*manifests, again and again["fingerprint"]]))


@lru_cache(maxsize=16)
def _opened(path: Path, selection: str, made_from: str) -> ChosenRows:
    return ChosenRows(RunDirectory(path), selection)


def _stability(run: RunDirectory) -> Mapping[str, Any] | None:
    """Return what `influray validate` told of the run with other seeds, None where it was not asked."""
    try:
        return read_sealed(run.validation / "stability.json")
    except FileNotFoundError:
        return None


def _chosen_again(
    stability: Mapping[str, Any] | None, name: str, row_n: np.ndarray
) -> tuple[np.ndarray | None, int | None]:
    """Return in how many variants each row is chosen, and of how many; None where that is not told of these rows."""
    digest = hash_bytes(row_n.astype(np.int64).tobytes())
    for one in stability["selectors"] if stability else ():
        if one["name"] == name and one.get("digest") == digest:
            return np.array(one["times"]), int(one["variants"])
    return None, None


def plain(record: Record) -> str:
    """Return a record as text: its turns, each after its role, with an empty line between them."""
    return "\n\n".join(f"{turn.role}: {turn.text}" for turn in record.turns)


def check_page(text: str, sort: str, offset: int, limit: int, budget: int) -> None:
    """Raise ConfigError where a page is asked for that cannot be."""
    if len(text) > MAX_SEARCH:
        raise ConfigError(f"text: {len(text)} characters, at most {MAX_SEARCH} can be looked for")
    if sort not in SORTS:
        raise ConfigError(f"sort: {sort[:80]!r} is none of {', '.join(SORTS)}{near(sort, dict.fromkeys(SORTS))}")
    for name, value, least, most in (
        ("offset", offset, 0, None),
        ("limit", limit, 1, MAX_LIMIT),
        ("budget", budget, 0, None),
    ):
        if value < least or (most is not None and value > most):
            top = "" if most is None else f" and at most {most}"
            raise ConfigError(f"{name}: found {value}, must be at least {least}{top}")


def _encoded(column: pa.ChunkedArray) -> pa.DictionaryArray:
    found = column.combine_chunks().dictionary_encode()
    return found.combine_chunks() if isinstance(found, pa.ChunkedArray) else found


def _equals(column_n: pa.DictionaryArray, value: str) -> np.ndarray:
    code = pc.index(column_n.dictionary, pa.scalar(value)).as_py()
    return (
        column_n.indices.fill_null(-1).to_numpy(zero_copy_only=False) == code
        if code >= 0
        else np.zeros(len(column_n), bool)
    )
