"""The catalogue of some rows of another one: the same records in the same order, and of all rows the same bytes."""

from __future__ import annotations

import shutil

import numpy as np
import pytest

from influray.data import drafts, numbering
from influray.data.catalogue import Catalogue
from influray.data.subset import build_subset
from influray.protocols import DataError
from influray.store.artifact import read_manifest
from tests.tiny import pool_rows, write_jsonl
from tests.unit.test_data_catalogue import build

FACTS = {"cascade": {"rows": 60, "by": ["x"]}}


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Catalogue:
    """Sixty rows of three files in parts of ten, with bad rows between them and a file whose last part is empty."""
    folder = tmp_path_factory.mktemp("subset")
    rows = pool_rows(60)
    for row in rows[::7]:
        del row["id"]
    write_jsonl(folder / "pool" / "a.jsonl", rows[:20])
    write_jsonl(folder / "pool" / "b.jsonl", rows[20:25])
    write_jsonl(folder / "pool" / "c.jsonl", rows[25:])
    with open(folder / "pool" / "a.jsonl", "a") as file:
        file.write("not json\n" * 3)
    write_jsonl(folder / "sums.jsonl", rows[:2])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(numbering, "PART_ROWS", 10)
        patch.setattr(drafts, "BLOCK_ROWS", 4)
        return build(folder, folder / "run", max_bad_fraction=0.5)


def contents(catalogue: Catalogue) -> list[str]:
    return [part["sha256"] for part in catalogue.manifest["parts"] if part["rows"]]


def test_of_all_rows_it_has_the_same_bytes(whole, tmp_path):
    same = build_subset(tmp_path / "pool", whole, np.arange(60), FACTS)
    assert contents(same) == contents(whole)
    assert (same.digest, same.file_lengths, same.never_scored) == (whole.digest, whole.file_lengths, 0)


@pytest.mark.parametrize("seed", range(6))
def test_the_rows_are_those_of_the_whole_but_for_their_numbers(whole, tmp_path, seed):
    draw = np.random.default_rng(seed)
    rows = np.sort(draw.choice(60, draw.integers(1, 60), replace=False))
    found = build_subset(tmp_path / "pool", whole, rows, FACTS)
    assert (len(found), found.never_scored) == (len(rows), 60 - len(rows))
    for name in (
        "id",
        "file",
        "line",
        "source",
        "tokens",
        "loss_tokens",
        "weight",
        "record",
        "input_ids",
        "loss_spans",
    ):
        assert found.values(name, 0, len(rows)) == whole.gather(name, rows), name
    assert found.values("row", 0, len(rows)) == list(range(len(rows)))
    bounds = np.cumsum([0, *whole.file_lengths])
    assert found.file_lengths == np.diff(np.searchsorted(rows, bounds)).tolist()
    assert found.parsed(0).turns == whole.parsed(int(rows[0])).turns


def test_what_is_there_is_not_made_again_and_what_is_damaged_is(whole, tmp_path):
    rows = np.arange(0, 60, 3)
    first = build_subset(tmp_path / "pool", whole, rows, FACTS)
    stamps = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "pool").glob("part-*")}
    build_subset(tmp_path / "pool", whole, rows, FACTS)
    assert {path.name: path.stat().st_mtime_ns for path in (tmp_path / "pool").glob("part-*")} == stamps
    path = sorted((tmp_path / "pool").glob("part-*"))[0]
    path.write_bytes(path.read_bytes()[:-100])
    again = build_subset(tmp_path / "pool", whole, rows, FACTS)
    assert contents(again) == contents(first)
    more = build_subset(tmp_path / "pool", whole, rows, {"cascade": {"rows": 59, "by": ["x"]}})
    assert (more.never_scored, contents(more)) == (39, contents(first))


def test_another_choice_replaces_it_and_a_plain_build_takes_none_of_it(whole, tmp_path):
    folder = whole.folder.parents[2]
    shutil.copytree(folder, tmp_path / "world")
    pool = Catalogue(tmp_path / "world" / "run" / "data" / "pool")
    build_subset(tmp_path / "sub" / "data" / "pool", pool, np.arange(5), FACTS)
    other = build_subset(tmp_path / "sub" / "data" / "pool", pool, np.arange(30, 40), FACTS)
    assert other.ids == pool.ids[30:40]
    assert len(list((tmp_path / "sub" / "data" / "pool").glob("part-*"))) == len(contents(other))
    again = build(tmp_path / "world", tmp_path / "sub", max_bad_fraction=0.5)
    assert again.ids == pool.ids
    assert "cascade" not in (read_manifest(again.folder) or {})


def test_a_row_that_did_not_pass_is_said_to_have_not(whole, tmp_path):
    found = build_subset(tmp_path / "pool", whole, np.arange(5), FACTS)
    with pytest.raises(DataError, match="did not pass the cascade, or stands in the quarantine"):
        found.find(whole.ids[30])
