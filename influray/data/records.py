"""One record: raw bytes -> turns of a conversation, tools and side fields, or the reason why not.

The forms of a conversation are in forms.py, messages in messages.py. The bytes themselves are never changed: what is
selected is written as it was read.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from influray.data.columns import Columns
from influray.data.forms import conversation
from influray.data.tools import legacy_functions, tool_definitions
from influray.data.turns import BadRow, Turn, decoded, is_blank, kind, parse_json

# Names of `apply_chat_template` that a row may not set: they say what is rendered and how, not what a template reads.
RESERVED_OPTIONS = frozenset(
    {
        "conversation",
        "messages",
        "tools",
        "chat_template",
        "add_generation_prompt",
        "continue_final_message",
        "tokenize",
        "padding",
        "truncation",
        "max_length",
        "return_tensors",
        "return_dict",
        "return_assistant_tokens_mask",
        "tokenizer_kwargs",
        "processor_kwargs",
    }
)


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


def parse_record(raw: bytes, default_source: str = "", columns: Columns | None = None) -> Record:
    """Return the record of one row's bytes; `default_source` stands in for a source that is missing or blank.

    `columns` says what the row calls its keys, where these are not the names that are read.

    Decided here, where the forms leave it open: an id of any type becomes text (1.0 is "1", `{"$oid": x}` is x); so
    does a source. An answer that is a number or a truth is its text; one that is neither is none, and the row has no
    exact match. Of a key given twice the last counts, as JSON parsers have it.

    Raises:
        BadRow: not UTF-8, not JSON, no known form, wrong roles, wrong types, no assistant turn, an empty last answer,
            a key that is part of a conversation and cannot be honoured.
    """
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise BadRow(f"not UTF-8: {error.reason} at byte {error.start}") from None
    tree = parse_json(text)
    if not isinstance(tree, dict):
        raise BadRow(f"a record is a JSON object, found {kind(tree)}")
    if columns is not None:
        tree = columns.renamed(tree)
    identity = identity_of(tree.get("id"))
    try:
        record = Record(
            identity,
            _source(tree.get("source")) or default_source,
            conversation(tree, columns.messages if columns else None),
            _answer(tree.get("answer")),
            _tools(tree),
            _template_options(tree.get("chat_template_kwargs")),
        )
        _require_an_answer(record.turns)
        if b"\\u" in raw:  # strict UTF-8 holds no surrogates; escapes may
            _refuse_surrogates(record)
    except BadRow as bad:
        bad.id = identity
        raise
    return record


def _require_an_answer(turns: tuple[Turn, ...]) -> None:
    last = next((turn for turn in reversed(turns) if turn.role == "assistant" and turn.trained), None)
    if last is None:
        if any(turn.role == "assistant" for turn in turns):
            raise BadRow("no answer is trained: the row takes each out of the loss (weight, train, loss)")
        raise BadRow("no assistant turn, so nothing to train on")
    if is_blank(last.text):
        raise BadRow("empty answer: the last assistant turn has no visible character")


def identity_of(value: Any) -> str | None:
    """Return the text of an id of any type, None where there is none."""
    if isinstance(value, str):
        return None if is_blank(value) else value
    if isinstance(value, dict) and len(value) == 1 and next(iter(value)).startswith("$"):  # MongoDB's extended JSON
        return identity_of(next(iter(value.values())))
    return _as_text(value) or None


def _source(value: Any) -> str:
    if isinstance(value, list) and all(isinstance(item, str | int | float | bool | None) for item in value):
        return ", ".join(text for item in value if (text := _as_text(item)))
    return _as_text(value)


def _answer(value: Any) -> str | None:
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if isinstance(value, str):
        return value
    return None if isinstance(value, list | dict) else _as_text(value) or None


def _as_text(value: Any) -> str:
    """Return a value of any type as text: "" where it is null, blank or no finite number."""
    if isinstance(value, str):
        return "" if is_blank(value) else value
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return ""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def _tools(tree: Mapping[str, Any]) -> tuple[Any, ...]:
    tools, functions = tree.get("tools"), tree.get("functions")
    found = () if tools is None else tool_definitions(tools)
    return found or (() if functions is None else legacy_functions(functions))


def _template_options(value: Any) -> dict[str, Any]:
    if value is None or value == "":
        return {}
    options = decoded(value, "chat_template_kwargs")
    if not isinstance(options, dict):
        raise BadRow(f"chat_template_kwargs must be an object, found {kind(options)}")
    for key in options:
        if key in RESERVED_OPTIONS:
            raise BadRow(f"chat_template_kwargs.{key}: a row may not set this argument of the chat template")
    return {key: option for key, option in options.items() if option is not None}


def _refuse_surrogates(record: Record) -> None:
    texts = [record.id or "", record.source, record.answer or ""]
    texts += [turn.content for turn in record.turns]
    nested = [turn.extra for turn in record.turns if turn.extra]
    if nested or record.tools or record.template_options:
        texts.append(json.dumps([nested, record.tools, record.template_options], ensure_ascii=False))
    for text in texts:
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise BadRow(f"not Unicode text: a lone surrogate U+{ord(text[error.start]):04X} in a string") from None
