"""YAML as configs are written in it: what YAML reads differently from how it looks is refused, with its line.

Refused are keys given twice, keys that are not text (`no:`, `1:`), numbers that YAML takes for octal or base 60, tags,
and aliases that hold themselves or grow beyond MOST_VALUES.
"""

from __future__ import annotations

from typing import Any

import yaml

from influray.protocols import ConfigError

MOST_VALUES = 1_000_000  # of a tree with its aliases written out; a list of ids may be long


class _Loader(yaml.SafeLoader):
    """Builds plain dicts, lists and scalars."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        self._require_plain_keys(node)  # before `<<` is flattened: what it brings in may be overridden
        return super().construct_mapping(node, deep=deep)

    def construct_yaml_int(self, node: Any) -> int:
        value = super().construct_yaml_int(node)
        text = node.value.lstrip("+-").replace("_", "")
        if ":" in text or (len(text) > 1 and text[0] == "0" and text.isdigit()):
            kind = "a number to the base of 60" if ":" in text else "an octal number"
            raise ConfigError(
                f"{_place(node)}: YAML reads {node.value} as {kind}, {value}; put quotes around text, or write the "
                "number without leading zeros"
            )
        return value

    def construct_yaml_float(self, node: Any) -> float:
        value = super().construct_yaml_float(node)
        if ":" in node.value:
            raise ConfigError(
                f"{_place(node)}: YAML reads {node.value} as a number to the base of 60, {value}; put quotes around it"
            )
        return value

    def _require_plain_keys(self, node: yaml.MappingNode) -> None:
        lines: dict[str, int] = {}
        for key, _ in node.value:
            if key.tag == "tag:yaml.org,2002:merge":
                continue
            if not isinstance(key, yaml.ScalarNode) or key.tag != "tag:yaml.org,2002:str":
                shown = key.value if isinstance(key, yaml.ScalarNode) else "a list or mapping"
                raise ConfigError(
                    f"{_place(key)}: the key {shown or 'null'} is read by YAML as {key.tag.rpartition(':')[2]} and not "
                    "as text; put quotes around it"
                )
            line = key.start_mark.line + 1
            if key.value in lines:
                raise ConfigError(
                    f"{_place(key)}: the key {key.value!r} is given twice, first in line {lines[key.value]}; delete one"
                )
            lines[key.value] = line


_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_yaml_int)
_Loader.add_constructor("tag:yaml.org,2002:float", _Loader.construct_yaml_float)


def parse_yaml(text: str) -> Any:
    """Return the plain tree of a YAML text.

    Raises:
        ConfigError: not YAML, or YAML that does not mean what it looks like, with the line.
    """
    try:
        tree = _Loader(text).get_single_data()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"line {mark.line + 1}, column {mark.column + 1}: " if mark is not None else ""
        hint = "; indent with spaces, YAML takes no tabs" if "\\t" in str(error.problem) else ""
        raise ConfigError(f"not YAML: {place}{error.problem or error.context}{hint}") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # a date such as 2024-13-01 is a ValueError
        raise ConfigError(f"not YAML: {str(error).splitlines()[0] if str(error) else type(error).__name__}") from None
    _require_small(tree)
    return tree


def set_dotted(tree: Any, key: str, value: Any) -> None:
    """Set `key` ("selectors.0.budget") of a plain tree in place, making sections that are not there."""
    parts = key.split(".")
    node = tree
    for depth, part in enumerate(parts):
        here = ".".join(parts[: depth + 1])
        last = depth == len(parts) - 1
        if isinstance(node, list):
            if not part.isdigit() or int(part) >= len(node):
                raise ConfigError(f"{here}: the list has {len(node)} entries, numbered from 0")
            index: Any = int(part)
        elif isinstance(node, dict):
            index = part
        else:
            raise ConfigError(f"{here}: {'.'.join(parts[:depth])} is a plain value and has no keys")
        if last:
            node[index] = value
        else:
            if isinstance(node, dict) and node.get(index) is None:
                node[index] = {}
            node = node[index]


def _require_small(tree: Any) -> None:
    """Raise ConfigError where a value holds itself, or the tree is huge once its aliases are written out."""
    sizes: dict[int, int] = {}
    open_now: set[int] = set()

    def size(value: Any) -> int:
        if not isinstance(value, dict | list):
            return 1
        if id(value) in sizes:
            return sizes[id(value)]
        if id(value) in open_now:
            raise ConfigError("not a config: an alias (*) stands inside what it is an alias of")
        open_now.add(id(value))
        total = 1 + sum(size(one) for one in (value.values() if isinstance(value, dict) else value))
        open_now.discard(id(value))
        sizes[id(value)] = total
        if total > MOST_VALUES:
            raise ConfigError(f"not a config: more than {MOST_VALUES} values, with its aliases written out")
        return total

    size(tree)


def _place(node: yaml.Node) -> str:
    return f"line {node.start_mark.line + 1}"
