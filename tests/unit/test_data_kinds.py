"""JSON, CSV and TSV in every spelling; a file is what it holds, whatever its name; what is not read is named."""

from __future__ import annotations

import csv
import gzip
import io
import json
import tracemalloc
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from influray.data import streams
from influray.data.files import DataFile, resolve_files
from influray.data.readers import read_rows
from influray.data.records import BadRow
from influray.protocols import DataError

ROWS = [
    {"id": f"r{i}", "prompt": f'q{i} "]}},{{[" \\ \u00e9\u2028', "completion": "a" * (i % 5 + 1)} for i in range(40)
]
COMPACT = [json.dumps(row, ensure_ascii=False, separators=(",", ":")).encode() for row in ROWS]


def write(folder: Path, name: str, data: bytes) -> DataFile:
    (folder / name).write_bytes(data)
    (file,) = resolve_files([name], folder, "data.pool")
    return file


def rows(file: DataFile, max_line: int = 2**20) -> list:
    return list(read_rows(file, max_line, 2**30))


def trees(found: list) -> list:
    return [json.loads(row) for _, row in found]


ARRAY = json.dumps(ROWS, ensure_ascii=False).encode()
PRETTY = json.dumps(ROWS, indent=1).encode()
LINES = b"\n".join(COMPACT)
OBJECTS = "\n".join(json.dumps(row, indent=2) for row in ROWS).encode()
JOINED = b"".join(COMPACT)


@pytest.mark.parametrize("text", [ARRAY, PRETTY, LINES, OBJECTS, JOINED, b"\xef\xbb\xbf\r\n" + PRETTY], ids=range(6))
@pytest.mark.parametrize("name", ["a.json", "a.jsonl", "a.txt", "a.json.gz", "a.csv", "a.zst", "plain"])
def test_json_in_every_spelling_gives_the_same_rows_under_any_name(tmp_path, text, name):
    packed = gzip.compress(text) if "gz" in name else zstandard.compress(text) if "zst" in name else text
    found = rows(write(tmp_path, name, packed))
    assert trees(found) == ROWS
    assert all(b"\n" not in row for _, row in found)
    numbers = [number for number, _ in found]
    assert numbers == list(range(1, 41))


def test_an_element_keeps_its_bytes_and_one_of_several_lines_loses_white_space_alone(tmp_path):
    text = b'[ {"a": 1.50, "a" : "x  y"} ,\n{\n "b" :\t[ 1e2,\r\n 10000000000000000000000 ] , "c": " \\n "\n}\n]'
    assert [row for _, row in rows(write(tmp_path, "a.json", text))] == [
        b'{"a": 1.50, "a" : "x  y"}',
        b'{"b":[1e2,10000000000000000000000],"c":" \\n "}',
    ]


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=80, deadline=None)
@given(
    st.lists(st.dictionaries(st.text(max_size=4), json_values, max_size=4), min_size=2, max_size=6),
    st.sampled_from([None, 1]),
    st.booleans(),
    st.booleans(),
    st.integers(1, 7),
)
def test_values_are_cut_the_same_whatever_the_chunks(tmp_path_factory, values, indent, escaped, array, chunk):
    dumped = [json.dumps(value, indent=indent, ensure_ascii=escaped) for value in values]
    text = json.dumps(values, indent=indent, ensure_ascii=escaped) if array else "\n".join(dumped)
    folder = tmp_path_factory.mktemp("values")
    (folder / "a.json").write_bytes(text.encode("utf-8", "surrogatepass"))
    file = DataFile(str(folder / "a.json"), "a.json", "json")
    original = streams.CHUNK
    try:
        streams.CHUNK = 4 + chunk
        assert [json.loads(row.decode("utf-8", "surrogatepass")) for _, row in rows(file)] == values
    finally:
        streams.CHUNK = original


