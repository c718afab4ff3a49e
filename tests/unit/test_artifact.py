"""Commit is atomic: what has no receipt does not count, what has no manifest does not exist."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import time

import numpy as np
import pyarrow as pa
import pytest

from influray.protocols import ArtifactMismatch, ConfigError, FeatureBlock
from influray.store.artifact import (
    SCHEMA,
    ShardStore,
    fingerprint,
    hash_file,
    map_table,
    read_manifest,
    replace_folder,
    require_manifest,
    write_bytes,
    write_manifest,
    write_table,
)
from influray.store.datastore import Datastore, feature_table
from influray.store.features import StoredRows
from influray.store.run_directory import RunDirectory

KEY = "a" * 64
OTHER = "b" * 64


def table(n: int = 5, seed: int = 0) -> pa.Table:
    return pa.table({"row": np.arange(n), "x": np.random.default_rng(seed).random(n)})


def test_a_fingerprint_ignores_key_order_and_sees_every_value():
    assert fingerprint({"a": 1, "b": [2, "x"]}) == fingerprint({"b": [2, "x"], "a": 1})
    seen = {fingerprint(v) for v in ({"a": 1}, {"a": 1.5}, {"a": "1"}, {"a": None}, {"b": 1}, {"a": [1]}, {}, [])}
    assert len(seen) == 8


def test_the_same_table_is_the_same_bytes(tmp_path):
    write_table(tmp_path / "a.arrow", table())
    write_table(tmp_path / "b.arrow", pa.concat_tables([table().slice(0, 2), table().slice(2)]))
    assert hash_file(tmp_path / "a.arrow") == hash_file(tmp_path / "b.arrow"), (
        "chunks of a table must not show in its file"
    )


def test_two_commits_of_a_key_leave_one_file_and_agree(tmp_path):
    store = ShardStore(tmp_path)
    first = store.commit(KEY, table(), {"worker": 1})
    second = store.commit(KEY, table(), {"worker": 2})
    assert second == first
    assert [p.name for p in tmp_path.glob("*.arrow")] == [first.file]


@pytest.mark.parametrize("damage", ["truncate", "flip", "delete", "receipt"])
def test_a_damaged_shard_is_forgotten_and_can_be_made_again(tmp_path, damage):
    store = ShardStore(tmp_path)
    receipt = store.commit(KEY, table(), {})
    path = tmp_path / receipt.file
    data = bytearray(path.read_bytes())
    if damage == "truncate":
        path.write_bytes(data[: len(data) // 2])
    elif damage == "flip":
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
    elif damage == "delete":
        path.unlink()
    else:
        (tmp_path / "_receipts" / f"{KEY}.json").write_text('{"key": "a')
    assert store.valid_receipt(KEY) is None
    again = store.commit(KEY, table(), {})
    assert store.valid_receipt(KEY) == again
    assert again.sha256 == receipt.sha256


def test_a_receipt_cannot_point_outside_its_folder(tmp_path):
    store = ShardStore(tmp_path / "store")
    receipt = store.commit(KEY, table(), {})
    outside = tmp_path / "secret.arrow"
    (tmp_path / "store" / receipt.file).rename(outside)
    path = tmp_path / "store" / "_receipts" / f"{KEY}.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "file": "../secret.arrow"}))
    assert store.valid_receipt(KEY) is None


def test_freezing_keeps_the_named_shards_and_sweeps_the_rest(tmp_path):
    store = ShardStore(tmp_path)
    kept = store.commit(KEY, table(3), {})
    store.commit(OTHER, table(4), {})
    (tmp_path / "part-orphan.arrow").write_bytes(b"left by a killed worker")
    (tmp_path / ".half.tmp").write_bytes(b"x")
    manifest = store.freeze([KEY], {"what": "test"})
    assert manifest["rows"] == 3
    assert {p.name for p in tmp_path.iterdir()} == {kept.file, "_receipts", "manifest.json"}


def test_a_manifest_of_another_schema_is_refused(tmp_path):
    write_manifest(tmp_path, {"x": 1})
    assert read_manifest(tmp_path) == {"schema": SCHEMA, "x": 1}
    write_manifest(tmp_path, {"schema": 99})
    with pytest.raises(ArtifactMismatch, match="schema 99"):
        read_manifest(tmp_path)
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(ArtifactMismatch, match="not JSON"):
        read_manifest(tmp_path)


def test_a_missing_artifact_names_the_step_that_makes_it(tmp_path):
    with pytest.raises(ArtifactMismatch, match="run `influray warmup` first"):
        require_manifest(tmp_path, "warmup")


def test_a_torn_arrow_file_is_named(tmp_path):
    write_table(tmp_path / "x.arrow", table())
    (tmp_path / "x.arrow").write_bytes((tmp_path / "x.arrow").read_bytes()[:100])
    with pytest.raises(ArtifactMismatch, match=r"x\.arrow"):
        map_table(tmp_path / "x.arrow")


def test_a_folder_is_replaced_whole(tmp_path):
    for name, text in (("old", "1"), ("new", "2")):
        write_bytes(tmp_path / name / "file", text.encode())
    replace_folder(tmp_path / "new", tmp_path / "old")
    assert (tmp_path / "old" / "file").read_text() == "2"
    assert [p.name for p in tmp_path.iterdir()] == ["old"]


def test_feature_rows_come_back_as_views_in_row_order(tmp_path):
    rng = np.random.default_rng(0)

    def block(rows):
        n = len(rows)
        return FeatureBlock(
            np.array(rows),
            rng.random((n, 8)).astype(np.float16),
            *(rng.random(n).astype(np.float32) for _ in range(3)),
            np.ones(n, np.int32),
        )

    blocks = [block([4, 2]), block([3]), block([])]
    store = ShardStore(tmp_path)
    store.commit(KEY, feature_table(blocks, 8), {})
    store.freeze([KEY], {"dimension": 8})
    datastore = Datastore(tmp_path)
    assert datastore.column("row").tolist() == [2, 3, 4]
    features, plain, _ = StoredRows(tmp_path).columns(np.arange(3))
    assert plain["row"].tolist() == [2, 3, 4]
    assert not features.flags.owndata
    assert not features.flags.writeable
    np.testing.assert_array_equal(
        features, np.stack([blocks[0].feature_BD[1], blocks[1].feature_BD[0], blocks[0].feature_BD[0]])
    )
    np.testing.assert_array_equal(datastore.features(), features)


def _hold(path, ready):
    with RunDirectory(path).hold():
        ready.set()
        time.sleep(60)


def test_one_driver_holds_a_run_directory_and_a_dead_one_lets_go(tmp_path):
    context = multiprocessing.get_context("spawn")
    ready = context.Event()
    process = context.Process(target=_hold, args=(str(tmp_path), ready))
    process.start()
    assert ready.wait(60)
    with pytest.raises(ConfigError, match=f"in use by process {process.pid}"), RunDirectory(tmp_path).hold():
        pass
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    with RunDirectory(tmp_path).hold():
        pass


def test_run_json_keeps_each_step(tmp_path):
    directory = RunDirectory(tmp_path)
    directory.record_step("data", status="done", rows=3)
    directory.record_step("score", status="failed")
    run = directory.read()
    assert run["steps"] == {"data": {"status": "done", "rows": 3}, "score": {"status": "failed"}}
    assert "torch" in run["versions"]
