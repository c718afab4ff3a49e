from __future__ import annotations

import gzip
import json
import sys
import tracemalloc
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from influray.data import streams
from influray.data.files import DataFile, file_digest, resolve_files
from influray.data.readers import read_rows
from influray.data.records import BadRow
from influray.protocols import ConfigError, DataError

MAX_LINE, MAX_FILE = 2**20, 2**30
ROWS = [{"id": f"r{i}", "prompt": f"q{i} \u2028 \u00e9", "completion": "a" * (i % 9 + 1)} for i in range(700)]
LINES = [json.dumps(row, ensure_ascii=False, separators=(",", ":")).encode() for row in ROWS]


def write(folder: Path, name: str, data: bytes) -> DataFile:
    (folder / name).write_bytes(data)
    (file,) = resolve_files([name], folder, "data.pool")
    return file


def rows(file: DataFile, max_line: int = MAX_LINE, max_file: int = MAX_FILE) -> list:
    return list(read_rows(file, max_line, max_file))


def good(found: list) -> list[bytes]:
    return [row for _, row in found if isinstance(row, bytes)]


def test_every_kind_of_file_gives_the_same_rows(tmp_path):
    text = b"\n".join(LINES) + b"\n"
    table = pa.Table.from_pylist(ROWS)
    pq.write_table(table, tmp_path / "d.parquet", row_group_size=100)
    with pa.OSFile(str(tmp_path / "e.arrow"), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=99)
    with pa.OSFile(str(tmp_path / "f.arrow"), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    files = [
        write(tmp_path, "a.jsonl", text),
        write(tmp_path, "b.jsonl.gz", gzip.compress(text[:999]) + gzip.compress(text[999:])),
        write(tmp_path, "c.jsonl.zst", zstandard.compress(text[:999]) + zstandard.compress(text[999:])),
        *resolve_files(["d.parquet", "e.arrow", "f.arrow"], tmp_path, "data.pool"),
    ]
    expected = list(enumerate(LINES, start=1))
    for file in files:
        assert rows(file) == expected, file.name


def test_a_hub_data_set_gives_the_same_rows_and_changes_its_digest_with_its_files(tmp_path):
    pytest.importorskip("datasets")
    (tmp_path / "set").mkdir()
    path = tmp_path / "set" / "train.jsonl"
    path.write_bytes(b"\n".join(LINES[:50]))
    (file,) = resolve_files([f"hf://{tmp_path / 'set'}"], "elsewhere", "data.pool")
    assert rows(file) == list(enumerate(LINES[:50], start=1))
    before = file_digest(file)
    assert file_digest(file) == before
    path.write_bytes(b"\n".join(LINES[:51]))
    assert file_digest(file) != before
    (wrong,) = resolve_files([f"hf://{tmp_path / 'set'}:nosplit"], "elsewhere", "data.pool")
    with pytest.raises(DataError, match="nosplit"):
        rows(wrong)
    with pytest.raises(DataError, match="cannot be loaded"):
        rows(DataFile(f"hf://{tmp_path / 'none'}", "x", "hub"))


def test_hub_ids_are_taken_apart_and_the_missing_extra_is_named(monkeypatch):
    from influray.data import hub

    assert hub.parse("hf://org/name/conf:test[:10]") == ("org/name", "conf", "test[:10]")
    assert hub.parse("hf://org/name") == ("org/name", None, "train")
    assert hub.parse("hf://name:test") == ("name", None, "test")
    assert hub.parse("hf:///some/folder:test") == ("/some/folder", None, "test")
    for wrong in ("hf://", "hf:///", "hf://a//b", "hf://a/b/c/d", "hf://:train"):
        with pytest.raises(ConfigError, match=r"data\.pool\.0"):
            resolve_files([wrong], ".", "data.pool")
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ConfigError, match=r"extra `hub`"):
        rows(DataFile("hf://org/name", "x", "hub"))


