from __future__ import annotations

import gzip
import json
import tracemalloc
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from influray.config import DataConfig
from influray.data import drafts, identity, numbering
from influray.data.catalogue import Catalogue, build_catalogue
from influray.data.chat import ChatEncoder
from influray.data.files import resolve_files
from influray.data.identity import IdIndex, content_name, id_hashes
from influray.data.quarantine import read_quarantine
from influray.data.records import Record, Turn, parse_record
from influray.protocols import DataError
from influray.store.artifact import read_manifest
from tests.tiny import byte_tokenizer, chat, pool_rows, target_rows, write_jsonl

TOKENIZER = byte_tokenizer()
MAX_TOKENS = 64


class CountingEncoder(ChatEncoder):
    """An encoder that tells how many records it was given."""

    encoded = 0

    def encode_many(self, records):
        self.encoded += len(records)
        return super().encode_many(records)


def encoder(**options) -> CountingEncoder:
    return CountingEncoder(TOKENIZER, "auto", MAX_TOKENS, **options)


def build(root: Path, run: Path, split: str = "pool", chat_encoder: ChatEncoder | None = None, **settings) -> Catalogue:
    settings = {"pool": ("pool",), "targets": {"sums": "sums.jsonl"}, **settings}
    config = DataConfig(root=str(root), **settings)
    if split == "pool":
        files = [("", file) for file in resolve_files(config.pool, root, "data.pool")]
    else:
        files = [
            (task, file)
            for task, target in config.targets.items()
            for file in resolve_files(target.files, root, f"data.targets.{task}.files")
        ]
    return build_catalogue(
        run / "data" / split,
        split,
        files,
        chat_encoder or encoder(),
        "key",
        config,
        quarantine=run / "quarantine.jsonl",
    )


def everything(catalogue: Catalogue) -> dict:
    columns = catalogue.facts("row", "id", "file", "line", "source", "group", "tokens", "loss_tokens", "truncated")
    found = {name: list(values) for name, values in columns.items()}
    examples = catalogue.tokenized(0, len(catalogue))
    found["ids"] = [example.input_ids_S.tolist() for example in examples]
    found["masks"] = [example.loss_mask_S.tolist() for example in examples]
    found["records"] = catalogue.records(range(len(catalogue)))
    return found


@pytest.fixture
def small_parts(monkeypatch):
    monkeypatch.setattr(numbering, "PART_ROWS", 10)
    monkeypatch.setattr(drafts, "BLOCK_ROWS", 4)


def test_a_catalogue_holds_what_parsing_and_encoding_each_line_gives(tmp_path, small_parts):
    path = write_jsonl(tmp_path / "pool" / "a.jsonl", pool_rows(24))
    catalogue = build(tmp_path, tmp_path)
    lines = path.read_bytes().split(b"\n")[:-1]
    assert len(catalogue) == 24
    assert len(catalogue.manifest["parts"]) == 3
    assert catalogue.records(range(24)) == lines
    columns = catalogue.facts("row", "line", "tokens", "loss_tokens", "truncated", "source")
    assert columns["row"].tolist() == list(range(24))
    assert columns["line"].tolist() == list(range(1, 25))
    for example, line in zip(catalogue.tokenized(0, 24), lines, strict=True):
        record = parse_record(line)
        encoded = encoder().encode(record)
        assert np.array_equal(example.input_ids_S, encoded.input_ids)
        assert np.array_equal(example.loss_mask_S, encoded.loss_mask)
        assert columns["tokens"][example.row] == example.tokens == len(encoded.input_ids)
        assert columns["loss_tokens"][example.row] == example.loss_tokens == encoded.loss_tokens
        assert columns["truncated"][example.row] == encoded.truncated
        assert columns["source"][example.row] == record.source
        assert catalogue.ids[example.row] == record.id
        assert catalogue.find(record.id) == example.row
    assert [example.row for example in catalogue.tokenized(8, 21)] == list(range(8, 21))
    with pytest.raises(DataError, match="no row has the id 'nobody'"):
        catalogue.find("nobody")
    with pytest.raises(IndexError):
        catalogue.tokenized(20, 25)


