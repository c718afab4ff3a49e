"""What a config says of the keys of rows, applied to one row."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from influray.config_data import ColumnsConfig
from influray.data.forms import ANSWERS, LISTS, PROMPTS
from influray.data.messages import MessageKeys
from influray.data.turns import BadRow

MESSAGE = "messages."  # how the name of a key of every message begins, under `ignore`
OF_MESSAGES = ("role", "content", "train")
# A row must have them where they are named: without them it has no conversation, or half of one.
REQUIRED = ("messages", "prompt", "completion", "instruction", "output")
STANDS_FOR = {"reasoning": "reasoning_content"}


@dataclass(frozen=True, slots=True)
class Columns:
    """The keys of a row under the names that are read; made by `columns_of`."""

    config: ColumnsConfig
    keys: tuple[tuple[str, str], ...]  # (name that is read, key of the row)
    ignored: frozenset[str]
    messages: MessageKeys | None

    def renamed(self, tree: Mapping[str, Any]) -> dict[str, Any]:
        """Return a row under the names that are read.

        Where the keys of a conversation are named, no other key is taken for one of that side.

        Raises:
            BadRow: a key that is named is not in the row.
        """
        found = {key: value for key, value in tree.items() if key not in self.ignored}
        named: dict[str, Any] = {}
        for name, key in self.keys:
            value = _value(tree, key)
            if value is None and name in REQUIRED:
                raise BadRow(f"the row has no {key!r}, which data.columns.{name} names; it has {', '.join(tree)[:200]}")
            named[STANDS_FOR.get(name, name)] = value
            found.pop(key, None)
        if "messages" in named:
            found = {key: value for key, value in found.items() if key not in (*LISTS, *PROMPTS, *ANSWERS)}
        asked, answered = {"prompt", "instruction"} & set(named), {"completion", "output"} & set(named)
        if asked or answered:
            others = (*LISTS, *(PROMPTS if asked else ()), *(ANSWERS if answered else ()))
            kept = ("input",) if "instruction" in asked else ()
            found = {key: value for key, value in found.items() if key not in others or key in kept}
        return found | named


def columns_of(config: ColumnsConfig) -> Columns | None:
    """Return the columns of a config, None where it says nothing."""
    keys = config.keys()
    if not keys and not config.roles and not config.ignore:
        return None
    ignored = frozenset(key for key in config.ignore if not key.startswith(MESSAGE))
    inner = frozenset(key.removeprefix(MESSAGE) for key in config.ignore if key.startswith(MESSAGE))
    speakers = {speaker: role for role, names in config.roles.items() for speaker in names}
    messages = None
    if inner or speakers or any(name in keys for name in OF_MESSAGES):
        role, content, train = (keys.get(name, "") for name in OF_MESSAGES)
        messages = MessageKeys(role, content, train, speakers, inner)
    return Columns(config, tuple((n, k) for n, k in keys.items() if n not in OF_MESSAGES), ignored, messages)


def _value(tree: Mapping[str, Any], key: str) -> Any:
    if key in tree:
        return tree[key]
    value: Any = tree
    for part in key.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value
