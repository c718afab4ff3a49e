"""One record in the form that a trainer reads: messages, alpaca, sharegpt or prompt-completion.

What a form has no place for is never dropped in silence: a record that would say something else without it is refused
(`Unfit`), and handles that say nothing by themselves, such as ids of tool calls, are named as left out.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from influray.data.records import Record
from influray.data.turns import Turn, is_blank

FORMATS = ("messages", "alpaca", "sharegpt", "prompt-completion")
OPTIONS = "chat_template_kwargs"  # the column in which TRL looks for arguments of the chat template
TRAIN = "train"  # the key of a turn that is not trained, as axolotl documents it
SPEAKERS = {"system": "system", "user": "human", "assistant": "gpt", "tool": "observation"}
CALL = "function_call"
# What a call or a result is without these is the same; they pair results with calls, which their order does too.
HANDLES = {"tool_calls.id", "tool_calls.type", "tool_calls.index", "tool.tool_call_id", "tool.name"}


class Unfit(Exception):
    """A record that a form cannot carry: `reason` says why, `better` is the form that can."""

    def __init__(self, reason: str, better: str) -> None:
        super().__init__(reason)
        self.reason = reason
        self.better = better


@dataclass(frozen=True)
class Formed:
    """A record's columns in a form, as plain JSON; `left_out` are the keys that the form has no place for."""

    columns: dict[str, Any]
    left_out: tuple[str, ...] = ()


def formed(record: Record, form: str) -> Formed:
    """Return a record in one of FORMATS.

    messages: the messages with all their keys, an untrained answer with `"train": false`. prompt-completion: the
    turns before the first trained answer, and the rest. Both carry arguments of the chat template as OPTIONS.
    sharegpt: LLaMA-Factory's speakers, a call as JSON. alpaca: `instruction` is the whole last prompt, earlier
    exchanges stand in `history`, the system turn in `system`. `tools` is a text of JSON in all of them, since the
    schemas of two tools never have one Arrow type; columns that a record has no value for are absent.

    Raises:
        Unfit: the form cannot carry the record.
    """
    made = {"messages": _messages, "alpaca": _alpaca, "sharegpt": _sharegpt, "prompt-completion": _completion}[form]
    columns, left_out = made(record)
    if record.template_options:
        if form in ("alpaca", "sharegpt"):
            raise Unfit(f"arguments of the chat template ({', '.join(record.template_options)})", "messages")
        columns[OPTIONS] = dict(record.template_options)
    if record.tools:
        columns["tools"] = _json(list(record.tools))
    try:
        json.dumps(columns, allow_nan=False)
    except ValueError:
        raise Unfit("a number that is not finite, which JSON has no word for", "none") from None
    return Formed(columns, tuple(left_out))


def _messages(record: Record) -> tuple[dict[str, Any], Sequence[str]]:
    return {"messages": [message_of(turn) for turn in record.turns]}, ()


def message_of(turn: Turn) -> dict[str, Any]:
    """Return a turn as a message: its keys without nulls, but for a content that the row does not give."""
    message = {key: value for key, value in turn.message().items() if value is not None or key == "content"}
    return message if turn.trained or turn.role != "assistant" else {**message, TRAIN: False}


def _completion(record: Record) -> tuple[dict[str, Any], Sequence[str]]:
    answers = [i for i, turn in enumerate(record.turns) if turn.role == "assistant"]
    trained = [i for i in answers if record.turns[i].trained]
    if not trained:
        raise Unfit("no answer is trained, so there is no completion", "messages")
    first = trained[0]
    if trained != [i for i in answers if i >= first]:
        raise Unfit("an untrained answer after a trained one", "messages")
    if not first:
        raise Unfit("it begins with its answer, so there is no prompt", "messages")
    turns = [Turn(turn.role, turn.content, turn.extra) for turn in record.turns]
    messages = [message_of(turn) for turn in turns]
    return {"prompt": messages[:first], "completion": messages[first:]}, ()


def _alpaca(record: Record) -> tuple[dict[str, Any], Sequence[str]]:
    turns = list(record.turns)
    columns: dict[str, Any] = {}
    if turns[0].role == "system":
        columns["system"] = turns.pop(0).content
    for i, turn in enumerate(turns):
        expected = ("user", "assistant")[i % 2]
        better = "sharegpt" if turn.role in SPEAKERS else "messages"
        if turn.role != expected:
            raise Unfit(f"its turns are not question and answer in turn (a turn of {turn.role})", better)
    for turn in record.turns:
        _only_text(turn)
        if not turn.trained:
            raise Unfit("an answer that is not trained", "messages")
        if is_blank(turn.content):
            raise Unfit(f"an empty turn of {turn.role}, which alpaca cannot tell from none", "messages")
    if not turns or len(turns) % 2:
        raise Unfit("it does not end with an answer", "sharegpt")
    if len(turns) > 2:
        texts = [turn.content for turn in turns[:-2]]
        columns["history"] = [[texts[i], texts[i + 1]] for i in range(0, len(texts), 2)]
    return {"instruction": turns[-2].content, "input": "", "output": turns[-1].content, **columns}, ()


def _sharegpt(record: Record) -> tuple[dict[str, Any], Sequence[str]]:
    left_out: list[str] = []
    items: list[dict[str, Any]] = []
    for turn in record.turns:
        if turn.role not in SPEAKERS:
            raise Unfit(f"a turn of {turn.role}", "messages")
        if turn.extra.get("tool_calls"):
            if items and items[-1]["from"] in (CALL, "gpt"):
                raise Unfit("a tool call right after an answer, which would be read as one turn", "messages")
            item: dict[str, Any] = {"from": CALL, "value": _calls(turn, left_out)}
        else:
            if turn.role == "tool":
                left_out += _handles("tool", turn.extra, ("content",))
            else:
                _only_text(turn)
            item = {"from": SPEAKERS[turn.role], "value": turn.content}
        if turn.role == "assistant" and not turn.trained:
            item[TRAIN] = False
        items.append(item)
    return {"conversations": items}, list(dict.fromkeys(left_out))


def _calls(turn: Turn, left_out: list[str]) -> str:
    """Return the calls of an answer as LLaMA-Factory reads them: JSON of one call, or of a list of several."""
    if turn.content:
        raise Unfit("text beside a tool call in one answer", "messages")
    _only_text(turn, but=("tool_calls",))
    calls = []
    for call in turn.extra["tool_calls"]:
        function = call.get("function", call) if isinstance(call, Mapping) else None
        if not isinstance(function, Mapping) or "name" not in function or "arguments" not in function:
            raise Unfit("a tool call without a name and arguments", "messages")
        left_out += _handles("tool_calls", {**call, **function}, ("function", "name", "arguments"))
        calls.append({"name": function["name"], "arguments": function["arguments"]})
    return _json(calls[0] if len(calls) == 1 else calls)


def _handles(place: str, holder: Mapping[str, Any], read: Sequence[str]) -> list[str]:
    """Return the keys that are left out. Raises Unfit where one of them means something."""
    found = [f"{place}.{key}" for key, value in holder.items() if key not in read and value is not None]
    for key in found:
        if key not in HANDLES:
            raise Unfit(f"the key {key.rpartition('.')[2]!r} of a turn", "messages")
    return found


def _only_text(turn: Turn, but: Sequence[str] = ()) -> None:
    """Raise Unfit where a turn holds more than its text."""
    for key, value in turn.extra.items():
        if key not in ("content", *but) and value not in (None, []):
            raise Unfit(f"the key {key!r} of a turn", "messages")


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
