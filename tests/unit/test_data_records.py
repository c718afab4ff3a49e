from __future__ import annotations

import json

import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

from influray.data.records import BadRow, Record, Turn, is_blank, parse_record
from influray.data.turns import MAX_DEPTH, ROLES


def raw(tree, **options) -> bytes:
    return json.dumps(tree, **options).encode()


def messages(*turns, **fields) -> bytes:
    return raw({"messages": [{"role": role, "content": content} for role, content in turns], **fields})


def reason(data: bytes) -> str:
    with pytest.raises(BadRow) as caught:
        parse_record(data)
    return caught.value.reason


def test_all_forms_of_one_exchange_give_the_same_turns():
    forms = [
        {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]},
        {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]},
        {"prompt": "q", "completion": "a"},
        {"instruction": "q", "input": "", "output": "a"},
        {"instruction": "q", "output": "a"},
    ]
    for form in forms:
        assert parse_record(raw(form)).turns == (Turn("user", "q"), Turn("assistant", "a"))
    alpaca = parse_record(raw({"instruction": "q", "input": "i", "output": "a"}))
    assert alpaca.turns[0].content == "q\n\ni"


def test_the_first_form_in_the_order_of_precedence_wins_and_null_counts_as_absent():
    everything = {
        "messages": [{"role": "user", "content": "1"}, {"role": "assistant", "content": "1"}],
        "prompt": "3",
        "completion": "3",
        "instruction": "4",
        "output": "4",
    }
    for rank, key in ((1, "messages"), (3, "prompt"), (4, "instruction")):
        assert parse_record(raw(everything)).turns[-1].content == str(rank)
        everything[key] = None
        if key == "prompt":
            everything["completion"] = None
    assert "no known form" in reason(raw(everything))


text = st.text(st.characters(exclude_categories=["Cs"]))
visible = text.filter(lambda value: not is_blank(value))


@settings(max_examples=80, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from(ROLES), text), max_size=5),
    visible,
    st.none() | visible | st.integers(),
    st.none() | visible,
    st.none() | text | st.integers(),
    st.booleans(),
)
def test_what_was_written_is_what_is_parsed(turns, last, identity, source, answer, escaped):
    turns = [*turns, ("assistant", last)]
    fields = {"id": identity, "source": source, "answer": answer, "other": {"nested": [1]}}
    tree = {"messages": [{"role": role, "content": content} for role, content in turns], **fields}
    record = parse_record(raw(tree, ensure_ascii=escaped), "file-stem")
    assert record == Record(
        None if identity is None else str(identity),
        "file-stem" if source is None else source,
        tuple(Turn(*turn) for turn in turns),
        None if answer is None else str(answer),
    )


trees = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
odd_messages = st.lists(
    st.dictionaries(
        st.sampled_from(["role", "content", "tool_calls", "from", "value", "weight", "train", "reasoning_content"]),
        trees,
    )
)
keys = [
    "id",
    "system",
    "history",
    "tools",
    "chat_template_kwargs",
    "chosen",
    "images",
    "query",
    "response",
    "source",
    "answer",
    "messages",
    "conversations",
    "prompt",
    "completion",
    "instruction",
    "input",
    "output",
]
odd_records = st.dictionaries(st.sampled_from(keys), trees | odd_messages)


@settings(max_examples=80, deadline=None)
@given(st.binary(max_size=60) | (trees | odd_records).map(raw))
def test_no_bytes_do_anything_but_parse_or_give_a_reason(data):
    try:
        record = parse_record(data)
    except BadRow as bad:
        event(bad.reason[:20])
        return
    event("parsed")
    assert any(turn.role == "assistant" for turn in record.turns)
    assert not is_blank([turn for turn in record.turns if turn.role == "assistant" and turn.trained][-1].text)
    for value in (record.id or "", record.source, *(turn.content for turn in record.turns)):
        value.encode()