def test_packed_and_columnar_files_give_the_catalogue_of_the_plain_one(tmp_path):
    rows = pool_rows(30)
    for row in rows[::5]:
        del row["id"]
    rows[7]["id"] = None
    text = b"".join(json.dumps(row, ensure_ascii=False, separators=(",", ":")).encode() + b"\n" for row in rows)
    table = pa.Table.from_pylist(rows, schema=pa.Table.from_pylist(pool_rows(1)).schema)
    made = {}
    for suffix in ("jsonl", "jsonl.gz", "jsonl.zst", "parquet", "arrow"):
        path = tmp_path / suffix / "pool" / f"a.{suffix}"
        path.parent.mkdir(parents=True)
        if suffix == "parquet":
            pq.write_table(table, path)
        elif suffix == "arrow":
            with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
                writer.write_table(table)
        else:
            pack = {"jsonl": bytes, "jsonl.gz": gzip.compress, "jsonl.zst": zstandard.compress}[suffix]
            path.write_bytes(pack(text))
        catalogue = build(tmp_path / suffix, tmp_path / suffix)
        found = everything(catalogue)
        if suffix in ("parquet", "arrow"):
            assert [json.loads(record) for record in found["records"]] == [{"id": None, **row} for row in rows]
            del found["records"]
        found["file"] = [name.split(".")[0] for name in found["file"]]
        made[suffix] = found, catalogue.content_digest(0, 30)
    plain, digest = made["jsonl"]
    for found, other in made.values():
        assert {key: plain[key] for key in found} == found
        assert other == digest


def test_what_is_unchanged_is_not_read_again(tmp_path):
    write_jsonl(tmp_path / "pool" / "a.jsonl", pool_rows())
    first = build(tmp_path, tmp_path)
    stamps = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("data/**/*") if path.is_file()}
    counting = encoder()
    again = build(tmp_path, tmp_path, chat_encoder=counting)
    assert counting.encoded == 0
    assert again.digest == first.digest
    assert {path: path.stat().st_mtime_ns for path in stamps} == stamps


def test_an_added_file_goes_to_the_end_even_if_its_name_sorts_first(tmp_path, small_parts):
    write_jsonl(tmp_path / "pool" / "m.jsonl", pool_rows(24))
    before = everything(build(tmp_path, tmp_path))
    added = [chat(f"new-{i}", "new", "Hi", f"I am {i}") for i in range(5)] + [chat("sum-0", "new", "twice", "no")]
    write_jsonl(tmp_path / "pool" / "a.jsonl", added)
    counting = encoder()
    catalogue = build(tmp_path, tmp_path, chat_encoder=counting, max_bad_fraction=0.1)
    after = everything(catalogue)
    assert counting.encoded == 6
    assert {key: values[:24] for key, values in after.items()} == before
    assert after["id"][24:] == [f"new-{i}" for i in range(5)]
    assert catalogue.file_lengths == [24, 5]
    (bad,) = read_quarantine(tmp_path / "quarantine.jsonl")
    assert "at pool/m.jsonl:1; if each file" in bad["reason"]
    # And once more: now it stands where it was put, and nothing is to be done.
    counting = encoder()
    assert build(tmp_path, tmp_path, chat_encoder=counting, max_bad_fraction=0.1).digest == catalogue.digest
    assert counting.encoded == 0


def test_a_changed_or_removed_file_rebuilds_what_follows_and_leaves_what_stands_before(tmp_path):
    for name in "abc":
        write_jsonl(tmp_path / "pool" / f"{name}.jsonl", [chat(f"{name}{i}", name, "q", f"{i}") for i in range(4)])
    build(tmp_path, tmp_path)
    write_jsonl(tmp_path / "pool" / "b.jsonl", [chat(f"b{i}", "b", "q", f"{i}!") for i in range(3)])
    counting = encoder()
    changed = build(tmp_path, tmp_path, chat_encoder=counting)
    assert counting.encoded == 7
    assert changed.ids == [*(f"a{i}" for i in range(4)), *(f"b{i}" for i in range(3)), *(f"c{i}" for i in range(4))]
    (tmp_path / "pool" / "b.jsonl").unlink()
    counting = encoder()
    removed = build(tmp_path, tmp_path, chat_encoder=counting)
    assert counting.encoded == 4
    fresh = build(tmp_path, tmp_path / "fresh")
    assert everything(removed) == everything(fresh)
    assert removed.digest == fresh.digest
    parts_there = {path.name for path in (tmp_path / "data" / "pool").glob("part-*")}
    assert parts_there == {part["file"] for part in removed.manifest["parts"]}