lines_strategy = st.lists(st.binary(max_size=12).map(lambda b: b.replace(b"\n", b"")), max_size=12)


@settings(max_examples=60, deadline=None)
@given(lines_strategy, st.booleans(), st.booleans(), st.integers(1, 9))
def test_lines_are_cut_at_newlines_only_whatever_the_chunks(tmp_path_factory, lines, final, bom, chunk):
    data = (b"\xef\xbb\xbf" if bom else b"") + b"\n".join([b"{}", *lines]) + (b"\n" if final else b"")
    file = write(tmp_path_factory.mktemp("lines"), "a.jsonl", data)
    # A byte order mark is looked for in the first chunk, so that one is never this small in earnest.
    expected = [(i, line.removesuffix(b"\r")) for i, line in enumerate([b"{}", *lines], start=1) if line.strip()]
    whole = rows(file)
    assert whole == expected
    original = streams.CHUNK
    try:
        streams.CHUNK = 4 + chunk
        assert rows(file) == expected
    finally:
        streams.CHUNK = original


def test_long_lines_are_named_and_the_rest_is_read(tmp_path):
    file = write(tmp_path, "a.jsonl", b"short\n" + b"x" * 3_000_000 + b"\nshort too\n" + b"y" * 101)
    found = rows(file, max_line=100)
    assert [number for number, _ in found] == [1, 2, 3, 4]
    assert good(found) == [b"short", b"short too"]
    assert "3000000 bytes, data.max_line_bytes is 100" in found[1][1].reason


def test_a_file_that_expands_beyond_the_limit_stops_in_bounded_memory(tmp_path):
    bomb = (b"x" * 127 + b"\n") * 2**18
    for name, data in (("a.jsonl.gz", gzip.compress(bomb)), ("b.jsonl.zst", zstandard.compress(bomb))):
        file = write(tmp_path, name, data)
        tracemalloc.start()
        with pytest.raises(DataError, match=rf"{name}:\d+: more than data.max_file_bytes = 1000000"):
            rows(file, max_file=10**6)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 2**23
    one_line = write(tmp_path, "c.jsonl.gz", gzip.compress(b"x" * 2**25))
    tracemalloc.start()
    ((_, bad),) = rows(one_line)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert isinstance(bad, BadRow)
    assert peak < 2**23


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.jsonl.zst"])
def test_torn_streams_keep_whole_rows_and_add_one_bad_one(tmp_path, name):
    text = b"\n".join(LINES) + b"\n"
    gz = name.endswith(".gz")
    packed = gzip.compress(text) if gz else zstandard.ZstdCompressor(write_checksum=True).compress(text)
    for cut in (3, len(packed) // 2, len(packed) - 1):
        found = rows(write(tmp_path, name, packed[:cut]))
        assert good(found) == LINES[: len(found) - 1]
        assert "breaks off" in found[-1][1].reason
        assert found[-1][0] == len(found)
    wrong_sum = bytearray(packed)
    wrong_sum[-8 if gz else -1] ^= 1
    found = rows(write(tmp_path, name, bytes(wrong_sum)))
    # zstd checks while it gives the last byte, which is the line end of the last row.
    assert good(found) == (LINES if gz else LINES[:-1])
    assert "breaks off" in found[-1][1].reason
    assert good(rows(write(tmp_path, name, text))) == LINES  # its name says that it is compressed
    (only,) = rows(write(tmp_path, name, b"no stream\n"))
    assert only[0] == 1
    assert "breaks off" in only[1].reason
    assert rows(write(tmp_path, name, b"")) == []


def test_two_torn_zstd_frames_keep_all_of_the_first(tmp_path):
    first, second = b"\n".join(LINES[:300]) + b"\n", b"\n".join(LINES[300:])
    packed = zstandard.compress(first) + zstandard.compress(second)[:-7]
    found = rows(write(tmp_path, "a.jsonl.zst", packed))
    assert good(found)[:300] == LINES[:300]


def test_a_torn_parquet_file_is_one_bad_row(tmp_path):
    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "a.parquet")
    ((number, bad),) = rows(write(tmp_path, "a.parquet", (tmp_path / "a.parquet").read_bytes()[:-9]))
    assert number == 1
    assert "breaks off" in bad.reason


