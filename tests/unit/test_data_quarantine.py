from __future__ import annotations

import hashlib

import pytest

from influray.data.quarantine import entry, read_quarantine, write_quarantine
from influray.protocols import DamagedArtifact


def test_a_stage_that_runs_again_replaces_its_own_entries_and_no_others(tmp_path):
    path = tmp_path / "quarantine.jsonl"
    assert read_quarantine(path) == []
    read = [entry("pool", "read", "not JSON", file="a.jsonl", line=3)]
    encode = [entry("pool", "encode", "no answer token", file="a.jsonl", line=1, id="x")]
    first = [entry("pool", "features", "non-finite loss", row=7, checkpoint=1)]
    second = [entry("pool", "features", "non-finite loss", row=7, checkpoint=2)]
    for _ in range(2):
        write_quarantine(path, "pool", "read", read)
        write_quarantine(path, "pool", "encode", encode)
        write_quarantine(path, "pool", "features", second, checkpoint=2)
        write_quarantine(path, "pool", "features", first, checkpoint=1)
        assert read_quarantine(path) == encode + first + second + read
    write_quarantine(path, "pool", "features", [], checkpoint=1)
    assert read_quarantine(path) == encode + second + read


def test_the_bytes_do_not_depend_on_the_order_of_writing(tmp_path):
    batches = {
        ("pool", "read"): [entry("pool", "read", "b", file="b", line=2), entry("pool", "read", "a", file="a", line=10)],
        ("target", "read"): [entry("target", "read", "c", file="c", line=None)],
        ("pool", "encode"): [entry("pool", "encode", "d", file="a", line=2)],
    }
    contents = []
    for n, order in enumerate((list(batches), list(batches)[::-1])):
        for split, stage in order:
            write_quarantine(tmp_path / str(n), split, stage, batches[split, stage])
        contents.append((tmp_path / str(n)).read_bytes())
    assert contents[0] == contents[1]


def test_odd_ids_survive_the_file(tmp_path):
    path = tmp_path / "quarantine.jsonl"
    odd = ['\u2028\n"', "caf\u00e9", "\udfff", "x" * 5000]
    write_quarantine(path, "pool", "read", [entry("pool", "read", "r", line=i, id=name) for i, name in enumerate(odd)])
    assert [found["id"] for found in read_quarantine(path)] == odd
    assert len(path.read_bytes().splitlines()) == 4


def test_a_quarantine_that_was_changed_or_is_gone_is_told_and_sha256sum_agrees_with_its_seal(tmp_path):
    path = tmp_path / "quarantine.jsonl"
    write_quarantine(path, "pool", "read", [entry("pool", "read", "r")])
    good = path.read_bytes()
    seal = (tmp_path / "quarantine.sha256").read_text()
    assert seal == f"{hashlib.sha256(good).hexdigest()}  quarantine.jsonl\n"
    for wrong in (good + b"{", good.replace(b'"r"', b'"s"'), b""):
        path.write_bytes(wrong)
        with pytest.raises(DamagedArtifact, match=r"quarantine\.jsonl: (not what was written|an empty file)"):
            read_quarantine(path)
    path.unlink()
    with pytest.raises(DamagedArtifact, match=r"quarantine\.sha256: tells of quarantine\.jsonl, which is gone"):
        read_quarantine(path)