def test_an_interrupted_build_goes_on_after_its_last_part_and_gives_the_same_bytes(tmp_path, small_parts):
    rows = pool_rows(47)
    for row in rows[::4]:
        row["id"] = None
    rows[30]["id"] = rows[1]["id"]
    write_jsonl(tmp_path / "pool" / "a.jsonl", [*rows, *rows[::4]])

    class Dying(CountingEncoder):
        def encode_many(self, records):
            if self.encoded > 24:
                raise KeyboardInterrupt
            return super().encode_many(records)

    settings = {"max_bad_fraction": 0.1}
    with pytest.raises(KeyboardInterrupt):
        build(tmp_path, tmp_path, chat_encoder=Dying(TOKENIZER, "auto", MAX_TOKENS), **settings)
    assert read_manifest(tmp_path / "data" / "pool") is None
    counting = encoder()
    resumed = build(tmp_path, tmp_path, chat_encoder=counting, **settings)
    whole = build(tmp_path, tmp_path / "whole", **settings)
    assert counting.encoded == len(rows) + len(rows[::4]) - 20
    assert resumed.digest == whole.digest
    assert everything(resumed) == everything(whole)
    assert read_quarantine(tmp_path / "quarantine.jsonl") == read_quarantine(tmp_path / "whole" / "quarantine.jsonl")


def test_rows_without_an_id_get_one_of_their_content_and_occurrence(tmp_path):
    same = {"prompt": "q", "completion": "a"}
    write_jsonl(tmp_path / "pool" / "a.jsonl", [same, {**same, "id": " "}, {"prompt": "q", "completion": "b"}])
    first = build(tmp_path, tmp_path)
    contents = [identity.split("#") for identity in first.ids]
    assert [occurrence for _, occurrence in contents] == ["1", "2", "1"]
    assert contents[0][0] == contents[1][0] != contents[2][0]
    # A file that comes later counts on, also from the committed ids.
    write_jsonl(tmp_path / "pool" / "b.jsonl", [{**same, "id": None}, {**same, "id": first.ids[2]}])
    second = build(tmp_path, tmp_path, max_bad_fraction=0.5)
    assert second.ids == [*first.ids, f"{contents[0][0]}#3"]


def test_targets_are_grouped_by_task_and_limited_to_usable_rows(tmp_path):
    for task in ("sums", "reversals"):
        rows = target_rows(task, 6)
        rows[1]["messages"][1]["content"] = ""
        write_jsonl(tmp_path / f"{task}-1.jsonl", rows[:3])
        write_jsonl(tmp_path / f"{task}-2.jsonl", rows[3:])
    targets = {
        task: {"files": [f"{task}-1.jsonl", f"{task}-2.jsonl"], "limit": limit}
        for task, limit in (("sums", 3), ("reversals", 2))
    }
    settings = {"targets": targets, "max_bad_fraction": 0.5}
    catalogue = build(tmp_path, tmp_path, "target", **settings)
    assert catalogue.groups == ("sums",) * 3 + ("reversals",) * 2
    assert catalogue.file_lengths == [2, 1, 2, 0]
    assert catalogue.ids == ["t-sum-50", "t-sum-52", "t-sum-53", "t-rev-0", "t-rev-2"]
    targets["more"] = {"files": ["more.jsonl"]}
    write_jsonl(tmp_path / "more.jsonl", [chat("m", "s", "q", "a")])
    counting = encoder()
    assert build(tmp_path, tmp_path, "target", counting, **settings).groups[5:] == ("more",)
    assert counting.encoded == 1


def test_too_many_bad_rows_are_an_error_that_shows_them_and_leaves_the_old_catalogue(tmp_path):
    path = write_jsonl(tmp_path / "pool" / "a.jsonl", pool_rows())
    before = build(tmp_path, tmp_path)
    path.write_bytes(path.read_bytes() + b"not json\n" * 7)
    with pytest.raises(DataError) as caught:
        build(tmp_path, tmp_path)
    message = str(caught.value)
    assert "7 of 31 rows of the pool" in message
    assert f"{path}:25: not JSON" in message
    assert "and 2 more" in message
    assert Catalogue(tmp_path / "data" / "pool").digest == before.digest
    assert len(read_quarantine(tmp_path / "quarantine.jsonl")) == 7
    allowed = build(tmp_path, tmp_path, max_bad_fraction=0.25)
    assert len(allowed) == 24
    assert len(read_quarantine(tmp_path / "quarantine.jsonl")) == 7
    # The limit holds for a catalogue that is there as well.
    with pytest.raises(DataError, match="7 of 31"):
        build(tmp_path, tmp_path, max_bad_fraction=0.1)


