"""One message of a list -> turns: who speaks, the content, what is trained, and every other key as it stands.

Speakers and keys are those of OpenAI, ShareGPT and their relatives (docs/data.md lists them). Keys whose value is null
count as absent, since tables pad with them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from influray.data.content_parts import read_parts
from influray.data.tools import function_calls, tool_calls
from influray.data.training_flags import is_trained
from influray.data.turns import REASONING, ROLES, BadRow, Turn, decoded, is_blank, kind, shown

CALL = "call"  # of a speaker whose text is a tool call
SPEAKERS = {
    **dict.fromkeys(("user", "human", "prompter"), "user"),
    **dict.fromkeys(("assistant", "gpt", "chatgpt", "bing", "bard", "bot", "chatbot", "model", "ai"), "assistant"),
    **dict.fromkeys(("tool", "observation", "observations", "function", "ipython", "environment"), "tool"),
    **dict.fromkeys(("tool_response", "function_response", "tool_result", "tool_results"), "tool"),
    **dict.fromkeys(("function_call", "function_calls", "tool_call", "tool_calls"), CALL),
    "system": "system",
    "developer": "developer",
}
SPEAKERS |= {name.replace("_", "-"): role for name, role in SPEAKERS.items()}
ROLE_KEYS, CONTENT_KEYS = ("role", "from", "speaker"), ("content", "value", "text")
MEDIA = ("images", "image", "videos", "video", "audios", "audio")
# An exchange written as one object, such as {"human": .., "assistant": ..}.
ASKED = ("human", "user", "input", "query", "question", "prompt", "instruction")
ANSWERED = ("assistant", "gpt", "bot", "output", "response", "answer", "completion")


@dataclass(frozen=True, slots=True)
class MessageKeys:
    """What a config says of the keys of messages: their names, speakers of its own, and keys to leave out."""

    role: str = ""
    content: str = ""
    trained: str = ""
    speakers: Mapping[str, str] = field(default_factory=dict)
    ignored: frozenset[str] = frozenset()

    def renamed(self, message: Mapping[str, Any], where: str) -> dict[str, Any]:
        """Return the message under the names that are read. Raises BadRow where a named key is not there."""
        found = {key: value for key, value in message.items() if key not in self.ignored}
        for name, key in (("role", self.role), ("content", self.content), ("train", self.trained)):
            if not key or key == name:
                continue
            if key not in found and name == "role":
                raise BadRow(f"{where} has no key {key!r}, which data.columns names as its {name}")
            others = {"role": ROLE_KEYS, "content": CONTENT_KEYS}.get(name, ())
            value = found.pop(key, None)
            found = {key: value for key, value in found.items() if key not in others} | {name: value}
        speaker = found.get("role", found.get("from"))
        if isinstance(speaker, str) and speaker in self.speakers:
            found = {key: value for key, value in found.items() if key != "from"} | {"role": self.speakers[speaker]}
        return found


def turns_of(items: Any, key: str, names: MessageKeys | None = None) -> tuple[Turn, ...]:
    """Return the turns of a list of messages, or of its JSON text.

    An item is a message, an exchange as one object (`{"human", "assistant"}`), or a pair of texts. Calls that follow
    an answer, or one another, become calls of one turn, as templates have them.

    Raises:
        BadRow: not a list of messages, or one that cannot be read; `key` says in the message whose list it is.
    """
    items = decoded(items, key)
    if not isinstance(items, list) or not items:
        hint = ", or its JSON text" if isinstance(items, str) else ""
        raise BadRow(f"{key} must be a list of turns{hint}, found {kind(items)}")
    turns: list[Turn] = []
    for i, item in enumerate(items):
        if names is None and isinstance(item, dict) and len(item) == 2:
            role, content = item.get("role"), item.get("content")
            if isinstance(content, str) and role in ROLES:  # nearly every message there is
                turns.append(Turn(role, content))
                continue
        for turn in _item(item, f"{key}[{i}]", names):
            if turn.role == CALL:
                turn = replace(turn, role="assistant")
                if turns and (joined := _with_calls(turns[-1], turn)) is not None:
                    turns[-1] = joined
                    continue
            turns.append(turn)
    return tuple(turns)


def _item(item: Any, where: str, names: MessageKeys | None) -> list[Turn]:
    item = decoded(item, where)
    if isinstance(item, list) and len(item) == 2 and all(isinstance(text, str | None) for text in item):
        roles = zip(("user", "assistant"), item, strict=True)
        return [Turn(role, text) for role, text in roles if text is not None and not is_blank(text)]
    if not isinstance(item, dict):
        raise BadRow(f"{where} must be an object, found {kind(item)}")
    if names is not None:
        item = names.renamed(item, where)
    fields = {key: value for key, value in item.items() if value is not None}
    present = [key for key in ROLE_KEYS if key in fields]
    if not present and not any(key in item for key in (*ROLE_KEYS, *CONTENT_KEYS)) and fields:
        return _exchange_object(fields, where)
    return _message(fields, present, where)


def _message(fields: dict[str, Any], present: Sequence[str], where: str) -> list[Turn]:
    role = _role(fields, present, where)
    for key in MEDIA:
        if fields.get(key):
            raise BadRow(f"{where}.{key}: pictures, videos and sound are not read")
    trained = is_trained(fields, "assistant" if role == CALL else role, where)
    content = _content_field(fields, where)
    if role == CALL:
        return [_caller(content, fields, trained, where)]
    for key in REASONING:
        if isinstance(fields.get(key), list):
            reasoning = read_parts(fields[key], f"{where}.{key}", role)
            fields[key], trained = reasoning.text, trained and reasoning.trained
    calls = _calls(fields, role, where)
    are_parts = isinstance(content, list) and all(
        isinstance(p, str) or (isinstance(p, dict) and "type" in p) for p in content
    )
    if isinstance(content, list) and (role != "tool" or (content and are_parts)):
        parts = read_parts(content, f"{where}.content", role)
        calls += parts.calls
        if parts.reasoning:
            fields.setdefault("reasoning_content", parts.reasoning)
        if calls:
            fields["tool_calls"] = calls
        trained = trained and parts.trained
        turns = [Turn("tool", text, extra) for text, extra in parts.results]
        if parts.text or not parts.results:
            turns.append(Turn(role, parts.text, fields, trained))
        return turns
    if calls:
        fields["tool_calls"] = calls
    if content is None and role == "assistant" and (calls or any(fields.get(key) for key in REASONING)):
        fields["content"] = None
        return [Turn(role, "", fields, trained)]
    if role == "tool" and content is not None and not isinstance(content, str):
        content = json.dumps(content, ensure_ascii=False)
    if not isinstance(content, str):
        raise BadRow(f"{where}.content must be a string or a list of parts, found {kind(content)}")
    return [Turn(role, content, fields, trained)]


def _role(fields: dict[str, Any], present: Sequence[str], where: str) -> str:
    """Take the speaker out of a message and return its role, or CALL."""
    if not present:
        raise BadRow(f"{where}: wrong role null; one of {', '.join(ROLES)}")
    first = fields.pop(present[0])
    role = SPEAKERS.get(first) if isinstance(first, str) else None
    if role is None:
        others = ", ".join(sorted(set(SPEAKERS) - set(ROLES) - {n for n in SPEAKERS if "-" in n}))
        what = "role" if present[0] == "role" else "speaker"
        raise BadRow(
            f"{where}: wrong {what} {shown(first)}; one of {', '.join(ROLES)} (or {others}), or map it: data.columns: "
            f"{{roles: {{assistant: [{first if isinstance(first, str) else 'NAME'}]}}}}"[:600]
        )
    for key in present[1:]:
        other = fields[key]
        if isinstance(other, str) and SPEAKERS.get(other) == role:
            del fields[key]
        elif isinstance(other, str) and other in SPEAKERS:
            raise BadRow(f"{where}: {present[0]} and {key} name two roles, {shown(first)} and {shown(other)}")
    return role


def _content_field(fields: dict[str, Any], where: str) -> Any:
    """Take the content out of a message and return it, None where there is none."""
    present = [key for key in CONTENT_KEYS if key in fields]
    if not present:
        return None
    content = fields.pop(present[0])
    for key in present[1:]:
        if fields[key] == content or fields[key] == "":
            del fields[key]
        elif content == "":
            content = fields.pop(key)
        else:
            raise BadRow(f"{where}: {present[0]} and {key} hold two contents")
    return content


def _calls(fields: dict[str, Any], role: str, where: str) -> list[dict[str, Any]]:
    """Take the tool calls out of a message and return them."""
    given, legacy = fields.pop("tool_calls", None), fields.pop("function_call", None)
    if not given and not legacy:
        return []
    if role != "assistant":
        raise BadRow(
            f"{where}.{'tool_calls' if given else 'function_call'}: only an assistant calls tools, not a {role}"
        )
    calls = tool_calls(given, f"{where}.tool_calls") if given else []
    if legacy:
        older = tool_calls(legacy, f"{where}.function_call")
        if calls and [call["function"] for call in calls] != [call["function"] for call in older]:
            raise BadRow(f"{where}: tool_calls and function_call say two things")
        calls = calls or older
    return calls


def _caller(value: Any, extra: dict[str, Any], trained: bool, where: str) -> Turn:
    """Return the turn of a speaker whose text is a call, maybe after its reasoning in `<think>`."""
    said = ""
    if isinstance(value, str) and value.lstrip().startswith("<think>"):
        head, end, tail = value.partition("</think>")
        if end:
            said, value = head + end, tail
    extra["tool_calls"] = function_calls(value, where)
    if not said:
        extra["content"] = None
    return Turn(CALL, said, extra, trained)


def _with_calls(before: Turn, turn: Turn) -> Turn | None:
    """Return the answer before with the calls of the turn that follows it; None where they are two turns."""
    if before.role != "assistant" or before.trained != turn.trained or turn.content:
        return None
    extra = {**turn.extra, **before.extra}
    extra["tool_calls"] = [*before.extra.get("tool_calls", ()), *turn.extra["tool_calls"]]
    if before.content or "content" not in before.extra:
        extra.pop("content", None)
    return replace(before, extra=extra)


def _exchange_object(fields: dict[str, Any], where: str) -> list[Turn]:
    asked = [key for key in ASKED if key in fields]
    answered = [key for key in ANSWERED if key in fields]
    if not asked and not answered:
        raise BadRow(f"{where}: wrong role null; one of {', '.join(ROLES)}")
    for keys in (asked, answered):
        if len(keys) > 1:
            raise BadRow(f"{where}: {keys[0]} and {keys[1]} hold two texts")
    trained = is_trained(fields, "assistant", where)
    turns = []
    for keys, role in ((["system"], "system"), (asked, "user"), (answered, "assistant")):
        text = fields.pop(keys[0], None) if keys else None
        if text is None or (isinstance(text, str) and is_blank(text)):
            continue
        if not isinstance(text, str):
            raise BadRow(f"{where}.{keys[0]} must be a string, found {kind(text)}")
        turns.append(Turn(role, text, fields if role == "assistant" else {}, trained or role != "assistant"))
    return turns
