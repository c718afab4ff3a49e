from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from hypothesis import given, settings

from influray.config_data import ColumnsConfig
from influray.data.columns import columns_of
from influray.data.identity import content_name
from influray.data.messages import SPEAKERS
from influray.data.records import BadRow, Record, Turn, parse_record
from tests.records_strategy import written

Q, A = Turn("user", "q"), Turn("assistant", "a")
MESSAGES = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
CALL = {"type": "function", "function": {"name": "f", "arguments": {"x": 1}}}


def read(tree, **columns) -> Record:
    return parse_record(json.dumps(tree).encode(), "", columns_of(ColumnsConfig.model_validate(columns)))


def turns(tree, **columns) -> tuple[Turn, ...]:
    return read(tree, **columns).turns


def refused(tree, **columns) -> str:
    with pytest.raises(BadRow) as caught:
        read(tree, **columns)
    return caught.value.reason


def masked(turn: Turn) -> Turn:
    return Turn(turn.role, turn.content, turn.extra, False)


@settings(max_examples=150, deadline=None)
@given(written())
def test_a_conversation_is_read_alike_from_every_form(one):
    assert one.is_read_as(parse_record(one.raw)), one.form


def test_every_example_of_the_docs_is_read():
    text = (Path(__file__).parents[2] / "docs" / "data.md").read_text(encoding="utf-8")
    examples = re.findall(r"\| `(\{\".*\})` \|", text)
    assert len(examples) >= 16
    for example in examples:
        assert parse_record(example.encode()).turns[-1] == Turn("assistant", "5"), example


def test_every_documented_pair_of_keys_is_read():
    for asked, answered in [
        ("prompt", "completion"), ("prompt", "response"), ("prompt", "generation"), ("prompt", "output"),
        ("instruction", "response"), ("query", "response"), ("question", "answer"), ("question", "response"),
        ("problem", "solution"), ("input", "output"), ("query", "answers"), ("message_1", "message_2"),
        ("user", "assistant"), ("human", "gpt"),
    ]:  # fmt: skip
        assert turns({asked: "q", answered: "a"}) == (Q, A), (asked, answered)
        assert turns({asked: "q", answered: 5, "score": 1.0, "meta": {"a": [1]}})[-1].content == "5"
    assert read({"question": "q", "response": "a", "answer": "r"}).answer == "r"
    assert turns({"problem": "q", "solution": "a", "answer": "r"}) == (Q, A)
    for added in ("input", "context", "article"):
        assert turns({"question": "q", added: "i", "response": "a"})[0].content == "q\n\ni"
        assert turns({"instruction": "q", added: " ", "output": "a"}) == (Q, A)
    listed = {"input": MESSAGES[:1], "output": "a", "system_prompt": "s", "reasoning": "on"}
    assert turns(listed) == (Turn("system", "s"), Q, A)
    assert "prompt and question may each be the prompt" in refused({"prompt": "q", "question": "r", "response": "a"})
    assert turns({"prompt": "q", "question": "r", "response": "a"}, ignore="question") == (Q, A)


def test_system_and_history_beside_any_form_become_turns():
    history = (Turn("user", "1"), Turn("assistant", "2"))
    forms = (
        {"messages": MESSAGES}, {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]},
        {"prompt": "q", "completion": "a"}, {"instruction": "q", "output": "a"}, {"query": "q", "response": "a"},
        {"prompt": MESSAGES[:1], "completion": MESSAGES[1:]},
    )  # fmt: skip
    for form in forms:
        for key in ("system", "system_prompt", "system_message", "system_instruction"):
            assert turns({**form, key: "s"}) == (Turn("system", "s"), Q, A)
            assert turns({**form, key: ""}) == turns({**form, key: None}) == (Q, A)
        for told in (
            [["1", "2"]], json.dumps([["1", "2"]]), [{"human": "1", "assistant": "2"}],
            [{"query": "1", "response": "2"}], [{"role": "user", "content": "1"}, {"role": "assistant", "content": "2"}],
        ):  # fmt: skip
            assert turns({**form, "history": told, "system": "s"}) == (Turn("system", "s"), *history, Q, A)
        assert turns({**form, "history": []}) == turns({**form, "history": ""}) == (Q, A)
    own = [{"role": "system", "content": "s"}, *MESSAGES]
    assert turns({"messages": own, "system": "s"}) == turns({"messages": own})
    assert "system" in refused({"messages": own, "system": "t"})
    assert turns({"messages": own, "system": "t"}, ignore="system")[0] == Turn("system", "s")
    assert turns({"messages": [{"role": "system", "content": ""}, *MESSAGES]})[0] == Turn("system", "")
    assert "history[0]" in refused({"prompt": "q", "completion": "a", "history": [["1", "2", "3"]]})


