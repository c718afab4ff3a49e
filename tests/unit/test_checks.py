"""Files after their commit: what is torn, gone or changed is found and named; what is whole is hashed once."""

from __future__ import annotations

import os
import pickle

import numpy as np
import pyarrow as pa
import pytest

from influray.protocols import ArtifactMismatch, ConfigError, DamagedArtifact
from influray.store import checks
from influray.store.artifact import ShardStore, naming_full_disk
from influray.store.checks import broken, check_ahead, check_file, damaged, set_aside, step_of
from influray.store.features import StoredRows
from tests.unit.synthetic_features import random_run


@pytest.fixture
def store(tmp_path):
    store = ShardStore(tmp_path / "store")
    for key in ("a" * 20, "b" * 20, "c" * 20):
        store.commit(key, pa.table({"row": list(range(100))}) if key[0] != "c" else None, {})
    return store


def frozen(store):
    return store.freeze([letter * 20 for letter in "abc"], {})


def test_a_whole_artifact_is_neither_damaged_nor_broken(store):
    manifest = frozen(store)
    assert damaged(store.folder, manifest) == []
    assert broken(store.folder, manifest) == []
    assert all((store.folder / part["file"]).exists() for part in manifest["parts"])


@pytest.mark.parametrize("how", ["torn", "grown", "gone"])
def test_a_file_of_another_size_is_named_without_reading_it(store, how):
    manifest = frozen(store)
    path = store.folder / manifest["parts"][0]["file"]
    if how == "gone":
        path.unlink()
    else:
        os.truncate(path, path.stat().st_size + (8 if how == "grown" else -1))
    assert damaged(store.folder, manifest) == [path.name]


def test_a_flipped_bit_is_found_by_its_hash_and_the_driver_sets_the_file_aside(store):
    manifest = frozen(store)
    path = store.folder / manifest["parts"][0]["file"]
    content = bytearray(path.read_bytes())
    content[200] ^= 1
    path.write_bytes(content)
    assert damaged(store.folder, manifest) == []
    with pytest.raises(DamagedArtifact, match="was committed"):
        check_file(path, manifest["parts"][0]["sha256"])
    assert path.exists(), "a reader changes nothing"
    assert broken(store.folder, manifest) == [path.name]
    assert damaged(store.folder, manifest) == [path.name], "it would be believed again"
    assert store.valid_receipt("a" * 20) is None
    assert store.valid_receipt("b" * 20) is not None
    store.sweep({"b" * 20})
    assert list(store.folder.glob(".*")) == []


def test_a_file_is_hashed_once_a_process_unless_it_is_another_one(tmp_path, monkeypatch):
    path = tmp_path / "part"
    path.write_bytes(b"one")
    digest, hashed = checks.hash_file(path), []
    whole = checks.hash_file
    monkeypatch.setattr(checks, "hash_file", lambda path: hashed.append(path) or whole(path))
    for _ in range(3):
        check_file(path, digest)
    assert len(hashed) == 1
    path.write_bytes(b"other")
    with pytest.raises(DamagedArtifact):
        check_file(path, digest)
    path.unlink()
    with pytest.raises(DamagedArtifact, match="gone"):
        check_file(path, digest)


@pytest.mark.parametrize("how", ["whole", "changed", "gone"])
def test_what_is_hashed_ahead_is_told_by_who_reads(tmp_path, how):
    paths = [tmp_path / str(i) for i in range(4)]
    for path in paths:
        path.write_bytes(os.urandom(2**16))
    digests = [checks.hash_file(path) for path in paths]
    if how == "changed":
        paths[2].write_bytes(b"other")
    elif how == "gone":
        paths[2].unlink()
    check_ahead(zip(paths, digests, strict=True))
    for i, (path, digest) in enumerate(zip(paths, digests, strict=True)):
        if i == 2 and how != "whole":
            with pytest.raises(DamagedArtifact, match="not what was committed" if how == "changed" else "gone"):
                check_file(path, digest)
        else:
            assert check_file(path, digest) == path


@pytest.mark.parametrize(
    ("what", "said"),
    [("folder", "a folder where a file belongs"), ("empty", "an empty file"), ("above", "a file where")],
)
def test_what_stands_in_the_place_of_a_file_is_named_and_can_be_set_aside(tmp_path, what, said):
    path = tmp_path / "index" / "shard.faiss"
    path.parent.mkdir()
    if what == "folder":
        (path / "x").mkdir(parents=True)
    elif what == "empty":
        path.touch()
    else:
        path.parent.rmdir()
        path.parent.touch()
    with pytest.raises(DamagedArtifact, match=f"{said}.*delete it: `influray index` makes it again") as caught:
        check_file(path, "0" * 64)
    set_aside(caught.value.address)
    assert not path.exists()


@pytest.mark.parametrize(
    ("name", "step"),
    [
        ("data/pool/manifest.json", "data"),
        ("features/pool/checkpoint-1/part-x.arrow", "featurize"),
        ("selection/index/selection.json", "select"),
        ("evaluation/data/seed-0.json", "evaluate"),
        ("tune/warmup/seed-0/adapter/adapter_model.safetensors", "tune"),
        ("quarantine.jsonl", "data"),
        ("run.json", ""),
    ],
)
def test_a_file_belongs_to_the_step_that_its_place_tells_whatever_names_are_chosen(tmp_path, name, step):
    root = tmp_path / "index"
    root.mkdir()
    (root / "config.yaml").touch()
    assert step_of(root / name) == step


def test_damage_crosses_processes_as_what_it_is():
    error = pickle.loads(pickle.dumps(DamagedArtifact("part: torn", "s3://bucket/run#part")))
    assert isinstance(error, ArtifactMismatch)
    assert (str(error), error.address) == ("part: torn", "s3://bucket/run#part")


def test_a_full_disk_is_named_with_its_folder_and_other_errors_stay_what_they_are(tmp_path):
    full = pytest.raises(ConfigError, match=f"no space left on the disk of {tmp_path}/run on .*MiB free")
    with full, naming_full_disk(tmp_path / "run"), open("/dev/full", "wb", buffering=0) as file:
        file.write(b"x")
    with pytest.raises(FileNotFoundError), naming_full_disk(tmp_path):
        (tmp_path / "none").read_bytes()


def test_a_flipped_bit_anywhere_in_features_is_told_as_damage(tmp_path):
    """In the schema or the rows' numbers too, which are looked at before the content is read."""
    folder = random_run(tmp_path, rows=12, dimension=4).features("pool", 1)
    path = next(folder.glob("part-*.arrow"))
    whole = path.read_bytes()
    for place in range(len(whole)):
        path.write_bytes(bytes([*whole[:place], whole[place] ^ 1 << place % 8, *whole[place + 1 :]]))
        with pytest.raises(DamagedArtifact, match="not what was committed|not a readable Arrow"):
            StoredRows(folder).columns(np.arange(12))