@pytest.mark.parametrize("opening", ["[", '{"a":', '{"a":[', '"[', '["\\"[",'])
def test_deep_nesting_is_a_reason_and_not_a_recursion_error(opening):
    assert "JSON" in reason(b'{"messages": ' + opening.encode() * 100_000)


def test_depth_is_judged_by_structure_not_by_brackets_in_strings():
    def nested(depth: int) -> bytes:
        return (
            b'{"messages": [], "prompt": "q", "completion": "'
            + b"[{" * 999
            + b'", "x": '
            + b"[" * depth
            + b"]" * depth
            + b"}"
        )

    good = nested(MAX_DEPTH - 1).replace(b'"messages": [], ', b"")
    assert parse_record(good).turns[1].content == "[{" * 999
    assert "nested deeper" in reason(nested(MAX_DEPTH))


def test_an_answer_without_a_visible_character_is_empty():
    for blank in ("", " \n", "\u200b\u200b", "\u00a0", "\ufeff", "\u2060\t\u00ad"):
        assert "empty answer" in reason(messages(("user", "q"), ("assistant", blank)))
    assert "empty answer" in reason(messages(("user", "q"), ("assistant", "a"), ("user", "q"), ("assistant", "")))
    assert "no assistant turn" in reason(messages(("user", "q")))
    parse_record(messages(("user", ""), ("assistant", "\u200ba")))


def test_ids_of_any_type_become_text_and_blank_ones_are_none():
    def identity(value):
        return parse_record(messages(("assistant", "a"), id=value)).id

    assert [identity(value) for value in (7, -1, 10**23, "7", " x ")] == ["7", "-1", str(10**23), "7", " x "]
    assert [identity(value) for value in (None, "", " ", "\u200b", float("nan"), float("inf"))] == [None] * 6
    assert [identity(value) for value in (1.0, 1.5, 1e16, True)] == ["1", "1.5", str(10**16), "true"]
    assert [identity(value) for value in ({"$oid": "65f0"}, {"$numberLong": "7"}, {"$uuid": 5})] == ["65f0", "7", "5"]
    assert [identity(value) for value in (["a"], {"a": 1}, [])] == ['["a"]', '{"a":1}', "[]"]


def test_the_reason_comes_with_the_id_where_there_is_one():
    with pytest.raises(BadRow) as caught:
        parse_record(messages(("USER", "q"), ("assistant", "a"), id="x-1"))
    assert caught.value.id == "x-1"
    assert "USER" in caught.value.reason


def test_lone_surrogates_are_refused_wherever_the_text_is_used():
    assert "U+D83D" in reason(b'{"prompt": "a \\ud83d b", "completion": "x"}')
    assert "surrogate" in reason(b'{"id": "\\udfff", "prompt": "a", "completion": "x"}')
    pair = parse_record(b'{"prompt": "\\ud83d\\ude00", "completion": "x", "side": "\\udfff"}')
    assert pair.turns[0].content == "\U0001f600"


def test_text_parts_are_joined_and_pictures_are_never_dropped_in_silence():
    def content(*parts, role="user"):
        turns = [{"role": role, "content": list(parts)}, {"role": "assistant", "content": "a"}]
        return parse_record(raw({"messages": turns})).turns[0].content

    picture = {"type": "image_url", "image_url": {"url": "x"}}
    part = {"type": "text", "text": "t"}
    assert content(part, "u", {"type": "input_text", "text": "v"}) == "tuv"
    assert content(part, picture) == "t[image_url]"
    for wrong in ([picture], [], [{"type": "text"}], [5], [{"type": "text", "content": [part]}]):
        with pytest.raises(BadRow, match="content"):
            content(*wrong)
    with pytest.raises(BadRow, match="cannot be trained on"):
        content(part, picture, role="assistant")


