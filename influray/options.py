"""The options of a method: the parameters of its class that a config or a caller may set, checked by their annotations.

Featurizers, projectors, scorers and selectors are all made as `kind(*given, **options)`: the seam gives the first
parameters, every other one is an option, and its annotation says what it takes.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from types import SimpleNamespace
from typing import Any, cast, get_type_hints

import numpy as np
from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic.errors import PydanticUserError
from pydantic_core import ErrorDetails

from influray.config_messages import near
from influray.protocols import ConfigError

_STRICT = ConfigDict(strict=True, arbitrary_types_allowed=True, allow_inf_nan=False)
# Errors of pydantic that come from what `_expected` puts into words.
_RANGES = {"greater_than", "greater_than_equal", "less_than", "less_than_equal", "literal_error", "finite_number"}


def check_options(
    kind: Callable[..., Any], name: str, key: str, given: Sequence[str], options: Mapping[str, Any]
) -> dict[str, Any]:
    """Return options as `kind` takes them: `Annotated[int, Field(ge=1)]`, `Literal["a", "b"]` and so on.

    Numbers of NumPy become Python's, integers become floats where these are asked for; true is no number and "1" no
    integer. A parameter without an annotation takes anything, `**others` any further option.

    Args:
        given: names of the parameters that the seam fills in, in their order.

    Raises:
        ConfigError: `kind` does not take what is given, an option is missing, unknown (with the nearest name) or wrong.
    """
    try:
        parameters = list(inspect.signature(kind).parameters.values())
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{key}: {name!r} is not a class that can be constructed: {error}") from error
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    if len(positional) < len(given) and not any(p.kind is p.VAR_POSITIONAL for p in parameters):
        raise ConfigError(
            f"{key}: {name!r} is made with ({', '.join(given)}) and then its options, and its __init__ takes "
            f"({', '.join(p.name for p in positional)})"
        )
    filled = {p.name for p in positional[: len(given)]}
    known = {
        p.name: p for p in parameters if p.name not in filled and p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
    }
    for option, parameter in known.items():
        if parameter.default is parameter.empty and option not in options:
            raise ConfigError(f"{key}.{option}: required by {name!r}, but not given")
    checked = plain(options)
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters)
    for option, value in checked.items():
        if option in known:
            checked[option] = _check(kind, known[option].annotation, value, f"{key}.{option}")
        elif not takes_any:
            right = f"known: {', '.join(known)}" if known else "it has none"
            raise ConfigError(f"{key}.{option}: {name!r} has no such option{near(str(option), known)} ({right})")
    return checked


def plain(value: Any) -> Any:
    """Return a value with Python's numbers and booleans in place of NumPy's, in mappings and lists too."""
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Mapping):
        return {plain(name): plain(one) for name, one in value.items()}
    return type(value)(map(plain, value)) if type(value) in (list, tuple) else value


def _check(kind: Callable[..., Any], annotation: Any, value: Any, key: str) -> Any:
    if annotation is inspect.Parameter.empty:
        return value
    try:
        adapter = TypeAdapter(_evaluated(kind, annotation), config=_STRICT)
    except (NameError, PydanticUserError) as error:
        raise ConfigError(f"{key}: its annotation {annotation!r} says nothing that can be checked: {error}") from error
    try:
        return adapter.validate_python(value)
    except ValidationError:
        pass
    try:
        return adapter.validate_python(_as_tuples(value))  # YAML has no tuples
    except ValidationError as error:
        raise ConfigError(_wrong(_schema(adapter), value, error.errors()[0], key)) from None


def _wrong(schema: dict[str, Any], found: Any, error: ErrorDetails, key: str) -> str:
    """Return the message of an error: its dotted key, what was found there, and what would be right."""
    for before, part in pairwise(("", *error["loc"])):
        if part == "[key]":
            found, schema = before, {}
        inner, whole = _inside(schema, part), cast(Any, found)
        if not inner or not isinstance(found, dict | list) or (isinstance(found, dict) and part not in found):
            break  # at the place, or a branch of a union
        key, schema, found = f"{key}.{part}", inner, whole[part]
    right = _expected(schema) if error["type"] in _RANGES or error["type"].endswith("_type") else ""
    hint = near(found, schema["enum"]) if isinstance(found, str) and "enum" in schema else ""
    return f"{key}: found {found!r}" + (f", expected {right}{hint}" if right else f"; {error['msg']}")


def _evaluated(kind: Callable[..., Any], annotation: Any) -> Any:
    function: Any = inspect.unwrap(kind.__init__ if isinstance(kind, type) else kind)
    names = getattr(function, "__globals__", {})  # a slot wrapper of C has none
    return get_type_hints(SimpleNamespace(__annotations__={"it": annotation}), names, include_extras=True)["it"]


def _as_tuples(value: Any) -> Any:
    return tuple(map(_as_tuples, value)) if isinstance(value, list) else value


def _schema(adapter: TypeAdapter[Any]) -> dict[str, Any]:
    try:
        return adapter.json_schema()
    except PydanticUserError:  # a type that JSON has not, for which pydantic's own words do
        return {}


def _inside(schema: Mapping[str, Any], part: int | str) -> dict[str, Any] | None:
    """Return the schema of a part of a mapping or list."""
    for one in schema.get("anyOf", [schema]):
        found = one.get("properties", {}).get(part) or one.get("additionalProperties") or one.get("items")
        if isinstance(found, dict):
            return found
    return None


def _expected(schema: Mapping[str, Any]) -> str:
    """Return in words what a schema takes, "" where it says too little."""
    if "anyOf" in schema:
        return " or ".join(filter(None, map(_expected, schema["anyOf"])))
    if "enum" in schema or "const" in schema:
        *others, last = (str(one) for one in schema.get("enum", [schema.get("const")]))
        return f"{', '.join(others)} or {last}" if others else last
    kind = schema.get("type", "")
    words = {"boolean": "true or false", "string": "a text", "array": "a list", "object": "a mapping"}
    if kind not in ("integer", "number"):
        return words.get(kind, "")
    noun = "an integer" if kind == "integer" else "a number"
    limits = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum")
    low, high, above, below = (f"{schema[name]:.15g}" if name in schema else "" for name in limits)
    if low and high:
        return f"{noun} from {low} to {high}"
    parts = (low and f"of {low} or more", above and f"above {above}", high and f"at most {high}")
    return f"{noun} {', '.join(filter(None, (*parts, below and f'below {below}')))}".strip()