def test_damage_in_an_array_costs_what_it_touches(tmp_path):
    torn = write(tmp_path, "torn.json", PRETTY[: len(PRETTY) // 2])
    found = rows(torn)
    assert trees(found[:-1]) == ROWS[: len(found) - 1]
    assert len(found) > 10
    assert "not closed" in found[-1][1].reason
    text = b'[{"a": 1},\n{"b": tru},\n{"d": 4}, , {"e": 5}, 7,]'
    found = rows(write(tmp_path, "odd.json", text))
    assert [number for number, _ in found] == list(range(1, len(found) + 1))
    assert found[0][1] == b'{"a": 1}'
    assert (len(found), b'{"e": 5}') in found or b'{"e": 5}' in [row for _, row in found]
    assert any(isinstance(row, BadRow) and "comma" in row.reason for _, row in found)
    long = rows(write(tmp_path, "long.json", b'[{"a": "' + b"x" * 300 + b'"}, {"b": 2}]'), max_line=100)
    assert "max_line_bytes is 100" in long[0][1].reason
    assert long[1] == (2, b'{"b": 2}')


def test_a_large_array_and_an_unclosed_quote_take_bounded_memory(tmp_path):
    array = b"[" + b",".join([b'{"a": "' + b"x" * 1000 + b'"}'] * 6_000) + b"]"
    quote = b"a,b\n" + b'1,"' + (b"text, " * 50 + b"\n") * 20_000
    for name, data, expected in (("a.json.gz", array, 6_000), ("b.csv.gz", quote, 1)):
        file = write(tmp_path, name, gzip.compress(data, 1))
        tracemalloc.start()
        assert sum(1 for _ in read_rows(file, 2**16, 2**30)) == expected
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 2**22


def test_blank_lines_are_counted_without_a_look_at_each(tmp_path):
    for blank in (b"\n", b"\r\n", b" \t\n"):
        text = b'{"a":1}\n' + blank * 300_000 + b'{"a":2}\n' + blank * 3 + b'{"a":3}'
        found = rows(write(tmp_path, "a.jsonl.gz", gzip.compress(text)))
        assert found == [(1, b'{"a":1}'), (300_002, b'{"a":2}'), (300_006, b'{"a":3}')]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.sampled_from([b"{}", b"", b" ", b"\r", b"{1}", b"x" * 40]), min_size=1, max_size=30), st.integers(1, 9)
)
def test_sparse_lines_have_the_numbers_that_they_have(tmp_path_factory, lines, chunk):
    path = tmp_path_factory.mktemp("sparse") / "a.jsonl"
    path.write_bytes(b"\n".join(lines))
    expected = [(i, line.removesuffix(b"\r")) for i, line in enumerate(lines, start=1) if line.strip()]
    original = streams.CHUNK
    try:
        streams.CHUNK = 4 * chunk
        assert rows(DataFile(str(path), "a.jsonl", "jsonl")) == expected
    finally:
        streams.CHUNK = original


def table(rows: list[list[str]], end: str, delimiter: str) -> bytes:
    text = io.StringIO(newline="")
    csv.writer(text, quoting=csv.QUOTE_ALL, lineterminator=end, delimiter=delimiter).writerows(rows)
    return text.getvalue().encode()


cells = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=8)


@settings(max_examples=80, deadline=None)
@given(
    st.lists(st.tuples(cells, cells.filter(bool)), max_size=6),
    st.sampled_from(["\n", "\r\n"]),
    st.sampled_from([("csv", ","), ("tsv", "\t")]),
    st.booleans(),
    st.integers(1, 9),
)
def test_tables_are_read_as_they_were_written(tmp_path_factory, body, end, form, bom, chunk):
    kind, delimiter = form
    path = tmp_path_factory.mktemp("tables") / f"a.{kind}"
    path.write_bytes(b"\xef\xbb\xbf" * bom + table([["", "b c"], *map(list, body)], end, delimiter))
    original = streams.CHUNK
    try:
        streams.CHUNK = 4 + chunk
        found = rows(DataFile(str(path), path.name, kind))
    finally:
        streams.CHUNK = original
    assert trees(found) == [{name: cell for name, cell in zip(("", "b c"), row, strict=True) if cell} for row in body]


def test_the_number_of_a_row_of_a_table_is_its_first_line(tmp_path):
    text = b'prompt,completion\r\n"a\nb",c\r\n\r\n"d ""e""",f\r\n'
    assert rows(write(tmp_path, "a.csv.gz", gzip.compress(text))) == [
        (2, b'{"prompt":"a\\nb","completion":"c"}'),
        (5, b'{"prompt":"d \\"e\\"","completion":"f"}'),
    ]


def test_odd_rows_of_a_table_are_bad_alone(tmp_path):
    text = b'a,b\n1,2\n1\n1,2,3\n1,\xff\n1,a\0b\n"1"x,2\n' + b"y" * 200 + b',"\n' + b"z" * 99 + b'"\n5,6\n"7,8\n9,0\n'
    found = rows(write(tmp_path, "a.csv", text), max_line=150)
    assert [number for number, _ in found] == [2, 3, 4, 5, 6, 7, 8, 10, 11]
    reasons = [row.reason if isinstance(row, BadRow) else row for _, row in found]
    assert reasons[0] == b'{"a":"1","b":"2"}'
    assert reasons[7] == b'{"a":"5","b":"6"}'
    expected = ["1 cells, the header 2", "3 cells", "not UTF-8", "NUL", "not CSV", "max_line_bytes is 150"]
    for reason, word in zip([*reasons[1:7], reasons[8]], [*expected, "not closed"], strict=True):
        assert word in reason