def test_tool_calls_are_kept_with_their_arguments_decoded():
    def calls(*given, **message):
        turns = [{"role": "user", "content": "q"}, {"role": "assistant", "tool_calls": list(given), **message}]
        return parse_record(raw({"messages": turns})).turns[-1]

    call = {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": {"x": "\u00e9", "n": 1.0}}}
    quoted = {**call, "function": {"name": "f", "arguments": json.dumps(call["function"]["arguments"])}}
    twice = {**call, "function": {"name": "f", "arguments": json.dumps(quoted["function"]["arguments"])}}
    for written in (call, quoted, twice, json.dumps(quoted), {**quoted, "function": json.dumps(quoted["function"])}):
        assert calls(written) == Turn("assistant", "", {"tool_calls": [call], "content": None})
        assert calls(written, content="Wait.") == Turn("assistant", "Wait.", {"tool_calls": [call]})
        assert calls(written, content="") == Turn("assistant", "", {"tool_calls": [call]})
    bare = {"name": "g", "arguments": {}}
    for written in (bare, {"name": "g", "arguments": ""}, {"name": "g", "parameters": {}}, {"name": "g"}):
        assert calls(written).extra["tool_calls"] == [{"type": "function", "function": bare}]
    text = {"name": "h", "arguments": "not JSON {"}
    assert calls(text).extra["tool_calls"][0]["function"] == text
    assert calls(text).text == json.dumps(text)
    older = {"role": "assistant", "content": None, "function_call": quoted["function"]}
    answered = {"role": "function", "name": "f", "content": "5"}
    record = parse_record(raw({"messages": [older, answered, {"role": "assistant", "content": "a"}]}))
    assert record.turns[0].extra["tool_calls"] == [{"type": "function", "function": call["function"]}]
    assert record.turns[1] == Turn("tool", "5", {"name": "f"})
    assert "content" in reason(raw({"messages": [{"role": "assistant", "content": None, "tool_calls": []}]}))
    assert "tool_calls" in reason(raw({"messages": [{"role": "assistant", "content": "a", "tool_calls": "f()"}]}))
    assert "name" in reason(raw({"messages": [{"role": "assistant", "content": "a", "tool_calls": [{"x": 1}]}]}))
    assert "only an assistant" in reason(raw({"messages": [{"role": "user", "content": "a", "tool_calls": [bare]}]}))


def test_an_answer_of_any_type_is_text_or_none_and_never_bars_the_row():
    def answer(value):
        return parse_record(messages(("assistant", "a"), answer=value)).answer

    assert [answer(value) for value in (72, 0.5, "72 ", None)] == ["72", "0.5", "72 ", None]
    assert [answer(value) for value in (True, ["a"], float("nan"), ["a", "b"], {"a": 1}, [])] == [
        "true",
        "a",
        None,
        None,
        None,
        None,
    ]
    digits = "9" * 400
    assert (
        parse_record(messages(("assistant", "a")).replace(b"}]}", b'}], "answer": ' + digits.encode() + b"}")).answer
        == digits
    )
    for digits, key in (("9" * 400, b"id"), ("9" * 400, b"source"), ("9" * 400, b"score"), ("9" * 5000, b"answer")):
        data = messages(("assistant", "a")).replace(b"}]}", b'}], "' + key + b'": ' + digits.encode() + b"}")
        if len(digits) > 4300:  # what Python's reader takes
            assert "not JSON" in reason(data)
        else:
            parse_record(data)
    assert "many digits" in reason(b'{"messages": [{"role": "user", "content": %s}]}' % (b"9" * 400))


def test_a_source_of_any_type_becomes_text():
    def source(value):
        return parse_record(messages(("assistant", "a"), source=value), "stem").source

    assert [source(value) for value in ("web", 3, 3.0, ["web", "books"], ["web", None, 3])] == [
        "web",
        "3",
        "3",
        "web, books",
        "web, 3",
    ]
    assert [source(value) for value in (None, "", " ", [], float("nan"))] == ["stem"] * 5
    assert source({"name": "web"}) == '{"name":"web"}'
