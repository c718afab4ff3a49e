"""The forms of a record: which keys of a row hold its conversation, and which that look like it are not read.

In this precedence: a list of messages (`messages`, `conversations` and relatives), `prompt`/`completion`,
`instruction`/`input`/`output`, then one key of a question beside one of an answer, as other tools name them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from influray.data.messages import MEDIA, MessageKeys, turns_of
from influray.data.turns import REASONING, BadRow, Turn, decoded, is_blank, kind

LISTS = ("messages", "conversations", "conversation", "dialogue", "dialog", "chat")
SYSTEMS = ("system", "system_prompt", "system_message", "system_instruction")
PROMPTS = ("prompt", "instruction", "query", "question", "problem", "input", "user", "human", "message_1")
ANSWERS = ("completion", "output", "response", "generation", "assistant", "gpt", "bot", "message_2")
# These may be a reference beside the answer as well, so they are the answer only where nothing else is; the first
# that is there.
REFERENCES = ("solution", "answer", "answers", "answer_key", "target", "targets")
ADDITIONS = ("input", "context", "article")  # stand after an instruction or a question
ASKING = ("instruction", "question", "query", "problem")
PREFERENCES = ("chosen", "rejected", "rejected_response", "rejected_messages", "chosen_messages")
PREFERENCES += ("positive_messages", "negative_messages")
_TRACES = (*REASONING, "thought", "thoughts", "cot", "chain_of_thought", "rationale")
_KNOWN = frozenset((*LISTS, *SYSTEMS, *PROMPTS, *ANSWERS, *REFERENCES, *PREFERENCES, "history", "tools", "functions"))
_BESIDE = frozenset((*SYSTEMS, *PREFERENCES, *MEDIA, "history", "mask_history", "kto_tag", "label", "completions"))
_RECORD = "a list of turns (messages, conversations), prompt and completion, or instruction and output"


def conversation(tree: Mapping[str, Any], names: MessageKeys | None = None) -> tuple[Turn, ...]:
    """Return the turns of a row, its `system` and `history` among them.

    Raises:
        BadRow: no known form; a message that cannot be read; a key that looks like part of the conversation and is
            not read.
    """
    read, turns = _turns(tree, names)
    if not tree.keys().isdisjoint(_BESIDE):
        turns = _with_system(tree, (*_history(tree, names), *turns))
        _refuse_beside(tree)
        if tree.get("mask_history") is True:
            last = max((i for i, turn in enumerate(turns) if turn.role == "assistant"), default=0)
            turns = (*_untrained(turns[:last]), *turns[last:])
    _refuse_lists(tree, read, turns, names)
    return turns


def _turns(tree: Mapping[str, Any], names: MessageKeys | None) -> tuple[str, tuple[Turn, ...]]:
    """Return (the key of the list of messages, "" where there is none, turns)."""
    if key := _list_of(tree):
        turns = turns_of(tree[key], key, names)
        if turns[-1].role in ("user", "tool") and (answer := _completion(tree)):  # the list is the prompt
            return key, (*_untrained(turns), *_side(tree, answer, "assistant", names))
        return key, turns
    asked, answered = _pair(tree)
    prompt = _side(tree, asked, "user", names)
    if asked in ASKING:
        added = [text for key in ADDITIONS if key != asked and (text := _addition(tree, key))]
        if added and len(prompt) == 1:
            prompt = (replace(prompt[0], content="\n\n".join([prompt[0].content, *added])),)
    answer = _side(tree, answered, "assistant", names)
    trace = tree.get("reasoning_content")
    if isinstance(trace, str) and not is_blank(trace) and len(answer) == 1:
        answer = (replace(answer[0], extra={**answer[0].extra, "reasoning_content": trace}),)
    _refuse_other_texts(tree, asked, answered, (*prompt, *answer))
    return "", (*_untrained(prompt), *answer)


def form_of(tree: Mapping[str, Any]) -> str:
    """Return the keys that hold the conversation of a row that `conversation` reads, such as "prompt, completion"."""
    return _list_of(tree) or ", ".join(_pair(tree))


def _list_of(tree: Mapping[str, Any]) -> str:
    """Return the key of the list of messages, "" where there is none."""
    for key in LISTS:
        value = tree.get(key)
        if value is not None and (key in LISTS[:2] or isinstance(value, list) or _is_conversation(value)):
            return key
    return ""


def _completion(tree: Mapping[str, Any]) -> str:
    return next((key for key in ("completion", "output", "response") if tree.get(key) is not None), "")


def _pair(tree: Mapping[str, Any]) -> tuple[str, str]:
    """Return the keys of the question and of the answer."""
    for asked, answered in (("prompt", "completion"), ("instruction", "output")):
        if tree.get(asked) is not None and tree.get(answered) is not None:
            return asked, answered
    prompts = [key for key in PROMPTS if tree.get(key) is not None]
    if "input" in prompts and any(key in ASKING for key in prompts):
        prompts.remove("input")
    answers = [key for key in ANSWERS if tree.get(key) is not None]
    answers = answers or [key for key in REFERENCES if tree.get(key) is not None][:1]
    for keys, side in ((prompts, "prompt"), (answers, "completion")):
        if len(keys) > 1:
            raise BadRow(
                f"{' and '.join(keys)} may each be the {side}; say which: data.columns: {{{side}: {keys[0]}, "
                f"ignore: [{', '.join(keys[1:])}]}}"
            )
    if prompts and answers:
        return prompts[0], answers[0]
    raise BadRow(_no_form(tree))


def _no_form(tree: Mapping[str, Any]) -> str:
    found = (", ".join(sorted(map(repr, tree))[:8]) or "no keys")[:200]
    hint = ""
    like = next((key for key, value in tree.items() if _is_conversation(value)), None)
    if like is not None:
        hint = f"; {like} looks like one: data.columns: {{messages: {like}}}"
    elif tree.get("text") is not None or tree.get("segments") is not None or tree.get("input_ids") is not None:
        hint = "; plain text, segments and token ids say not what is asked and what is answered, and are not read"
    else:
        hint = "; name other keys in data.columns, such as {prompt: KEY, completion: KEY}"
    return f"no known form: needs {_RECORD}; found {found}{hint}"


def _side(tree: Mapping[str, Any], key: str, role: str, names: MessageKeys | None) -> tuple[Turn, ...]:
    """Return the turns of one side of a pair: a text, a number, a list of messages or one message."""
    value = decoded(tree[key], key) if _is_conversation(tree[key]) else tree[key]
    if isinstance(value, str):
        return (Turn(role, value),)
    if isinstance(value, int | float) and not isinstance(value, bool):
        return (Turn(role, str(value)),)
    if isinstance(value, dict) and ("role" in value or "from" in value):
        value = [value]
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return turns_of(value, key, names)
    raise BadRow(f"{key} must be a string or a list of messages, found {kind(value)}")


def _addition(tree: Mapping[str, Any], key: str) -> str:
    value = tree.get(key)
    _refuse_nested(key, value)
    if isinstance(value, str):
        return "" if is_blank(value) else value
    return "" if value is None or isinstance(value, bool | list | dict) else str(value)


def _refuse_nested(key: str, value: Any) -> None:
    if isinstance(value, list | dict) and value:
        raise BadRow(f"{key} must be a string, found {kind(value)}; or leave it out: data.columns: {{ignore: [{key}]}}")


def _untrained(turns: Sequence[Turn]) -> tuple[Turn, ...]:
    return tuple(replace(turn, trained=False) if turn.role == "assistant" else turn for turn in turns)


def _history(tree: Mapping[str, Any], names: MessageKeys | None) -> tuple[Turn, ...]:
    value = decoded(tree.get("history"), "history")
    if not value or (isinstance(value, str) and is_blank(value)):
        return ()
    if isinstance(value, list) and value and not any(isinstance(item, list | dict | str) for item in value):
        return ()  # numbers and the like
    return turns_of(value, "history", names)


def _with_system(tree: Mapping[str, Any], turns: tuple[Turn, ...]) -> tuple[Turn, ...]:
    found: dict[str, str] = {}
    for key in SYSTEMS:
        value = tree.get(key)
        _refuse_nested(key, value)
        if isinstance(value, str) and not is_blank(value):
            found[key] = value
    if not found:
        return turns
    own = next((i for i, turn in enumerate(turns) if turn.role == "system"), None)
    if own is not None:
        found = {"the system turn": turns[own].content, **found}
    names, texts = list(found), list(found.values())
    for name, text in zip(names[1:], texts[1:], strict=True):
        if text.strip() != texts[0].strip():
            raise BadRow(
                f"{names[0]} and {name} hold two system texts; leave one out: data.columns: {{ignore: [{name}]}}"
            )
    if own is not None:
        return (turns[own], *turns[:own], *turns[own + 1 :])
    return (Turn("system", texts[0]), *turns)


def _refuse_other_texts(tree: Mapping[str, Any], asked: str, answered: str, turns: Sequence[Turn]) -> None:
    """Refuse a row of a pair where a further key holds a prompt, an answer or a reasoning that no turn holds."""
    read = {asked, answered, *ADDITIONS} if asked in ASKING else {asked, answered}
    if asked == "prompt" and tree.get("instruction") is not None and tree.get("output") is not None:
        read |= {"instruction", "input", "output"}  # the form that comes after
    for key in (*PROMPTS, *ANSWERS, *_TRACES):
        text = tree.get(key)
        if key in read or not isinstance(text, str) or is_blank(text):
            continue
        if key in _TRACES and (key == "reasoning_content" or len(text.split()) < 2):  # a word is the name of a mode
            continue
        if any(text.strip() in turn.text or (turn.content.strip() and turn.content in text) for turn in turns):
            continue
        as_what = "reasoning" if key in _TRACES else "completion" if key in ANSWERS else "prompt"
        raise _unread(key, "a text beside the conversation", as_what)


def _refuse_beside(tree: Mapping[str, Any]) -> None:
    """Refuse a row with data of preferences, pictures or sound."""
    for key in PREFERENCES:
        if not _is_empty(tree.get(key)):
            raise _unread(key, "data of preferences", "completion")
    if tree.get("kto_tag") is False or tree.get("label") is False:
        key = "kto_tag" if tree.get("kto_tag") is False else "label"
        raise _unread(key, "false beside an answer says that it is not wanted", "")
    if isinstance(tree.get("completions"), list) and isinstance(tree.get("labels"), list):
        raise _unread("completions", "steps with labels", "")
    for key in MEDIA:
        if not _is_empty(tree.get(key)):
            raise _unread(key, "pictures, videos and sound", "")


def _refuse_lists(tree: Mapping[str, Any], read: str, turns: Sequence[Turn], names: MessageKeys | None) -> None:
    """Refuse a row with a further list of messages that says something else."""
    contents = None
    for key, value in tree.items():
        if key == read or not isinstance(value, list | str) or (key in _KNOWN and key not in LISTS):
            continue
        if value and _is_conversation(value):
            contents = contents or [turn.content.strip() for turn in turns]
            if not _says_the_same(key, value, contents, names):
                raise _unread(key, "a list of messages beside the one that is read", "messages")


def _says_the_same(key: str, value: Any, contents: Sequence[str], names: MessageKeys | None) -> bool:
    try:
        others = turns_of(value, key, names)
    except BadRow:
        return False
    rest: Iterator[str] = iter(contents)
    return all(turn.content.strip() in rest for turn in others)


def _unread(key: str, what: str, as_what: str) -> BadRow:
    mapped = f"; or say what it is: data.columns: {{{as_what}: {key}}}" if as_what else ""
    return BadRow(
        f"{key} is not read ({what}), and no part of a conversation is dropped in silence; leave it out: "
        f"data.columns: {{ignore: [{key}]}}{mapped}"
    )


def _is_empty(value: Any) -> bool:
    if isinstance(value, str):
        return is_blank(value)
    if isinstance(value, list | tuple):
        return all(_is_empty(item) for item in value)
    if isinstance(value, dict):
        return all(_is_empty(item) for item in value.values())
    return value is None or value is False


def _is_conversation(value: Any) -> bool:
    """Return whether a value looks like a list of messages, or is the JSON text of one."""
    if isinstance(value, str):
        head = value[:2000].lstrip()
        return head[:1] == "[" and any(f'"{a}"' in head and f'"{b}"' in head for a, b in _LOOKS)
    if not isinstance(value, list) or not value or not isinstance(value[0], dict):
        return False
    return any(isinstance(value[0].get(a), str) and b in value[0] for a, b in _LOOKS)


_LOOKS = (("role", "content"), ("from", "value"), ("role", "value"), ("from", "content"), ("role", "text"))