def test_a_split_or_task_without_a_usable_row_is_an_error_that_names_it(tmp_path):
    (tmp_path / "pool").mkdir()
    (tmp_path / "pool" / "a.jsonl").write_bytes(b"\n\n")
    with pytest.raises(DataError, match=r"data\.pool: no usable row in .*a\.jsonl"):
        build(tmp_path, tmp_path)
    write_jsonl(tmp_path / "sums.jsonl", target_rows("sums"))
    write_jsonl(tmp_path / "bad.jsonl", [{"prompt": "q", "completion": ""}])
    targets = {"sums": "sums.jsonl", "broken": "bad.jsonl"}
    with pytest.raises(DataError, match=r"(?s)data\.targets\.broken\.files: no usable row.*bad\.jsonl:1: empty answer"):
        build(tmp_path, tmp_path, "target", targets=targets, max_bad_fraction=1)


def test_content_digests_follow_tokens_and_spans_and_nothing_else(tmp_path, monkeypatch):
    rows = [chat(f"r{i}", "s", f"q{i}", f"a{i}") for i in range(25)]
    write_jsonl(tmp_path / "pool" / "a.jsonl", rows)
    one = build(tmp_path, tmp_path)
    write_jsonl(
        tmp_path / "other" / "pool" / "a.jsonl", [{**row, "id": "x" + row["id"], "source": "t"} for row in rows]
    )
    monkeypatch.setattr(numbering, "PART_ROWS", 7)
    other = build(tmp_path / "other", tmp_path / "other")
    assert [one.content_digest(a, b) for a, b in ((0, 25), (3, 19), (7, 14))] == [
        other.content_digest(a, b) for a, b in ((0, 25), (3, 19), (7, 14))
    ]
    assert one.content_digest(0, 24) != one.content_digest(1, 25)
    untrained = build(tmp_path, tmp_path / "untrained", chat_encoder=encoder(end_token=False))
    assert untrained.content_digest(0, 25) != one.content_digest(0, 25)


def test_memory_does_not_grow_with_the_pool(tmp_path, monkeypatch):
    monkeypatch.setattr(numbering, "PART_BYTES", 2**18)
    monkeypatch.setattr(drafts, "BLOCK_ROWS", 16)
    peaks = []
    for count in (200, 800):
        folder = tmp_path / str(count)
        rows = [{**chat(f"r{i}", "s", f"{i}", "y"), "side": "x" * 4000} for i in range(count)]
        write_jsonl(folder / "pool" / "a.jsonl", rows)
        chat_encoder = encoder()
        tracemalloc.start()
        build(folder, folder, chat_encoder=chat_encoder)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.2 * peaks[0] < 800 * 4000, peaks


def test_ids_whose_hashes_share_a_half_are_told_apart_and_old_ones_found(monkeypatch):
    def hashes(ids):
        return np.array([(len(name) % 3, int(name.partition("#")[2])) for name in ids], np.int64).reshape(-1, 2)

    def key(name):
        return tuple(hashes([name])[0].tolist())

    monkeypatch.setattr(identity, "id_hashes", hashes)
    names = [f"{'x' * (i % 17)}#{i}" for i in range(500)]
    index = IdIndex()
    for place, name in enumerate(names):
        assert index.find(key(name)) is None
        index.recent[key(name)] = place
        if place % 37 == 36:
            index.settle()
    assert [index.find(key(name)) for name in names] == list(range(500))
    assert index.find(key("y#501")) is None


def test_a_content_that_comes_again_has_another_name():
    index = IdIndex()
    first = content_name(Record(None, "", (Turn("user", "q"),), None))
    for occurrence in (1, 2, 3):
        name = index.name_for(first)
        assert name == f"{first[:-1]}{occurrence}"
        index.load(id_hashes([name]), np.array([occurrence]))


@pytest.mark.parametrize("count", [0, 1, 2, 50])
def test_settled_hashes_are_seen_and_no_others(count):
    index = IdIndex()
    hashes = np.random.default_rng(count).permutation(4 * count).astype(np.int64).repeat(2).reshape(-1, 2)
    for start in range(0, 2 * count, 7):
        stop = min(start + 7, 2 * count)
        index.load(hashes[start:stop], np.arange(start, stop))
    assert index.seen(hashes).tolist() == [True] * (2 * count) + [False] * (2 * count)
    assert [index.find(tuple(hashed)) for hashed in hashes.tolist()[: 2 * count]] == list(range(2 * count))
