"""Columns of every Arrow type as JSON, sliced or not; a null in a struct is a key that is not there."""

from __future__ import annotations

import datetime
import decimal
import hashlib
import json
import uuid

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from influray.data.arrow_values import batch_rows, python_values
from influray.data.files import resolve_files
from influray.data.readers import read_rows
from influray.data.records import BadRow

ONE = uuid.UUID("6af613b6-569c-5c22-9c37-2ed93f31d3af")
MARK = {"bytes": 2, "sha256": hashlib.sha256(b"\xff\x00").hexdigest()}
CASES = [
    (pa.array(["a", None, "\u00e9"], pa.string_view()), ["a", None, "\u00e9"]),
    (pa.array([b"text", b"\xff\x00", None]), ["text", MARK, None]),
    (pa.array([b"text", b"\xff\x00"], pa.binary_view()), ["text", MARK]),
    (pa.array([b"ab", b"\xff\x00"], pa.binary(2)), ["ab", MARK]),
    (pa.array([b"a\x00"], pa.large_binary())[:0], []),
    (pa.array([decimal.Decimal("1.50"), None]), ["1.50", None]),
    (pa.array([1.5, None], pa.float16()), [1.5, None]),
    (pa.array([datetime.date(2024, 2, 29), None]), ["2024-02-29", None]),
    (pa.array([datetime.time(1, 2, 3)], pa.time32("s")), ["01:02:03"]),
    (pa.array([0, None, 2**62], pa.timestamp("s")), ["1970-01-01T00:00:00", None]),
    (pa.array([1], pa.timestamp("ns", "Europe/Paris")), ["1970-01-01T00:00:00.000000001Z"]),
    (pa.array([1500, None, -1], pa.duration("ms")), ["PT1.500S", None, "PT-0.001S"]),
    (pa.array([pa.MonthDayNano([1, 2, 3]), None]), [{"months": 1, "days": 2, "nanoseconds": 3}, None]),
    (pa.array(["x", "y", "x", None]).dictionary_encode(), ["x", "y", "x", None]),
    (pa.RunEndEncodedArray.from_arrays([2, 3], ["x", "y"]), ["x", "x", "y"]),
    (pa.array([[1, None], None, []], pa.large_list(pa.int8())), [[1, None], None, []]),
    (pa.array([[1, None], None, [3]], pa.list_view(pa.int8())), [[1, None], None, [3]]),
    (pa.array([[1, 2], None, [3, 4]], pa.list_(pa.int8(), 2)), [[1, 2], None, [3, 4]]),
    (pa.array([[("a", 1), ("b", None)], None, []], pa.map_(pa.string(), pa.int8())), [{"a": 1, "b": None}, None, {}]),
    (pa.array([[(1, "x")], [(2, "y")]], pa.map_(pa.int8(), pa.string())), [{"1": "x"}, {"2": "y"}]),
    (pa.array([{"a": 1}, {"b": {"c": "x"}}, None, {}]), [{"a": 1}, {"b": {"c": "x"}}, None, {}]),
    (pa.array([[{"a": [1, None]}, {"b": True}], [None]]), [[{"a": [1, None]}, {"b": True}], [None]]),
    (pa.ExtensionArray.from_storage(pa.uuid(), pa.array([ONE.bytes, None], pa.binary(16))), [str(ONE), None]),
    (pa.ExtensionArray.from_storage(pa.bool8(), pa.array([1, 0, None], pa.int8())), [True, False, None]),
    (
        pa.ExtensionArray.from_storage(pa.json_(), pa.array(['{"a": null, "b": [1]}', "3", "no json", None])),
        [{"a": None, "b": [1]}, 3, "no json", None],
    ),
    (
        pa.ExtensionArray.from_storage(pa.opaque(pa.int8(), "t", "v"), pa.array([1, None], pa.int8())),
        [1, None],
    ),
    (
        pa.UnionArray.from_sparse(pa.array([0, 1], pa.int8()), [pa.array(["x", "y"]), pa.array([1, 2])]),
        ["x", 2],
    ),
    (
        pa.UnionArray.from_dense(
            pa.array([0, 1], pa.int8()), pa.array([0, 0], pa.int32()), [pa.array(["x"]), pa.array([2])]
        ),
        ["x", 2],
    ),
    (pa.nulls(2), [None, None]),
]


