"""One record: raw bytes -> turns of a conversation, in any of the four forms, or the reason why not.

Forms, in this precedence: `messages`, `conversations` (ShareGPT), `prompt`/`completion`,
`instruction`/`input`/`output` (Alpaca). A key whose value is null counts as absent. Side fields are not read, and
the bytes themselves are never changed: what is selected is written as it was read.
"""

from __future__ import annotations

import json
import math
import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

ROLES = ("system", "developer", "user", "assistant", "tool")
SHAREGPT_ROLES = {"system": "system", "human": "user", "gpt": "assistant"}
TEXT_PARTS = ("text", "input_text", "output_text")
# The parser recurses, and how deep it may go depends on the stack it is called from. A fixed limit makes the
# verdict on a row the same everywhere.
MAX_DEPTH = 100
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


@dataclass(frozen=True, slots=True)
class Record:
    """One usable row. `id` is None where the row has none; `answer` is the text that exact match compares.

    `tools` are the functions that the conversation may call, and `template_options` further arguments of the chat
    template (such as `enable_thinking`), both as `apply_chat_template` takes them.
    """

    id: str | None
    source: str
    turns: tuple[Turn, ...]
    answer: str | None
    tools: tuple[Any, ...] = ()
    template_options: Mapping[str, Any] = field(default_factory=dict)


def parse_record(raw: bytes, default_source: str = "") -> Record:
    """Return the record of one row's bytes; `default_source` stands in for a source that is missing or blank.

    Decided here, where the forms leave it open: an id is a string or an integer (its decimal text); an answer is a
    string or a number (its text). The tool calls of an assistant become text after its content, one JSON object a
    line, so that they are trained on like any other answer. A picture or sound beside text in a prompt becomes its
    type in brackets ("[image_url]"), which `inspect` shows; in an answer it is refused. Of a key given twice the
    last counts, as JSON parsers have it.

    Raises:
        BadRow: not UTF-8, not JSON, no known form, wrong roles, wrong types, no assistant turn, an empty last answer.
    """
    tree = _parse_json(raw)
    if not isinstance(tree, dict):
        raise BadRow(f"a record is a JSON object, found {_kind(tree)}")
    identity = _identity(tree.get("id"))
    try:
        source = tree.get("source")
        if source is not None and not isinstance(source, str):
            raise BadRow(f"source must be a string, found {_kind(source)}")
        turns = _turns(tree)
        record = Record(
            identity, default_source if source is None or is_blank(source) else source, turns, _answer(tree)
        )
        answers = [turn for turn in turns if turn.role == "assistant"]
        if not answers:
            raise BadRow("no assistant turn, so nothing to train on")
        if is_blank(answers[-1].content):
            raise BadRow("empty answer: the last assistant turn has no visible character")
        if b"\\u" in raw:  # strict UTF-8 holds no surrogates; escapes may
            for text in (record.id or "", record.source, record.answer or "", *(turn.content for turn in turns)):
                _refuse_surrogates(text)
    except BadRow as bad:
        bad.id = identity
        raise
    return record


def is_blank(text: str) -> bool:
    """Return whether nothing of `text` is visible: white space, control and format characters only."""
    return all(character.isspace() or unicodedata.category(character) in ("Cc", "Cf") for character in text)


def _parse_json(raw: bytes) -> Any:
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise BadRow(f"not UTF-8: {error.reason} at byte {error.start}") from None
    if text.count("[") + text.count("{") > MAX_DEPTH and _depth(text) > MAX_DEPTH:
        raise BadRow(f"not usable JSON: nested deeper than {MAX_DEPTH} levels")
    try:
        return json.loads(text)
    except ValueError as error:
        raise BadRow(f"not JSON: {error}") from None


def _depth(text: str) -> int:
    depth = deepest = 0
    for match in _STRUCTURE.finditer(text):
        if match[1]:
            depth += 1
            deepest = max(deepest, depth)
        elif match[2]:
            depth -= 1
    return deepest


def _identity(value: Any) -> str | None:
    if isinstance(value, bool) or not isinstance(value, str | int | None):
        raise BadRow(f"id must be a string or an integer, found {_kind(value)}")
    if value is None or (isinstance(value, str) and is_blank(value)):
        return None
    return str(value)


def _answer(tree: Mapping[str, Any]) -> str | None:
    value = tree.get("answer")
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise BadRow(f"answer must be a string or a number, found {_kind(value)}")
    return str(value)


