"""What is wrong with a config, in words: pydantic's errors as dotted keys that people wrote."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any

from pydantic import BaseModel, ValidationError


def readable(error: ValidationError, where: str, root: type[BaseModel]) -> str:
    """Return one line: `where`, then each dotted key of `root` that is wrong, with what was found and what is right."""
    lines = []
    items = error.errors()
    for item in items:
        if item["type"] == "too_short" and any(
            len(i["loc"]) > len(item["loc"]) and i["loc"][: len(item["loc"])] == item["loc"] for i in items
        ):
            continue  # the list is only "too short" because an entry of it was refused
        # pydantic adds the tried branch of a union to the path ("budget.int"); people wrote no such key.
        loc = [str(part) for part in item["loc"] if not _is_branch(part)]
        key = ".".join(loc) or "config"
        if item["type"] == "extra_forbidden":
            lines.append(f"{key}: unknown key{near(loc[-1], _fields_at(loc[:-1], root))}")
        elif item["type"] == "missing":
            lines.append(f"{key}: required, but not given")
        else:
            found = "" if item["type"] == "value_error" and key == "config" else f" (found {item['input']!r})"
            lines.append(f"{key}: {item['msg'].removeprefix('Value error, ')}{found}")
    return f"{where}: " + "; ".join(dict.fromkeys(lines))


def near(name: str, known: Iterable[str]) -> str:
    """Return "; did you mean ...?" where a known name is like this one, else an empty string."""
    found = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {found[0]!r}?" if found else ""


def takes_boolean(annotation: Any) -> bool:
    """Return whether a field of this type may hold true or false, or checks so itself (Any)."""
    if annotation is bool or annotation is Any:
        return True
    return any(takes_boolean(inner) for inner in getattr(annotation, "__args__", ()))


def _is_branch(part: Any) -> bool:
    text = str(part)
    return text.startswith(("literal[", "constrained-", "function-", "tuple[", "<")) or text in {
        "int",
        "float",
        "str",
        "tuple",
        "TokenBudget",
        "AutoBudget",
    }


def _fields_at(loc: Iterable[str], root: type[BaseModel]) -> list[str]:
    model: Any = root
    for part in loc:
        if part.isdigit():
            continue
        annotation = next((f.annotation for name, f in _keys(model).items() if name == part), None)
        model = _section_in(annotation) if annotation is not None else model
        if model is None:
            return []
    return list(_keys(model))


def _keys(model: Any) -> dict[str, Any]:
    """Return the fields of a section by what they are called in files."""
    return {field.alias or name: field for name, field in getattr(model, "model_fields", {}).items()}


def _section_in(annotation: Any) -> Any:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for inner in getattr(annotation, "__args__", ()):
        found = _section_in(inner)
        if found is not None:
            return found
    return None
