"""Columns of Arrow as plain Python values that JSON has a form for, whatever their type.

A null in a struct is taken for a key that the row does not have: Arrow gives every struct of a column the keys of all,
and no reader can tell the nulls it added from others. Nulls elsewhere (lists, maps, JSON text) are the row's own.
"""

from __future__ import annotations

import hashlib
import itertools
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
_UNREADABLE = (ValueError, OverflowError, NotImplementedError, pa.ArrowException)


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
    for names, values in _VALUES.items():
        if any(getattr(pa.types, f"is_{name}")(kind) for name in names.split()):
            return values(array)
    return array.to_pylist()


def _each(convert: Callable[[Any], Any]) -> Callable[[Any], list[Any]]:
    """Return what converts the values of an array one by one, but for nulls."""
    return lambda array: [None if value is None else convert(value) for value in array.to_pylist()]


def _extension_values(array: Any, name: str) -> list[Any]:
    if name == "arrow.uuid":
        return _each(str)(array)
    return _each(bool)(array.storage) if name == "arrow.bool8" else python_values(array.storage, name)


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
    rows = zip(*columns, strict=True) if columns else itertools.repeat((), len(array))
    return [
        {field.name: value for field, value in zip(fields, row, strict=True) if value is not None} if valid else None
        for valid, row in zip(array.is_valid().to_pylist(), rows, strict=True)
    ]


def _list_values(array: Any) -> list[Any]:
    items = iter(python_values(pc.call_function("list_flatten", [array]), extension_of(array.type.value_field)))
    return _each(lambda length: list(itertools.islice(items, length)))(pc.call_function("list_value_length", [array]))


def _map_values(array: Any) -> list[Any]:
    key, item = array.type.key_field, array.type.item_field
    pairs = array.cast(pa.list_(pa.struct([key, item])))
    keys, values = pc.call_function("list_flatten", [pairs]).flatten()
    found = zip(python_values(keys), python_values(values, extension_of(item)), strict=True)
    return _each(lambda length: _object(list(itertools.islice(found, length))))(
        pc.call_function("list_value_length", [pairs])
    )


def _object(pairs: list[tuple[Any, Any]]) -> Any:
    texts = [(key if isinstance(key, str) else json.dumps(key, ensure_ascii=False), value) for key, value in pairs]
    found = dict(texts)
    return found if len(found) == len(texts) else [list(pair) for pair in texts]  # a map may hold a key twice


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
    texts = array.cast(pa.timestamp(array.type.unit)).cast(pa.string())
    return _each(lambda text: text.replace(" ", "T", 1) + zone)(texts)


def _duration_values(array: Any) -> list[Any]:
    digits = _UNITS[array.type.unit]
    return _each(lambda n: f"PT{Decimal(n).scaleb(-digits):f}S")(array.cast(pa.int64()))


def _union_values(array: Any) -> list[Any]:
    # One by one: the children of a slice are those of the whole, and where they begin differs by mode.
    children = [scalar.value if scalar.is_valid else None for scalar in array]
    return [None if c is None else python_values(pa.array([c.as_py()], c.type))[0] for c in children]


def extension_of(field: pa.Field) -> str:
    """Return the name of the extension type that a field has for a reader that does not know the type itself."""
    return (field.metadata or {}).get(b"ARROW:extension:name", b"").decode("utf-8", "replace")


_VALUES: dict[str, Callable[[Any], list[Any]]] = {
    "struct": _struct_values,
    "map": _map_values,
    "list large_list fixed_size_list list_view large_list_view": _list_values,
    "dictionary": lambda array: python_values(array.dictionary_decode()),
    "run_end_encoded": lambda array: python_values(pc.call_function("run_end_decode", [array])),
    "union": _union_values,
    "binary large_binary fixed_size_binary binary_view": _each(_text_or_mark),
    "timestamp": _timestamp_values,
    "date time": lambda array: array.cast(pa.string()).to_pylist(),
    "duration": _duration_values,
    "interval": _each(lambda v: {"months": v.months, "days": v.days, "nanoseconds": v.nanoseconds}),
    "decimal": _each(str),
    "float16": _each(float),
}


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
    except _UNREADABLE:  # one value takes the column with it
        values = []
    for i in range(len(column)):
        try:
            values += python_values(column.slice(i, 1), extension)
        except UnicodeDecodeError as error:
            values.append(None)
            spoilt[i] = BadRow(f"a value cannot be read: the column {field.name!r} is not UTF-8: {error.reason}")
        except _UNREADABLE:
            values.append({"unreadable": str(field.type)})
    return values