def test_a_torn_arrow_stream_keeps_its_whole_batches(tmp_path):
    table = pa.Table.from_pylist(ROWS)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=100)
    found = rows(write(tmp_path, "a.arrow", sink.getvalue().to_pybytes()[:-3000]))
    assert good(found) == LINES[: len(found) - 1]
    assert len(found) > 500
    assert "breaks off" in found[-1][1].reason


def test_invalid_utf8_in_a_column_spoils_its_row_alone(tmp_path):
    offsets = pa.py_buffer(b"".join(i.to_bytes(4, "little") for i in (0, 1, 2, 3)))
    column = pa.Array.from_buffers(pa.string(), 3, [None, offsets, pa.py_buffer(b"a\xffc")])
    table = pa.table({"prompt": column})
    with pa.OSFile(str(tmp_path / "a.arrow"), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    (file,) = resolve_files(["a.arrow"], tmp_path, "data.pool")
    found = rows(file)
    assert good(found) == [b'{"prompt":"a"}', b'{"prompt":"c"}']
    assert "value cannot be read" in found[1][1].reason


def test_numbers_without_a_json_form_become_null(tmp_path):
    pq.write_table(pa.table({"x": [[1.5, float("nan")], [float("inf")]]}), tmp_path / "a.parquet")
    (file,) = resolve_files(["a.parquet"], tmp_path, "data.pool")
    assert good(rows(file)) == [b'{"x":[1.5,null]}', b'{"x":[null]}']


def test_folders_are_searched_in_byte_order_and_other_files_left_out(tmp_path):
    for name in ("b/z.jsonl", "b/A.jsonl.gz", "b/deep/m.parquet", "a.jsonl", "b.jsonl", "\u00e9.jsonl"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"PAR1" if name.endswith("parquet") else b"")
    for name in ("b/README.md", "b/.hidden.jsonl", "b/.git/x.jsonl"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    found = resolve_files(["."], tmp_path, "data.pool")
    names = ["a.jsonl", "b.jsonl", "b/A.jsonl.gz", "b/deep/m.parquet", "b/z.jsonl", "\u00e9.jsonl"]
    assert [file.name for file in found] == sorted(names, key=lambda name: name.encode())
    assert [file.stem for file in found][:4] == ["a", "b", "A", "m"]
    assert resolve_files(["b", "\u00e9.jsonl", "a.jsonl", "b.jsonl"], tmp_path, "data.pool") == found


def test_what_is_not_there_is_an_error_with_its_dotted_key(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "a.jsonl").write_bytes(b"")
    (tmp_path / "a.txt").write_bytes(b"")
    for entries, message in (
        (["a.jsonl", "b.jsonl"], r"data\.pool\.1: .*b\.jsonl: no such file"),
        (["empty"], r"data\.pool\.0: .*empty holds no file"),
        (["a.txt"], r"data\.pool\.0: .*a\.txt: neither its name nor its content"),
        (["a.jsonl", "."], r"data\.pool\.1: .*a\.jsonl is already named by data\.pool\.0"),
    ):
        with pytest.raises(DataError, match=message):
            resolve_files(entries, tmp_path, "data.pool")


def test_a_file_that_goes_away_is_a_data_error(tmp_path):
    for name, kind in (("a.jsonl", "jsonl"), ("a.json", "json"), ("a.csv", "csv"), ("a.pq", "parquet"), ("a", "arrow")):
        file = DataFile(str(tmp_path / name), name, kind)
        with pytest.raises(DataError, match="cannot be opened"):
            rows(file)
        with pytest.raises(DataError, match="cannot be read"):
            file_digest(file)
