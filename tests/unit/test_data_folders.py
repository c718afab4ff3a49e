"""Folders as datasets, hubs, Spark and desktops leave them: what is read, and what is told of the rest."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path

import pytest

from influray.data.files import resolve_files
from influray.data.readers import read_rows
from influray.protocols import DataError

LINE = b'{"prompt": "a", "completion": "b"}\n'


def fill(folder: Path, *names: str, data: bytes = LINE) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


def names(root: Path, *entries: str) -> list[str]:
    return [file.name for file in resolve_files(entries, root, "data.pool")]


def saved(folder: Path, *rows: int) -> None:
    datasets = pytest.importorskip("datasets")
    datasets.Dataset.from_list([{"prompt": f"q{i}", "completion": "a"} for i in rows]).save_to_disk(folder)


def test_what_is_not_read_is_counted_in_one_warning_with_examples(tmp_path, caplog):
    fill(tmp_path, "d/a.jsonl", "d/b.json", "d/c.NDJSON", "d/source=web/_x=1/part-0000.json.gz", "d/e.csv", "d/f.tsv")
    left = [
        "README.md",
        ".hidden.jsonl",
        "._a.jsonl",
        "_SUCCESS",
        "_temporary/0/x.jsonl",
        ".a.jsonl.crc",
        "__MACOSX/a.jsonl",
    ]
    left += [
        ".ipynb_checkpoints/a.jsonl",
        ".cache/huggingface/x.jsonl",
        "a.jsonl.tmp",
        "b.incomplete/x.arrow",
        "a.jsonl~",
    ]
    left += ["cache-7f0df82a6c903955.arrow", "dataset_info.json", "a.jsonl.lock"]
    fill(tmp_path / "d", *left)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            found = names(tmp_path, "d")
    assert found == [
        f"d/{n}" for n in ("a.jsonl", "b.json", "c.NDJSON", "e.csv", "f.tsv", "source=web/_x=1/part-0000.json.gz")
    ]
    (message,) = [record.getMessage() for record in caplog.records]
    assert message.startswith(
        f"data.pool.0: in {tmp_path / 'd'} 15 entries are not read: 1 caches of datasets (cache-7f"
    )
    for part in (
        "8 hidden (._a.jsonl, .a.jsonl.crc, ",
        "4 temporary (",
        "1 of another kind (README.md)",
        "1 metadata (dataset_info.json)",
    ):
        assert part in message


def test_a_saved_data_set_is_what_its_state_lists(tmp_path, caplog):
    saved(tmp_path / "all/one", 0, 1, 2)
    saved(tmp_path / "all/two", 3)
    (tmp_path / "all/one/cache-51aa.arrow").write_bytes((tmp_path / "all/two/data-00000-of-00001.arrow").read_bytes())
    fill(tmp_path, "all/one/extra.jsonl")
    with caplog.at_level(logging.WARNING):
        files = resolve_files(["all"], tmp_path, "data.pool")
    assert [json.loads(row)["prompt"] for file in files for _, row in read_rows(file, 2**20, 2**20)] == [
        "q0",
        "q1",
        "q2",
        "q3",
    ]
    assert "2 not in state.json (all/one/cache-51aa.arrow" not in caplog.text  # names are relative to the folder
    assert "2 not in state.json (one/cache-51aa.arrow, one/extra.jsonl)" in caplog.text
    (tmp_path / "all/two/data-00000-of-00001.arrow").unlink()
    with pytest.raises(DataError, match="which state.json lists, is not there"):
        names(tmp_path, "all")


def test_of_several_splits_one_has_to_be_named(tmp_path):
    datasets = pytest.importorskip("datasets")
    part = datasets.Dataset.from_list([{"prompt": "q", "completion": "a"}])
    datasets.DatasetDict({"train": part, "test": part}).save_to_disk(tmp_path / "both")
    datasets.DatasetDict({"train": part}).save_to_disk(tmp_path / "one")
    with pytest.raises(DataError, match=r"both holds the splits train, test; name one: .*both/train"):
        names(tmp_path, "both")
    assert names(tmp_path, "both/train") == ["both/train/data-00000-of-00001.arrow"]
    assert names(tmp_path, "one") == ["one/train/data-00000-of-00001.arrow"]


def test_the_cache_of_a_hub_gives_its_main_revision(tmp_path, caplog):
    cache = tmp_path / "datasets--org--set"
    fill(cache, "blobs/aa", "blobs/bb", "refs/other")
    for revision, blob in (("r1", "aa"), ("r2", "bb")):
        (cache / "snapshots" / revision).mkdir(parents=True)
        (cache / "snapshots" / revision / "train.jsonl").symlink_to(f"../../blobs/{blob}")
    with pytest.raises(DataError, match="holds 2 revisions and none is main"):
        names(tmp_path, cache.name)
    fill(cache, "refs/main", data=b"r2\n")
    with caplog.at_level(logging.WARNING):
        assert names(tmp_path, ".") == [f"{cache.name}/snapshots/r2/train.jsonl"]
    assert "1 other revisions" in caplog.text
    (cache / "blobs/bb").unlink()
    with pytest.raises(DataError, match=r"train\.jsonl is a link to .*bb, and nothing is there"):
        names(tmp_path, cache.name)


def test_links_are_followed_and_what_is_reached_twice_is_read_once(tmp_path, caplog):
    fill(tmp_path, "pool/a.jsonl", "pool/deep/b.jsonl", "elsewhere/c.jsonl", "elsewhere/more/d.jsonl")
    (tmp_path / "pool/ext").symlink_to("../elsewhere")
    (tmp_path / "pool/again").symlink_to("../elsewhere/more")
    (tmp_path / "pool/0.jsonl").symlink_to("a.jsonl")
    (tmp_path / "pool/deep/up").symlink_to("..")
    (tmp_path / "elsewhere/back").symlink_to("../pool")
    (tmp_path / "pool/notes").symlink_to("nowhere")
    with caplog.at_level(logging.WARNING):
        found = names(tmp_path, "pool")
    assert [os.path.realpath(tmp_path / name) for name in found] == [
        str(tmp_path / name)
        for name in ("pool/a.jsonl", "elsewhere/more/d.jsonl", "pool/deep/b.jsonl", "elsewhere/c.jsonl")
    ]
    assert "pool/a.jsonl" in found
    assert "reached twice by links" in caplog.text
    assert found == names(tmp_path, "pool")
    (tmp_path / "pool/broken.jsonl").symlink_to("gone.jsonl")
    for entry in ("pool", "pool/broken.jsonl"):
        with pytest.raises(DataError, match=r"broken\.jsonl.* is a link to gone\.jsonl, and nothing is there"):
            names(tmp_path, entry)


def test_one_file_under_two_entries_is_refused_and_a_folder_may_be_called_as_a_file(tmp_path):
    fill(tmp_path, "x.jsonl/part-0.json", "y.jsonl")
    (tmp_path / "z.jsonl").symlink_to("y.jsonl")
    assert names(tmp_path, "x.jsonl") == ["x.jsonl/part-0.json"]
    with pytest.raises(DataError, match=r"data\.pool\.1: .*z\.jsonl is already named by data\.pool\.0"):
        names(tmp_path, "y.jsonl", "z.jsonl")


def test_a_pointer_in_a_folder_is_named_and_an_odd_state_is_not_followed(tmp_path):
    fill(tmp_path, "d/a.jsonl")
    fill(tmp_path, "d/state.json", data=b'{"step": 3}')
    assert names(tmp_path, "d") == ["d/a.jsonl"]
    fill(tmp_path, "d/b.parquet", data=b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    with pytest.raises(DataError, match=r"data\.pool\.0: .*b\.parquet: .*git lfs pull"):
        names(tmp_path, "d")
    fill(tmp_path, "d/state.json", data=b"{torn")
    with pytest.raises(DataError, match=r"state\.json: cannot be read"):
        names(tmp_path, "d")
