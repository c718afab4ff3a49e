"""Entries of a config, through the catalogue: columns, sources, limits, scoped ids, weights."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from influray.config import dump_config, parse_config
from influray.data.catalogue import Catalogue, build_catalogue
from influray.data.chat import ChatEncoder
from influray.data.entries import pool_files, target_files
from influray.data.quarantine import read_quarantine
from influray.protocols import ConfigError, DataError
from tests.tiny import CHATML, byte_tokenizer


def config(root: Path, pool, **data):
    tree = {"model": {"base": "x"}, "selectors": [{"name": "b", "method": "bids", "budget": 1}]}
    return parse_config({**tree, "data": {"root": str(root), "pool": pool, "targets": {"t": "t.jsonl"}, **data}})


def build(root: Path, pool, **data) -> Catalogue:
    found = config(root, pool, **data).data
    files = [("", file) for file in pool_files(found)]
    encoder = ChatEncoder(byte_tokenizer(CHATML), "auto", 256)
    return build_catalogue(root / "c", "pool", files, encoder, "key", found, quarantine=root / "quarantine.jsonl")


def write(path: Path, *trees) -> None:
    path.write_text("".join(json.dumps(tree) + "\n" for tree in trees))


def row(i: int, **fields) -> dict:
    return {"q": f"Name number {i}.", "r": f"It is {i}.", **fields}


MAPPED = {"prompt": "q", "completion": "r"}


def test_columns_are_applied_wherever_a_row_is_read_again_and_its_bytes_stay(tmp_path):
    write(tmp_path / "a.jsonl", row(0, uuid=5), row(1, uuid=6))
    write(tmp_path / "b.jsonl", {"prompt": "p", "completion": "c", "uuid": 7})
    catalogue = build(
        tmp_path, [{"files": "a.jsonl", "columns": MAPPED, "source": "web"}, "b.jsonl"], columns={"id": "uuid"}
    )
    assert catalogue.facts("id", "source") == {"id": ["5", "6", "7"], "source": ["web", "web", "b"]}
    assert catalogue.record(0) == (tmp_path / "a.jsonl").read_bytes().split(b"\n")[0]
    again = Catalogue(tmp_path / "c")
    assert [turn.content for turn in again.parsed(1).turns] == ["Name number 1.", "It is 1."]
    assert again.parsed(1).source == "web"
    assert [text.text for text in again.texts(0, 3)] == ["Name number 0.\nIt is 0.", "Name number 1.\nIt is 1.", "p\nc"]


def test_a_change_of_an_entry_reads_its_file_anew_and_no_other(tmp_path):
    write(tmp_path / "a.jsonl", row(0, r2="other"))
    before = build(tmp_path, [{"files": "a.jsonl", "columns": MAPPED}])
    assert build(tmp_path, [{"files": "a.jsonl", "columns": MAPPED}]).digest == before.digest
    changed = build(tmp_path, [{"files": "a.jsonl", "columns": {"prompt": "q", "completion": "r2"}}])
    assert changed.digest != before.digest
    assert changed.parsed(0).turns[1].content == "other"


def test_ids_that_every_file_numbers_from_0(tmp_path):
    for name, start in (("a.jsonl", 0), ("b.jsonl", 10)):
        write(tmp_path / name, *(row(start + i, id=i if start else str(i)) for i in range(4)))
    columns = {"columns": MAPPED}
    with pytest.raises(DataError, match=r"at a.jsonl:1; if each file has its own, .*b.jsonl\], ids: scoped"):
        build(tmp_path, ["a.jsonl", "b.jsonl"], **columns)
    catalogue = build(tmp_path, {"files": ["a.jsonl", "b.jsonl"], "ids": "scoped"}, **columns)
    assert catalogue.ids == [f"{name}:{i}" for name in ("a.jsonl", "b.jsonl") for i in range(4)]
    assert read_quarantine(tmp_path / "quarantine.jsonl") == []


def test_a_limit_is_of_the_usable_rows_of_an_entry(tmp_path):
    write(tmp_path / "a.jsonl", row(0), {"bad": 1}, row(1), row(2))
    write(tmp_path / "b.jsonl", *(row(i) for i in range(10, 15)))
    write(tmp_path / "c.jsonl", *(row(i) for i in range(20, 23)))
    pool = [{"files": ["a.jsonl", "b.jsonl"], "limit": 4}, "c.jsonl"]
    catalogue = build(tmp_path, pool, columns=MAPPED, max_bad_fraction=0.5)
    assert catalogue.facts("source")["source"] == ["a"] * 3 + ["b"] + ["c"] * 3
    assert build(tmp_path, pool, columns=MAPPED, max_bad_fraction=0.5).digest == catalogue.digest


@pytest.mark.parametrize("suffix", ["jsonl", "csv"])
def test_rows_of_weight_0_are_left_out_and_other_weights_are_kept(tmp_path, suffix):
    write(tmp_path / "a.jsonl", *(row(i, id=i) for i in range(4)))
    path = tmp_path / f"weights.{suffix}"
    if suffix == "csv":
        path.write_text("id,weight\n1,0\n2,0.5\n9,0\n")
    else:
        write(path, {"id": 1, "weight": 0}, {"id": "2", "weight": 0.5}, {"id": 9, "weight": 0})
    pool = {"files": "a.jsonl", "weight_of_ids": path.name}
    catalogue = build(tmp_path, pool, columns=MAPPED, max_bad_fraction=0)
    assert catalogue.ids == ["0", "2", "3"]
    assert catalogue.facts("weight")["weight"].tolist() == [1.0, 0.5, 1.0]
    assert read_quarantine(tmp_path / "quarantine.jsonl") == []
    assert catalogue.manifest["files"][0]["left_out"] == 1
    write(tmp_path / "weights.jsonl", {"id": 1, "weight": 2})
    again = build(tmp_path, {"files": "a.jsonl", "weight_of_ids": "weights.jsonl"}, columns=MAPPED)
    assert again.facts("weight")["weight"].tolist() == [1.0, 2.0, 1.0, 1.0]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ('{"id": "z", "weight": 0}', "names no row"), ('{"id": 1}', "expected an id and a weight"),
        ('{"id": 1, "weight": -1}', "expected"), ('{"id": 1, "weight": NaN}', "expected"), ("[1]", "expected"),
        ('{"id": 1, "weight": 1}\n{"id": "1", "weight": 0}', "another weight"), ("", "no line"), ("{", "not JSON"),
    ],
)  # fmt: skip
def test_a_file_of_weights_that_cannot_be_used_is_named(tmp_path, lines, message):
    write(tmp_path / "a.jsonl", row(0, id=1))
    (tmp_path / "w.jsonl").write_text(lines)
    with pytest.raises(DataError, match=message):
        build(tmp_path, {"files": "a.jsonl", "weight_of_ids": "w.jsonl"}, columns=MAPPED)
    with pytest.raises(DataError, match=r"data.pool.0.weight_of_ids: .*none.jsonl"):
        build(tmp_path, {"files": "a.jsonl", "weight_of_ids": "none.jsonl"}, columns=MAPPED)


def test_targets_take_entries_and_columns_of_their_own(tmp_path):
    write(tmp_path / "t.jsonl", row(0))
    targets = {"t": {"files": {"files": "t.jsonl", "source": "s"}, "test": ["t.jsonl"], "columns": MAPPED}}
    found = config(tmp_path, "a.jsonl", targets=targets, columns={"id": "uuid", "ignore": "chosen"}).data
    (file,), (held,) = target_files(found, "t"), target_files(found, "t", test=True)
    record = file.reading.parse(json.dumps(row(0, uuid=3, chosen="x")).encode())
    assert (record.id, record.source, record.turns[0].content) == ("3", "s", "Name number 0.")
    assert held.reading.parse(json.dumps(row(0)).encode()).turns[1].content == "It is 0."


def test_the_resolved_config_repeats_itself_and_says_only_what_was_set(tmp_path):
    pool = ["a.jsonl", {"files": ["b"], "columns": {"messages": "d", "roles": {"user": "U"}}, "limit": 3}]
    found = config(tmp_path, pool, columns={"ignore": "chosen"})
    text = dump_config(found)
    assert parse_config(yaml.safe_load(text)) == found
    plain = yaml.safe_load(text)["data"]
    assert plain["pool"] == ["a.jsonl", {**pool[1], "columns": {"messages": "d", "roles": {"user": ["U"]}}}]
    assert plain["columns"] == {"ignore": ["chosen"]}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"pool": [{"fils": "b"}]}, r"data.pool.0.fils: unknown key; did you mean 'files'\?"),
        ({"pool": [3]}, "data.pool.0: Input should be a valid string"),
        ({"pool": {"files": "b", "columns": {"promt": "x"}}}, "data.pool.0.columns.promt: .* 'prompt'"),
        (
            {"pool": "b", "columns": {"messages": "x", "prompt": "y"}},
            "data.columns: messages and prompt name two forms",
        ),
        ({"pool": "b", "columns": {"prompt": "x", "instruction": "y"}}, "name two keys for one side"),
        ({"pool": "b", "columns": {"id": "x", "ignore": "x"}}, "named under ignore too"),
        ({"pool": "b", "columns": {"roles": {"user": "x", "assistant": "x"}}}, "stands for two roles"),
        ({"pool": "b", "columns": {"roles": {"asistant": "x"}}}, "data.columns.roles.asistant"),
        ({"pool": {"files": "b", "ids": "x", "limit": 0}}, "data.pool.0.limit: .*data.pool.0.ids"),
        ({"pool": "b", "targets": {"t": {"files": {"file": "x"}}}}, "data.targets.t.files.0.file: .*'files'"),
    ],
)
def test_wrong_entries_are_named(tmp_path, data, message):
    with pytest.raises(ConfigError, match=message):
        config(tmp_path, **{"targets": {"t": "t.jsonl"}, **data})


def test_one_file_in_two_entries_is_refused(tmp_path):
    write(tmp_path / "a.jsonl", row(0))
    with pytest.raises(DataError, match=r"data.pool.1: .*a.jsonl is already named by data.pool.0"):
        pool_files(config(tmp_path, ["a.jsonl", {"files": "a.jsonl"}]).data)
    with pytest.raises(DataError, match=r"data.pool.1: .*no such file"):
        pool_files(config(tmp_path, ["a.jsonl", "none.jsonl"]).data)
    with pytest.raises(DataError, match=r"data.pool.1.files.0: .*no such file"):
        pool_files(config(tmp_path, ["a.jsonl", {"files": "none.jsonl"}]).data)
