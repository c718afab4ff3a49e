"""A turn of a conversation, the reason why a row cannot be used, and the words in which both are shown."""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

ROLES = ("system", "developer", "user", "assistant", "tool")
# The parser recurses, and how deep it may go depends on the stack it is called from. A fixed limit makes the
# verdict on a row the same everywhere.
MAX_DEPTH = 100
REASONING = ("reasoning_content", "reasoning", "thinking")  # keys under which templates read an answer's reasoning
_STRUCTURE = re.compile(r'"(?:[^"\\]|\\.)*"|([\[{])|([\]}])', re.DOTALL)


class BadRow(Exception):
    """A row that cannot be used: `reason` says why, `id` is its id where it has a readable one."""

    def __init__(self, reason: str, id: str | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.id = id


@dataclass(frozen=True, slots=True)
class Turn:
    """One message. `role` is one of ROLES; `content` is its text, "" where it has none.

    `extra` is what else the message holds, as a chat template reads it: `tool_calls` (arguments decoded),
    `tool_call_id`, `name`, `reasoning_content`, any other key. `"content": None` in it says that the row gives no
    content, which is not the same as an empty one. `trained` is false for an answer that the row takes out of the loss.
    """

    role: str
    content: str
    extra: Mapping[str, Any] = field(default_factory=dict)
    trained: bool = True

    def message(self) -> dict[str, Any]:
        """Return the message as a chat template gets it."""
        return {"role": self.role, "content": self.content, **self.extra}

    @property
    def text(self) -> str:
        """What people read of it: reasoning, content, then one JSON object a line for each tool call."""
        if not self.extra:
            return self.content
        texts = [self.extra[key] for key in REASONING if isinstance(self.extra.get(key), str)]
        calls = self.extra.get("tool_calls", ())
        texts += [self.content, *(json.dumps(call.get("function", call), ensure_ascii=False) for call in calls)]
        return "\n".join(text for text in texts if text)


def is_blank(text: str) -> bool:
    """Return whether nothing of `text` is visible: white space, control and format characters only."""
    return all(character.isspace() or unicodedata.category(character) in ("Cc", "Cf") for character in text)


def parse_json(text: str) -> Any:
    """Return the tree of a JSON text. Raises BadRow where it is none, or nested deeper than MAX_DEPTH."""
    if text.count("[") + text.count("{") > MAX_DEPTH and _depth(text) > MAX_DEPTH:
        raise BadRow(f"not usable JSON: nested deeper than {MAX_DEPTH} levels")
    try:
        return json.loads(text)
    except ValueError as error:
        raise BadRow(f"not JSON: {error}") from None


def parse_within(text: str, where: str) -> Any:
    """Return the tree of a JSON text that stands in a string of a row. Raises BadRow naming `where`."""
    try:
        return parse_json(text)
    except BadRow as bad:
        raise BadRow(f"{where}: {bad.reason}") from None


def decoded(value: Any, where: str) -> Any:
    """Return `value`, or the list or object whose JSON text it is. Raises BadRow as `parse_within`."""
    if isinstance(value, str) and value.lstrip()[:1] in ("[", "{"):
        return parse_within(value, where)
    return value


def kind(value: Any) -> str:
    """Return what a value is, for a message."""
    names = {dict: "an object", list: "a list", str: "a string", bool: "true or false", type(None): "null"}
    if isinstance(value, list | str) and not value:
        return "an empty " + names[type(value)].removeprefix("a ")
    if isinstance(value, int) and not isinstance(value, bool) and value.bit_length() > 64:
        return "a number of many digits"
    return names.get(type(value), f"the number {value!r}"[:60])


def shown(value: Any) -> str:
    """Return a value as short JSON, for a message."""
    text = json.dumps(value, ensure_ascii=True, default=str)
    return text if len(text) <= 80 else text[:77] + "..."


def _depth(text: str) -> int:
    depth = deepest = 0
    for match in _STRUCTURE.finditer(text):
        if match[1]:
            depth += 1
            deepest = max(deepest, depth)
        elif match[2]:
            depth -= 1
    return deepest
