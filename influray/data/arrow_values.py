"""Columns of Arrow as plain Python values that JSON has a form for, whatever their type.

A null in a struct is taken for a key that the row does not have: Arrow gives every struct of a column the keys of all,
and no reader can tell the nulls it added from others. Nulls elsewhere (lists, maps, JSON text) are the row's own.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from influray.data.records import BadRow

_CONTROLS = re.compile(r"[\x00-\x08\x0e-\x1a\x1c-\x1f]")
_UNITS = {"s": 0, "ms": 3, "us": 6, "ns": 9}
_JSON = "arrow.json"


def python_values(array: pa.Array, extension: str = "") -> list[Any]:
    """Return the values of a column as None, bool, int, float, str, list and dict.

    `extension` is the name of an extension type that only the field tells. Bytes that are UTF-8 text are text; other
    bytes become {"bytes": how many, "sha256": of them}. Decimals are text; times ISO 8601 text, in UTC where they have
    a zone; UUIDs text; arrow.json what it holds; maps objects.

    Raises:
        UnicodeDecodeError: a text is not UTF-8.
    """
    kind = array.type
    if isinstance(kind, pa.BaseExtensionType):
        return _extension_values(array, kind.extension_name)
    if extension == _JSON:
        return [_loaded(text) for text in python_values(array)]
    for applies, values in _NESTED:
        if applies(kind):
            return values(array)
    return _plain_values(array)


def _extension_values(array: Any, name: str) -> list[Any]:
    if name == "arrow.uuid":
        return [None if value is None else str(value) for value in array.to_pylist()]
    if name == "arrow.bool8":
        return [None if value is None else bool(value) for value in array.storage.to_pylist()]
    return python_values(array.storage, name)


def _loaded(text: Any) -> Any:
    """Return what a JSON text holds; one that is none stays text."""
    if not isinstance(text, str):
        return text
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def _struct_values(array: Any) -> list[Any]:
    fields = list(array.type)
    columns = [
        python_values(column, extension_of(field)) for field, column in zip(fields, array.flatten(), strict=True)
    ]
    names = [field.name for field in fields]
    if not columns:
        return [{} if there else None for there in array.is_valid().to_pylist()]
    if not array.null_count and not any(None in column for column in columns):
        return [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]
    valid = array.is_valid().to_pylist()
    return [
        {name: value for name, value in zip(names, row, strict=True) if value is not None} if there else None
        for there, row in zip(valid, zip(*columns, strict=True), strict=True)
    ]


def _list_values(array: Any) -> list[Any]:
    inner = extension_of(array.type.value_field)
    valid = array.is_valid().to_pylist()
    if not len(array):
        return []
    if pa.types.is_fixed_size_list(array.type):
        size = array.type.list_size
        starts = [(array.offset + i) * size for i in range(len(array))]
        stops = [start + size for start in starts]
    elif hasattr(array, "sizes"):  # a list view
        starts = array.offsets.to_pylist()
        stops = [start + size for start, size in zip(starts, array.sizes.to_pylist(), strict=True)]
    else:
        offsets = array.offsets.to_pylist()
        starts, stops = offsets[:-1], offsets[1:]
    spans = [(start, stop) if there else None for there, start, stop in zip(valid, starts, stops, strict=True)]
    return _cut(array.values, spans, lambda values: python_values(values, inner))


def _cut(
    values: Any, spans: list[tuple[int, int] | None], convert: Callable[[pa.Array], list[Any]]
) -> list[list[Any] | None]:
    used = [span for span in spans if span is not None and span[1] > span[0]]
    low, high = min((start for start, _ in used), default=0), max((stop for _, stop in used), default=0)
    items = convert(values.slice(low, high - low))
    return [None if span is None else items[span[0] - low : span[1] - low] for span in spans]


def _map_values(array: Any) -> list[Any]:
    offsets = array.offsets.to_pylist()
    valid = array.is_valid().to_pylist()
    inner = extension_of(array.type.item_field)
    spans = [(a, b) if there else None for there, a, b in zip(valid, offsets[:-1], offsets[1:], strict=True)]
    keys = _cut(array.keys, spans, python_values)
    items = _cut(array.items, spans, lambda values: python_values(values, inner))
    return [_object(k, v) if k is not None and v is not None else None for k, v in zip(keys, items, strict=True)]


def _object(keys: list[Any], values: list[Any]) -> Any:
    texts = [key if isinstance(key, str) else json.dumps(key, ensure_ascii=False) for key in keys]
    if len(set(texts)) < len(texts):  # a map may hold a key twice, an object may not
        return [list(pair) for pair in zip(texts, values, strict=True)]
    return dict(zip(texts, values, strict=True))


def _binary_values(array: Any) -> list[Any]:
    return [None if value is None else _text_or_mark(value) for value in array.to_pylist()]


def _text_or_mark(value: bytes) -> Any:
    try:
        text = value.decode("utf-8")
    except UnicodeDecodeError:
        text = None
    if text is not None and not _CONTROLS.search(text):
        return text
    return {"bytes": len(value), "sha256": hashlib.sha256(value).hexdigest()}


def _timestamp_values(array: Any) -> list[Any]:
    zone = "Z" if array.type.tz else ""
    texts = array.cast(pa.timestamp(array.type.unit)).cast(pa.string()).to_pylist()
    return [None if text is None else text.replace(" ", "T", 1) + zone for text in texts]


def _duration_values(array: Any) -> list[Any]:
    digits = _UNITS[array.type.unit]
    counts = array.cast(pa.int64()).to_pylist()
    return [None if n is None else f"PT{Decimal(n).scaleb(-digits):f}S" for n in counts]


def _interval_values(array: Any) -> list[Any]:
    return [
        None if v is None else {"months": v.months, "days": v.days, "nanoseconds": v.nanoseconds}
        for v in array.to_pylist()
    ]


def _decimal_values(array: Any) -> list[Any]:
    return [None if value is None else str(value) for value in array.to_pylist()]


def _union_values(array: Any) -> list[Any]:
    # One by one: the children of a slice are those of the whole, and where they begin differs by mode.
    children = [scalar.value if scalar.is_valid else None for scalar in array]
    return [None if c is None else python_values(pa.array([c.as_py()], c.type))[0] for c in children]


def _plain_values(array: Any) -> list[Any]:
    values = array.to_pylist()
    if pa.types.is_float16(array.type):
        return [None if value is None else float(value) for value in values]
    return values


def _decoded(array: Any) -> Any:
    return pc.call_function("run_end_decode", [array])


def extension_of(field: pa.Field) -> str:
    """Return the name of the extension type that a field has for a reader that does not know the type itself."""
    return (field.metadata or {}).get(b"ARROW:extension:name", b"").decode("utf-8", "replace")


def _is_any(*names: str) -> Callable[[pa.DataType], bool]:
    checks = [getattr(pa.types, f"is_{name}") for name in names]
    return lambda kind: any(check(kind) for check in checks)


_NESTED: tuple[tuple[Callable[[pa.DataType], bool], Callable[[Any], list[Any]]], ...] = (
    (_is_any("struct"), _struct_values),
    (_is_any("map"), _map_values),
    (_is_any("list", "large_list", "fixed_size_list", "list_view", "large_list_view"), _list_values),
    (_is_any("dictionary"), lambda array: python_values(array.dictionary_decode())),
    (_is_any("run_end_encoded"), lambda array: python_values(_decoded(array))),
    (_is_any("union"), _union_values),
    (_is_any("binary", "large_binary", "fixed_size_binary", "binary_view"), _binary_values),
    (_is_any("timestamp"), _timestamp_values),
    (_is_any("date", "time"), lambda array: array.cast(pa.string()).to_pylist()),
    (_is_any("duration"), _duration_values),
    (_is_any("interval"), _interval_values),
    (_is_any("decimal"), _decimal_values),
)


def batch_rows(batch: pa.RecordBatch) -> Iterator[dict[str, Any] | BadRow]:
    """Yield the rows of a batch, keys in the order of the columns. A text that is not UTF-8 spoils its row alone."""
    spoilt: dict[int, BadRow] = {}
    columns = [_column(field, column, spoilt) for field, column in zip(batch.schema, batch.columns, strict=True)]
    names = batch.schema.names
    for i in range(batch.num_rows):
        yield spoilt[i] if i in spoilt else {name: column[i] for name, column in zip(names, columns, strict=True)}


def _column(field: pa.Field, column: pa.Array, spoilt: dict[int, BadRow]) -> list[Any]:
    extension = extension_of(field)
    try:
        return python_values(column, extension)
    except (ValueError, OverflowError, NotImplementedError, pa.ArrowException):  # one value takes the column with it
        values = []
    for i in range(len(column)):
        try:
            values += python_values(column.slice(i, 1), extension)
        except UnicodeDecodeError as error:
            values.append(None)
            spoilt[i] = BadRow(f"a value cannot be read: the column {field.name!r} is not UTF-8: {error.reason}")
        except (ValueError, OverflowError, NotImplementedError, pa.ArrowException):
            values.append({"unreadable": str(field.type)})
    return values