def test_speakers_of_other_tools_and_their_calls():
    roles = {"user": "user", "assistant": "assistant", "tool": "tool", "system": "system", "developer": "developer"}
    for speaker, role in SPEAKERS.items():
        if role in roles:
            tree = {"conversations": [{"from": speaker, "value": "x"}, {"from": "gpt", "value": "a"}]}
            assert turns(tree)[0] == Turn(role, "x"), speaker
    called = Turn("assistant", "", {"tool_calls": [CALL], "content": None})
    for speaker in ("function_call", "tool_call", "function-call"):
        for value in (json.dumps(CALL["function"]), json.dumps([CALL["function"]]), json.dumps(CALL)):
            tree = {"conversations": [{"from": speaker, "value": value}, {"from": "observation", "value": "5"}]}
            assert turns(tree) == (called, Turn("tool", "5"))
    call = {"role": "tool_call", "content": json.dumps(CALL["function"])}
    both = Turn("assistant", "Wait.", {"tool_calls": [CALL, CALL]})
    assert turns({"messages": [{"role": "assistant", "content": "Wait."}, call, call]}) == (both,)
    assert len(turns({"messages": [{**call, "loss": False}, call]})) == 2
    thought = {"from": "function_call", "value": "<think>hm</think>" + json.dumps(CALL["function"])}
    assert turns({"conversations": [thought]}) == (Turn("assistant", "<think>hm</think>", {"tool_calls": [CALL]}),)
    for wrong in ("f(x=1)", "", "[]", "5"):
        assert "conversations[0]" in refused({"conversations": [{"from": "function_call", "value": wrong}]})
    assert "data.columns" in refused({"conversations": [{"from": "expert", "value": "x"}]})
    content = [{"type": "text", "text": "Wait."}, {"type": "tool_use", "id": "c", "name": "f", "input": {"x": 1}}]
    result = [{"type": "tool_result", "tool_use_id": "c", "content": [{"type": "text", "text": "5"}]}]
    anthropic = [{"role": "assistant", "content": content}, {"role": "user", "content": result}]
    assert turns({"messages": anthropic}) == (
        Turn("assistant", "Wait.", {"tool_calls": [{**CALL, "id": "c"}]}), Turn("tool", "5", {"tool_call_id": "c"})
    )  # fmt: skip


