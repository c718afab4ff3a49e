"""JSON with its own checksum: what is read is what was written, or a message that says what to delete."""

from __future__ import annotations

import json
import random

import pytest

from influray.protocols import ArtifactMismatch, DamagedArtifact
from influray.store.artifact import read_manifest, write_manifest, write_sealed
from influray.store.sealed import SCHEMA, read_sealed

FACTS = {"rows": 80, "weights": [0.1, 1e-30, float("nan")], "names": {3: "é", "a": None}, "pair": (1, 2)}


def test_facts_come_back_as_json_has_them_and_writing_them_again_changes_no_byte(tmp_path):
    path = tmp_path / "x.json"
    write_sealed(path, FACTS)
    first = path.read_bytes()
    found = read_sealed(path)
    assert found["names"] == {"3": "é", "a": None}
    assert found["pair"] == [1, 2]
    assert found["schema"] == SCHEMA
    write_sealed(path, found)
    assert path.read_bytes() == first


def test_no_flipped_bit_changes_a_value_unnoticed(tmp_path):
    path = tmp_path / "x.json"
    write_sealed(path, FACTS)
    whole, facts = path.read_bytes(), read_sealed(path)
    for place in range(8 * len(whole)):
        changed = bytearray(whole)
        changed[place // 8] ^= 1 << place % 8
        path.write_bytes(changed)
        try:
            found = read_sealed(path)
        except DamagedArtifact:
            continue
        assert json.dumps(found) == json.dumps(facts), "without effect"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "an empty file"),
        (b"{", "not JSON"),
        (b"\xff\xfe", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b"[1]", "not a JSON object but a list"),
        (b"null", "not a JSON object but a NoneType"),
        (b"{}", "not what was written"),
        (None, "a folder where a file belongs"),
    ],
)
def test_what_is_no_sealed_file_is_told_with_what_to_delete(tmp_path, content, said):
    path = tmp_path / "manifest.json"
    path.mkdir() if content is None else path.write_bytes(content)
    with pytest.raises(DamagedArtifact, match=f"manifest.json: {said}.*delete it: `influray run` makes it again"):
        read_manifest(tmp_path)


def test_a_count_that_was_lowered_by_one_is_no_longer_believed(tmp_path):
    write_manifest(tmp_path, {"rows": 80})
    path = tmp_path / "manifest.json"
    path.write_text(path.read_text().replace('"rows": 80', '"rows": 79'))
    with pytest.raises(DamagedArtifact, match="not what was written"):
        read_manifest(tmp_path)


@pytest.mark.parametrize("schema", [SCHEMA - 1, SCHEMA + 1])
def test_the_schema_of_another_version_is_named_and_is_no_damage(tmp_path, schema):
    path = tmp_path / "manifest.json"
    write_sealed(path, {"rows": 1, "schema": schema})
    if schema < SCHEMA:
        path.write_text(json.dumps({"schema": schema, "rows": 1}))  # they had no checksum
    with pytest.raises(ArtifactMismatch, match=f"schema {schema}, this version reads {SCHEMA}") as caught:
        read_manifest(tmp_path)
    assert not isinstance(caught.value, DamagedArtifact)


def test_of_random_bytes_nothing_is_believed(tmp_path):
    generator = random.Random(0)
    path = tmp_path / "manifest.json"
    write_manifest(tmp_path, FACTS)
    whole, facts = path.read_bytes(), json.dumps(read_sealed(path))
    for _ in range(500):
        changed = bytearray(whole)
        for _ in range(generator.randint(1, 4)):
            changed[generator.randrange(len(changed))] = generator.randrange(256)
        path.write_bytes(bytes(changed[: generator.randint(1, len(changed))]))
        try:
            assert json.dumps(read_sealed(path)) == facts
        except DamagedArtifact:
            continue