@pytest.mark.parametrize(("array", "expected"), CASES, ids=lambda value: str(getattr(value, "type", ""))[:30])
def test_a_column_of_any_type_has_a_json_form(array, expected):
    found = python_values(array)
    assert found[: len(expected)] == expected  # a time beyond the calendar is whatever Arrow calls it
    json.dumps(found)
    for i in range(len(expected)):
        assert python_values(array.slice(i, 1)) == found[i : i + 1]
    assert python_values(array.slice(1)) == found[1:]


def test_json_and_uuids_are_decoded_inside_lists_and_structs():
    text = pa.ExtensionArray.from_storage(pa.json_(), pa.array(['{"role": "user", "x": null}', "[]"]))
    struct = pa.StructArray.from_arrays([text, pa.array([None, 1])], ["m", "n"])
    found = python_values(pa.ListArray.from_arrays([0, 2], struct))
    assert found == [[{"m": {"role": "user", "x": None}}, {"m": [], "n": 1}]]
    field = pa.field(
        "m", pa.string(), metadata={"ARROW:extension:name": "arrow.json"}
    )  # to one that knows no such type
    batch = pa.RecordBatch.from_arrays([pa.array(['{"a": 1}'])], schema=pa.schema([field]))
    assert list(batch_rows(batch)) == [{"m": {"a": 1}}]


@pytest.mark.parametrize("kind", ["parquet", "arrow", "hub"])
def test_nulls_that_arrow_added_are_not_there_on_any_way_in(tmp_path, kind):
    calls = [{"port": "Brest"}, {"x": 2, "y": [None, {"z": 1}]}, {}]
    schema = [{"type": "object", "properties": {name: {"type": "string"}}} for name in ("port", "x", "y")]
    rows = [
        {
            "messages": [
                {"role": "user", "content": "?"},
                {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": call}}]},
            ],
            "tools": [{"type": "function", "function": {"name": "f", "parameters": parameters}}],
        }
        for call, parameters in zip(calls, schema, strict=True)
    ]
    table = pa.Table.from_pylist(rows)
    assert table.to_pylist() != rows
    if kind == "arrow":
        with pa.OSFile(str(tmp_path / "a.arrow"), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as out:
            out.write_table(table)
    else:
        pq.write_table(table, tmp_path / "a.parquet")
    entry = f"hf://{tmp_path}" if kind == "hub" else f"a.{kind}"
    if kind == "hub":
        pytest.importorskip("datasets")
    (file,) = resolve_files([entry], tmp_path, "data.pool")
    assert [json.loads(row) for _, row in read_rows(file, 2**20, 2**20) if not isinstance(row, BadRow)] == rows


def test_nulls_of_a_json_file_are_its_own(tmp_path):
    line = b'{"messages": [{"role": "assistant", "content": null, "tool_calls": [{"arguments": {"x": null}}]}]}'
    (tmp_path / "a.json").write_bytes(b"[" + line + b"]")
    (file,) = resolve_files(["a.json"], tmp_path, "data.pool")
    assert list(read_rows(file, 2**20, 2**20)) == [(1, line)]


def test_pictures_bar_no_row(tmp_path):
    table = pa.table({"prompt": [b"a", b"b"], "picture": [{"bytes": b"\xff\x00", "path": "x.png"}, None]})
    pq.write_table(table, tmp_path / "a.parquet")
    (file,) = resolve_files(["a.parquet"], tmp_path, "data.pool")
    found = [json.loads(row) for _, row in read_rows(file, 2**20, 2**20) if not isinstance(row, BadRow)]
    assert found == [{"prompt": "a", "picture": {"bytes": MARK, "path": "x.png"}}, {"prompt": "b", "picture": None}]