@pytest.mark.parametrize("key", ["weight", "train", "training", "loss", "loss_scale", "loss_weight", "trainable"])
def test_a_turn_is_masked_by_its_own_flag(key):
    for off, on in ((0, 1), (0.0, 1.0), (False, True), (False, None)):
        first, last = {**MESSAGES[1], key: off}, {**MESSAGES[1], key: on}
        assert turns({"messages": [MESSAGES[0], first, MESSAGES[0], last]}) == (Q, masked(A), Q, A)
    sharegpt = [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a", key: 0}, {"from": "gpt", "value": "b"}]
    assert [turn.trained for turn in turns({"conversations": sharegpt})] == [True, False, True]
    for wrong in (0.5, 2, "half", -1, {}):
        assert f"messages[1].{key}" in refused({"messages": [MESSAGES[0], {**MESSAGES[1], key: wrong}]})
    assert "no answer is trained" in refused({"messages": [MESSAGES[0], {**MESSAGES[1], key: 0}]})
    asked = {"messages": [{**MESSAGES[0], key: 1}, MESSAGES[1]]}
    if key in ("train", "training", "trainable"):  # other tools would train the question
        assert "only answers are trained" in refused(asked)
        assert turns(asked, ignore=f"messages.{key}") == (Q, A)
    else:
        assert turns(asked) == (Q, A)


def test_what_says_that_a_part_of_a_turn_is_trained_is_refused():
    detail = [{"begin_offset": 0, "end_offset": 1, "train": False}]
    assert "train_detail" in refused({"messages": [MESSAGES[0], {**MESSAGES[1], "train_detail": detail}]})
    assert turns({"messages": [MESSAGES[0], {**MESSAGES[1], "train_detail": []}]}) == (Q, A)
    parts = [{"type": "text", "text": "a", "train": False}, {"type": "text", "text": "b", "weight": 0}]
    told = {"messages": [MESSAGES[0], {"role": "assistant", "content": parts}, *MESSAGES]}
    assert turns(told)[1] == Turn("assistant", "ab", {}, False)
    parts[1]["weight"] = 1
    assert "as a whole" in refused(told)
    assert "mask" in refused({"messages": [MESSAGES[0], {**MESSAGES[1], "mask": 1}]})
    history = [*MESSAGES, *MESSAGES]
    assert [turn.trained for turn in turns({"messages": history, "mask_history": True})] == [True, False, True, True]


def test_the_prompt_of_a_pair_is_not_trained_and_its_completion_is():
    assert turns({"prompt": [*MESSAGES, MESSAGES[0]], "completion": MESSAGES[1:]}) == (Q, masked(A), Q, A)
    assert turns({"prompt": [*MESSAGES, MESSAGES[0]], "completion": "a"}) == (Q, masked(A), Q, A)
    assert turns({"prompt": json.dumps(MESSAGES[:1]), "completion": json.dumps(MESSAGES[1:])}) == (Q, A)
    assert turns({"prompt": MESSAGES[:1], "completion": MESSAGES[1]}) == (Q, A)
    assert turns({"messages": MESSAGES[:1], "completion": "a"}) == (Q, A)


def test_every_key_of_a_message_is_kept_and_nulls_of_tables_are_not():
    extra = {"reasoning_content": "r", "name": "n", "custom": {"a": [1]}}
    message = {**MESSAGES[1], **extra, "tool_calls": None, "from": None, "weight": None}
    (_, answer) = turns({"messages": [MESSAGES[0], message]})
    assert answer == Turn("assistant", "a", extra)
    assert answer.message() == {"role": "assistant", "content": "a", **extra}
    silent = {"role": "assistant", "content": None, "reasoning_content": "r"}
    assert turns({"messages": [silent]})[0].message() == silent
    parts = {"role": "assistant", "reasoning_content": [{"type": "text", "text": "r"}], "content": "a"}
    assert turns({"messages": [parts]})[0].extra == {"reasoning_content": "r"}
    assert turns({"prompt": "q", "completion": "a", "reasoning_content": "r"})[1].extra == {"reasoning_content": "r"}
    tool = {"role": "tool", "content": {"high": "06:40"}}
    assert turns({"messages": [tool, MESSAGES[1]]})[0].content == '{"high": "06:40"}'
    assert "two contents" in refused({"messages": [{**MESSAGES[0], "value": "other"}, MESSAGES[1]]})
    assert "two roles" in refused({"messages": [{**MESSAGES[0], "from": "gpt"}, MESSAGES[1]]})


def test_tools_and_options_of_the_template():
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
    quoted = {**tool, "function": {**tool["function"], "parameters": json.dumps({"type": "object"})}}
    for value in ([tool], json.dumps([tool]), [json.dumps(tool)], tool, [quoted], [tool, None]):
        assert read({"messages": MESSAGES, "tools": value}).tools == (tool,)
    assert read({"messages": MESSAGES, "functions": [tool["function"]]}).tools == (tool,)
    for nothing in (None, [], "", "[]"):
        assert read({"messages": MESSAGES, "tools": nothing}).tools == ()
    for wrong in ("a text", 5, ["f"], [5]):
        assert "tools" in refused({"messages": MESSAGES, "tools": wrong})
    options = {"enable_thinking": False, "custom": None}
    for value in (options, json.dumps(options)):
        assert read({"messages": MESSAGES, "chat_template_kwargs": value}).template_options == {
            "enable_thinking": False
        }
    for name in ("chat_template", "tokenize", "messages", "tools", "add_generation_prompt"):
        assert name in refused({"messages": MESSAGES, "chat_template_kwargs": {name: "x"}})


@pytest.mark.parametrize(
    "beside",
    [
        {"chosen": "a", "rejected": "b"}, {"rejected_response": "b"}, {"rejected_messages": MESSAGES},
        {"images": ["x.png"]}, {"image": {"bytes": "x"}}, {"videos": "x.mp4"}, {"audios": [{"path": "x"}]},
        {"other_turns": [{"role": "user", "content": "z"}]}, {"other": json.dumps([{"from": "gpt", "value": "z"}])},
        {"conversations": [{"from": "human", "value": "z"}]}, {"kto_tag": False}, {"label": False},
    ],
)  # fmt: skip
def test_what_looks_like_the_conversation_and_is_not_read_is_refused_by_name(beside):
    (key, *_) = beside
    reason = refused({"messages": MESSAGES, **beside})
    assert reason.startswith(f"{key} is not read")
    assert f"data.columns: {{ignore: [{key}]}}" in reason
    assert turns({"messages": MESSAGES, **beside}, ignore=list(beside)) == (Q, A)


def test_columns_that_have_nothing_to_do_with_it_bar_no_row():
    beside = {
        "uuid": "5f0e", "score": 1e300, "flag": False, "meta": {"deep": [{"a": 1}]}, "tags": ["a", "b"], "images": [],
        "rejected": None, "chosen": "", "moderation": [{"categories": {"x": True}}], "prompt_id": "p", "label": 3,
        "labels": [1, 2], "text": "<|user|>q", "weight": "0.5", "conversation": MESSAGES, "prompt": "q", "train": "yes",
    }  # fmt: skip
    assert turns({**beside, "messages": MESSAGES}) == (Q, A)
    assert turns({"prompt": "q", "completion": "a", "thinking": "on", "explanation": "why not"}) == (Q, A)
    assert "thinking" in refused({"prompt": "q", "completion": "a", "thinking": "first this"})


def test_columns_map_anything_else():
    tree = {"q": "q", "a": "a", "meta": {"id": 7, "who": "web"}, "messages": "left alone", "prompt": "p"}
    record = read(tree, prompt="q", completion="a", id="meta.id", source="meta.who")
    assert (record.id, record.source, record.turns) == ("7", "web", (Q, A))
    dialogue = {
        "talk": [
            {"who": "Ann", "says": "q"},
            {"who": "Bob", "says": "a", "learn": 1},
            {"who": "Bob", "says": "b", "learn": 0},
        ]
    }
    mapped = {"messages": "talk", "role": "who", "content": "says", "train": "learn"}
    found = turns(dialogue, **mapped, roles={"user": "Ann", "assistant": ["Bob"]})
    assert found == (Q, A, Turn("assistant", "b", {}, False))
    assert "wrong role" in refused(dialogue, **mapped)
    assert "no 'talk'" in refused({"messages": MESSAGES}, messages="talk")
    assert turns({"q": "q", "a": "a", "why": "since"}, prompt="q", completion="a", reasoning="why")[1].extra == {
        "reasoning_content": "since"
    }
    assert "other_list looks like one: data.columns: {messages: other_list}" in refused({"other_list": MESSAGES})
    assert "data.columns" in refused({"x": "q", "y": "a"})
    for text in ({"text": "Once."}, {"segments": [{"label": True, "text": "x"}]}, {"input_ids": [1], "labels": [1]}):
        assert "are not read" in refused(text)


def test_json_texts_are_held_to_the_limits_of_json():
    assert "messages: not JSON" in refused({"messages": "[{'role': 'user', 'content': 'q'}]"})
    assert "nested deeper" in refused({"messages": "[" * 200 + "]" * 200})
    assert "surrogate" in refused({"messages": [MESSAGES[0], {**MESSAGES[1], "reasoning_content": "\ud800"}]})
    assert "surrogate" in refused({"messages": json.dumps([{**MESSAGES[0], "content": "\ud800"}, MESSAGES[1]])})
    assert "surrogate" in refused({"messages": MESSAGES, "tools": [{"name": "\udfff"}]})


def test_the_id_of_a_content_counts_every_key_and_that_of_a_plain_one_is_what_it_was():
    plain = content_name(Record(None, "", (Q, A), None))
    assert plain == "b97259b5ad9ab7fb90cabe9620c26dfb#1"  # of [["user","q"],["assistant","a"]]
    others = [
        Record(None, "", (Q, masked(A), A), None), Record(None, "", (Q, A, A), None),
        Record(None, "", (Q, Turn("assistant", "a", {"reasoning_content": "r"})), None),
        Record(None, "", (Q, A), None, (CALL,)), Record(None, "", (Q, A), None, (), {"enable_thinking": True}),
    ]  # fmt: skip
    assert len({plain, *map(content_name, others)}) == 6