@pytest.mark.parametrize(
    ("name", "header", "message"),
    [
        ("a.csv", b"a,b,a\n1,2,3\n", r"a\.csv:1: the header names the column 'a' twice"),
        ("a.csv", b"a;b\n1;2\n", r"a\.csv:1: .*commas.*';'"),
        ("a.tsv", b"a,b\n1,2\n", r"a\.tsv:1: .*tabs.*','"),
        ("a.csv", b'"a\n1,2\n', r"a\.csv:1: the header cannot be read: a quote"),
    ],
)
def test_a_header_that_cannot_be_used_is_named(tmp_path, name, header, message):
    with pytest.raises(DataError, match=message):
        rows(write(tmp_path, name, header))


def test_files_without_rows_give_none(tmp_path):
    for name, data in (
        ("a.csv", b"a,b\n"),
        ("b.csv", b""),
        ("c.json", b""),
        ("d.json", b"[]"),
        ("e.json", b" [ \n ] "),
    ):
        assert rows(write(tmp_path, name, data)) == []


def test_tables_of_arrow_are_known_by_their_content(tmp_path):
    arrow = pa.Table.from_pylist(ROWS)
    for name in ("a.json", "b.bin", "c.csv"):
        pq.write_table(arrow, tmp_path / name)
        with pa.OSFile(str(tmp_path / f"{name}.arrow.txt"), "wb") as sink, pa.ipc.new_stream(sink, arrow.schema) as out:
            out.write_table(arrow)
        for file in resolve_files([name, f"{name}.arrow.txt"], tmp_path, "data.pool"):
            assert trees(rows(file)) == ROWS


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"cd" * 32 + b"\nsize 654321\n"


@pytest.mark.parametrize(
    ("names", "data", "message"),
    [
        (["a.jsonl", "a.parquet", "a.arrow", "a.json", "a.csv", "a.gz"], POINTER, "git lfs pull"),
        (["a.jsonl", "a.xlsx"], b"PK\x03\x04..........xl/workbook.xml", "Excel workbook; save the sheet as CSV"),
        (["a.jsonl", "a.zip"], b"PK\x03\x04..........a.jsonl", "zip archive; extract"),
        (["a.db", "a.csv"], b"SQLite format 3\0" + b"\0" * 90, "SQLite"),
        (["a.tar", "a.jsonl"], b"pool.jsonl".ljust(257, b"\0") + b"ustar\x0000", "tar archive"),
        (["a.tar.gz"], gzip.compress(b"pool.jsonl".ljust(257, b"\0") + b"ustar\x0000"), "tar archive"),
        (["a.jsonl.bz2"], b"BZh91AY", "bunzip2"),
        (["a.jsonl.xz"], b"\xfd7zXZ\0", "unxz"),
        (["a.jsonl.gz"], gzip.compress(gzip.compress(b"{}")), "compressed twice"),
        (["a.parquet.gz"], gzip.compress(b"PAR1...."), "Parquet"),
        (["a.jsonl", "a.parquet"], b"<!DOCTYPE html><html>", "page of HTML"),
        (["a.jsonl", "a.csv", "a.json"], b"\x07\x00\x13\x00\x00\xff\x80" * 9, "binary data"),
        (["a.csv", "a.tsv"], "a,b\n1,2\n".encode("utf-16"), "UTF-16"),
        (["a.parquet", "a.arrow"], b"", "is empty"),
        (["a.parquet", "a.arrow"], b"prompt of no kind", "its content does not"),
        (["a.pkl"], b"\x80\x04\x95", "pickle"),
        (["notes.txt", "notes"], b"some words\n", "neither its name nor its content"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",  # packed bytes hold the time
)
def test_what_is_not_read_is_named_with_the_mend(tmp_path, names, data, message):
    for name in names:
        with pytest.raises(DataError, match=rf"data\.pool\.0: .*{name}: .*{message}"):
            write(tmp_path, name, data)


def test_lines_of_utf16_are_bad_rows_with_and_without_a_mark(tmp_path):
    for coding in ("utf-16", "utf-16-le", "utf-16-be"):
        found = rows(write(tmp_path, "a.jsonl", '{"a": 1}\n{"a": 2}\n'.encode(coding)))
        assert len(found) == 2
        assert all("UTF-16" in row.reason for _, row in found)


def test_lines_that_begin_badly_stay_lines(tmp_path):
    for first in (b'{"a": 1,', b'{"a": "torn', b"{'a': 1}", b"{", b"[1]", b'[{"a": 1}]'):
        found = rows(write(tmp_path, "a.jsonl", first + b"\n" + LINES))
        assert [row for _, row in found] == [first, *COMPACT]
