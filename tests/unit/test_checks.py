"""Files after their commit: what is torn, gone or changed is found, set aside and named; what is whole is hashed once."""

from __future__ import annotations

import os
import pickle

import pyarrow as pa
import pytest

from influray.protocols import ArtifactMismatch, ConfigError, DamagedArtifact
from influray.scorers.rows import RangeReader
from influray.store import checks
from influray.store.artifact import ShardStore, naming_full_disk, part_paths
from influray.store.checks import check_file, check_files, damaged
from influray.store.datastore import Datastore
from tests.unit.synthetic_features import random_run


@pytest.fixture
def store(tmp_path):
    store = ShardStore(tmp_path / "store")
    for key in ("a" * 20, "b" * 20, "c" * 20):
        store.commit(key, pa.table({"row": list(range(100))}) if key[0] != "c" else None, {})
    return store


def frozen(store):
    return store.freeze([letter * 20 for letter in "abc"], {})


def test_a_whole_artifact_is_not_damaged_and_its_bytes_are_counted(store):
    manifest = frozen(store)
    assert damaged(store.folder, manifest) == []
    sizes = [path.stat().st_size for path in part_paths(store.folder, manifest)]
    assert check_files(store.folder, manifest) == {"bytes": sum(sizes)}


@pytest.mark.parametrize("how", ["torn", "grown", "gone"])
def test_a_file_of_another_size_is_named_without_reading_it(store, how):
    manifest = frozen(store)
    path = next(part_paths(store.folder, manifest))
    if how == "gone":
        path.unlink()
    else:
        os.truncate(path, path.stat().st_size + (8 if how == "grown" else -1))
    assert damaged(store.folder, manifest) == [path.name]


def test_a_flipped_bit_is_found_by_its_hash_and_the_file_is_set_aside_and_swept(store):
    manifest = frozen(store)
    path = next(part_paths(store.folder, manifest))
    content = bytearray(path.read_bytes())
    content[200] ^= 1
    path.write_bytes(content)
    assert damaged(store.folder, manifest) == []
    with pytest.raises(DamagedArtifact, match="was committed"):
        check_files(store.folder, manifest)
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
    with pytest.raises(DamagedArtifact, match="cannot be read"):
        check_file(path, digest)


def test_damage_crosses_processes_as_what_it_is():
    error = pickle.loads(pickle.dumps(DamagedArtifact("part: torn")))
    assert isinstance(error, ArtifactMismatch)
    assert str(error) == "part: torn"


def test_a_full_disk_is_named_with_its_folder_and_other_errors_stay_what_they_are(tmp_path):
    full = pytest.raises(ConfigError, match=f"no space left on the disk of {tmp_path}/run on .*MiB free")
    with full, naming_full_disk(tmp_path / "run"), open("/dev/full", "wb", buffering=0) as file:
        file.write(b"x")
    with pytest.raises(FileNotFoundError), naming_full_disk(tmp_path):
        (tmp_path / "none").read_bytes()


def test_a_flipped_bit_anywhere_in_features_is_told_as_damage(tmp_path):
    """In the schema or the rows' numbers too, which are looked at before the content is read."""
    folder = random_run(tmp_path, rows=12, dimension=4).features("pool", 1)
    path = next(part_paths(folder, Datastore(folder).manifest))
    whole = path.read_bytes()
    for place in range(len(whole)):
        path.write_bytes(bytes([*whole[:place], whole[place] ^ 1 << place % 8, *whole[place + 1 :]]))
        with pytest.raises(DamagedArtifact, match="was committed; it is set aside"):
            RangeReader(Datastore(folder)).read(0, 12)
