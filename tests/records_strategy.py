"""Records of every form that is read, for hypothesis: a conversation, and the ways in which tools write it down.

`written()` draws (name of the form, tree of the row, turns and tools that it must be read as).
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from hypothesis import strategies as st

from influray.data.records import Record, Turn, is_blank

text = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
visible = text.filter(lambda value: not is_blank(value))
names = st.text("abcdefghij_", min_size=1, max_size=8)
scalars = st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, width=32) | text
trees = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3),
    max_leaves=6,
)
arguments = st.dictionaries(names, trees, max_size=3)
side_fields = st.dictionaries(
    st.sampled_from(["meta", "score", "uuid", "weight", "logprobs", "category", "text", "label_id"]), trees, max_size=3
).filter(lambda tree: not any(_is_list_of_messages(value) for value in tree.values()))


@dataclass(frozen=True)
class Written:
    """A conversation in one of its forms: `tree` is a row that must be read as `turns` and `tools`."""

    form: str
    tree: dict[str, Any]
    turns: tuple[Turn, ...]
    tools: tuple[Any, ...] = ()

    @property
    def raw(self) -> bytes:
        return json.dumps(self.tree).encode()

    def is_read_as(self, record: Record) -> bool:
        """Return whether a record says what was written."""
        return record.turns == self.turns and record.tools == self.tools


@st.composite
def exchanges(draw: st.DrawFn, calls: bool = False, masks: bool = True) -> tuple[Turn, ...]:
    """Draw a user turn and an answer, a few times over; with `calls`, tools may be called in between."""
    turns: list[Turn] = []
    for _ in range(draw(st.integers(1, 3))):
        turns.append(Turn("user", draw(visible)))
        if calls and draw(st.booleans()):
            found = [
                {"type": "function", "function": {"name": draw(names), "arguments": draw(arguments)}}
                for _ in range(draw(st.integers(1, 2)))
            ]
            turns.append(Turn("assistant", "", {"tool_calls": found, "content": None}))
            turns += [Turn("tool", draw(visible)) for _ in found]
        trained = not masks or draw(st.booleans())
        turns.append(Turn("assistant", draw(visible), {}, trained))
    return (*turns[:-1], replace(turns[-1], trained=True))


@st.composite
def tool_lists(draw: st.DrawFn) -> tuple[dict[str, Any], ...]:
    parameters = st.builds(
        lambda keys: {"type": "object", "properties": {key: {"type": "string"} for key in keys}},
        st.lists(names, max_size=2, unique=True),
    )
    functions = st.fixed_dictionaries({"name": names, "description": visible, "parameters": parameters})
    return tuple({"type": "function", "function": function} for function in draw(st.lists(functions, max_size=2)))


@st.composite
def written(draw: st.DrawFn, forms: tuple[str, ...] = (), sides: bool = True) -> Written:
    """Draw a row of one of the forms (of all, where none is named), with keys beside it that mean nothing."""
    form = draw(st.sampled_from(forms or tuple(FORMS)))
    found = draw(FORMS[form]())
    fields = draw(side_fields) if sides else {}
    order = draw(st.booleans())
    tree = {**fields, **found.tree} if order else {**found.tree, **fields}
    return replace(found, form=form, tree=tree)


def _is_list_of_messages(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and isinstance(value[0], dict)


def _message(turn: Turn, flags: tuple[Any, Any, str], arguments_as_text: bool) -> dict[str, Any]:
    on, off, key = flags
    message: dict[str, Any] = {"role": turn.role, "content": turn.content, **turn.extra}
    if arguments_as_text and "tool_calls" in message:
        message["tool_calls"] = [
            {**call, "function": {**call["function"], "arguments": json.dumps(call["function"]["arguments"])}}
            for call in message["tool_calls"]
        ]
    if turn.role == "assistant" and (not turn.trained or on is not None):
        message[key] = on if turn.trained else off
    return message


_FLAGS = ((1, 0, "weight"), (True, False, "train"), (None, False, "loss"), (1.0, 0.0, "loss_scale"))


@st.composite
def _messages(draw: st.DrawFn) -> Written:
    system = [Turn("system", draw(text))] if draw(st.booleans()) else []
    turns, tools = draw(exchanges(calls=True)), draw(tool_lists())
    flags, quoted = draw(st.sampled_from(_FLAGS)), draw(st.booleans())
    listed: Any = [_message(turn, flags, quoted) for turn in (*system, *turns)]
    tree = {"messages": json.dumps(listed) if draw(st.booleans()) else listed}
    if tools or draw(st.booleans()):
        tree["tools"] = json.dumps(tools) if draw(st.booleans()) else list(tools)
    return Written("messages", tree, (*system, *turns), tools)


@st.composite
def _reasoning(draw: st.DrawFn) -> Written:
    key = draw(st.sampled_from(["reasoning_content", "thinking"]))
    turns = tuple(
        replace(turn, extra={**turn.extra, key: draw(visible)}) if turn.role == "assistant" else turn
        for turn in draw(exchanges(masks=False))
    )
    return Written("reasoning", {"messages": [turn.message() for turn in turns]}, turns)


@st.composite
def _sharegpt(draw: st.DrawFn) -> Written:
    turns, tools = draw(exchanges(calls=True)), draw(tool_lists())
    listed = []
    for turn in turns:
        said: dict[str, Any]
        if "tool_calls" in turn.extra:
            calls = [call["function"] for call in turn.extra["tool_calls"]]
            said = {"from": "function_call", "value": json.dumps(calls if len(calls) > 1 else calls[0])}
        else:
            speaker = {"user": "human", "assistant": "gpt", "tool": "observation"}[turn.role]
            said = {"from": speaker, "value": turn.content}
        listed.append(said if turn.trained else {**said, "train": False})
    tree: dict[str, Any] = {"conversations": listed}
    if draw(st.booleans()):
        tree["system"] = draw(visible)
        turns = (Turn("system", tree["system"]), *turns)
    if tools:
        tree["tools"] = json.dumps(tools)
    return Written("sharegpt", tree, turns, tools)


@st.composite
def _pairs(draw: st.DrawFn) -> Written:
    turns = draw(exchanges(masks=False))
    pairs = [{"human": a.content, "assistant": b.content} for a, b in zip(turns[::2], turns[1::2], strict=True)]
    return Written("pairs", {"conversation": pairs}, turns)


_SIDES = (
    ("prompt", "completion"),
    ("prompt", "response"),
    ("prompt", "generation"),
    ("question", "answer"),
    ("question", "response"),
    ("query", "response"),
    ("problem", "solution"),
    ("instruction", "response"),
)


@st.composite
def _texts(draw: st.DrawFn) -> Written:
    asked, answered = draw(st.sampled_from(_SIDES))
    turns = (Turn("user", draw(visible)), Turn("assistant", draw(visible)))
    tree = {asked: turns[0].content, answered: turns[1].content}
    if draw(st.booleans()):
        tree["system_prompt"] = draw(visible)
        turns = (Turn("system", tree["system_prompt"]), *turns)
    return Written("texts", tree, turns)


@st.composite
def _prompt_lists(draw: st.DrawFn) -> Written:
    before = draw(exchanges(calls=True, masks=False)) if draw(st.booleans()) else ()
    prompt = (*(replace(turn, trained=turn.role != "assistant") for turn in before), Turn("user", draw(visible)))
    completion = (Turn("assistant", draw(visible)),)
    tree = {
        "prompt": [turn.message() for turn in prompt],
        "completion": [turn.message() for turn in completion],
    }
    return Written("prompt_lists", tree, (*prompt, *completion))


@st.composite
def _alpaca(draw: st.DrawFn) -> Written:
    instruction, answer, added = draw(visible), draw(visible), draw(text)
    tree: dict[str, Any] = {"instruction": instruction, "output": answer, "input": added}
    prompt = instruction if is_blank(added) else f"{instruction}\n\n{added}"
    turns: tuple[Turn, ...] = (Turn("user", prompt), Turn("assistant", answer))
    if draw(st.booleans()):
        before = draw(exchanges(masks=False))
        tree["history"] = [[a.content, b.content] for a, b in zip(before[::2], before[1::2], strict=True)]
        turns = (*before, *turns)
    if draw(st.booleans()):
        tree["system"] = draw(visible)
        turns = (Turn("system", tree["system"]), *turns)
    return Written("alpaca", tree, turns)


FORMS: dict[str, Callable[[], st.SearchStrategy[Written]]] = {
    "messages": _messages,
    "reasoning": _reasoning,
    "sharegpt": _sharegpt,
    "pairs": _pairs,
    "texts": _texts,
    "prompt_lists": _prompt_lists,
    "alpaca": _alpaca,
}