def _turns(tree: Mapping[str, Any]) -> tuple[Turn, ...]:
    if tree.get("messages") is not None:
        return tuple(_message(item, i) for i, item in enumerate(_list_of(tree, "messages")))
    if tree.get("conversations") is not None:
        return tuple(_sharegpt(item, i) for i, item in enumerate(_list_of(tree, "conversations")))
    if tree.get("prompt") is not None and tree.get("completion") is not None:
        return (Turn("user", _text_of(tree, "prompt")), Turn("assistant", _text_of(tree, "completion")))
    if tree.get("instruction") is not None and tree.get("output") is not None:
        prompt = _text_of(tree, "instruction")
        if tree.get("input") is not None and not is_blank(_text_of(tree, "input")):
            prompt += "\n\n" + _text_of(tree, "input")
        return (Turn("user", prompt), Turn("assistant", _text_of(tree, "output")))
    found = ", ".join(sorted(map(repr, tree))[:8]) or "no keys"
    raise BadRow(
        "no known form: needs messages, conversations, prompt and completion, or instruction and output; "
        f"found {found[:200]}"
    )


def _list_of(tree: Mapping[str, Any], key: str) -> list[Any]:
    value = tree[key]
    if not isinstance(value, list) or not value:
        raise BadRow(f"{key} must be a list of turns, found {_kind(value)}")
    return value


def _text_of(tree: Mapping[str, Any], key: str) -> str:
    if not isinstance(tree[key], str):
        raise BadRow(f"{key} must be a string, found {_kind(tree[key])}")
    return tree[key]


def _message(item: Any, i: int) -> Turn:
    if not isinstance(item, dict):
        raise BadRow(f"messages[{i}] must be an object, found {_kind(item)}")
    role = item.get("role")
    if role not in ROLES:
        raise BadRow(f"messages[{i}]: wrong role {_shown(role)}; one of {', '.join(ROLES)}")
    calls = item.get("tool_calls") if role == "assistant" else None
    content = "" if calls and item.get("content") is None else _content(item.get("content"), i, role)
    if calls:
        content += ("\n" if content else "") + _tool_calls(calls, i)
    return Turn(role, content)


def _sharegpt(item: Any, i: int) -> Turn:
    if not isinstance(item, dict):
        raise BadRow(f"conversations[{i}] must be an object, found {_kind(item)}")
    speaker, value = item.get("from"), item.get("value")
    if not isinstance(speaker, str) or speaker not in SHAREGPT_ROLES:
        raise BadRow(f"conversations[{i}]: wrong speaker {_shown(speaker)}; one of {', '.join(SHAREGPT_ROLES)}")
    if not isinstance(value, str):
        raise BadRow(f"conversations[{i}].value must be a string, found {_kind(value)}")
    return Turn(SHAREGPT_ROLES[speaker], value)


def _content(value: Any, i: int, role: str) -> str:
    if isinstance(value, str):
        return value
    if not isinstance(value, list):
        raise BadRow(f"messages[{i}].content must be a string or a list of parts, found {_kind(value)}")
    texts, others = [], 0
    for part in value:
        if isinstance(part, str):
            texts.append(part)
        elif isinstance(part, dict) and part.get("type", "text") in TEXT_PARTS and isinstance(part.get("text"), str):
            texts.append(part["text"])
        elif isinstance(part, dict) and isinstance(part.get("type"), str) and part["type"] not in TEXT_PARTS:
            texts.append(f"[{part['type']}]")
            others += 1
        else:
            raise BadRow(f"messages[{i}].content: a part without text or type ({_shown(part)})")
    if len(texts) == others:
        raise BadRow(f"messages[{i}].content has no text part")
    if others and role == "assistant":
        raise BadRow(f"messages[{i}].content: an answer that is not only text cannot be trained on")
    return "".join(texts)


def _tool_calls(calls: Any, i: int) -> str:
    if not isinstance(calls, list) or not all(isinstance(call, dict) for call in calls):
        raise BadRow(f"messages[{i}].tool_calls must be a list of objects, found {_shown(calls)}")
    # The id of a call is a handle between messages; only the function says what is called.
    functions = [call["function"] if isinstance(call.get("function"), dict) else call for call in calls]
    return "\n".join(json.dumps(function, ensure_ascii=False) for function in functions)


def _refuse_surrogates(text: str) -> None:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise BadRow(f"not Unicode text: a lone surrogate U+{ord(text[error.start]):04X} in a string") from None


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "a string", bool: "true or false", type(None): "null"}
    if isinstance(value, list | str) and not value:
        return "an empty " + names[type(value)].removeprefix("a ")
    return names.get(type(value), f"the number {value!r}"[:60])


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=True, default=str)
    return text if len(text) <= 80 else text[:77] + "..."
