"""A question becomes the record that a row of a file would be, or a message that says why not."""

from __future__ import annotations

import json

import pytest

from influray.data.question import Question, question_record
from influray.data.records import parse_record
from influray.protocols import DataError


def test_a_question_is_the_record_of_its_two_turns():
    raw = json.dumps({"prompt": "What is 2+2?", "completion": "4 \u00e9"}).encode()
    assert question_record(Question("What is 2+2?", "4 \u00e9")).turns == parse_record(raw).turns
    with_system = question_record(Question("a", "b", system="Be brief."))
    assert next((turn.role, turn.content) for turn in with_system.turns) == ("system", "Be brief.")


def test_messages_are_read_as_a_pool_row_is():
    raw = json.dumps({"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]}).encode()
    assert question_record(Question(messages=raw)) == parse_record(raw)


@pytest.mark.parametrize(
    ("question", "says"),
    [
        (Question("", "b"), "question: it is empty"),
        (Question(" \u200b\n", "b"), "question: it is empty"),
        (Question("a", ""), "answer: there is none"),
        (Question("a", "\t"), "answer: there is none"),
        (Question("a\ud800", "b"), "lone surrogate U[+]D800"),
        (Question(messages=b"{"), "messages: not JSON"),
        (Question(messages=b"[]"), "messages: a record is a JSON object"),
        (Question(messages=b'{"messages": [{"role": "user", "content": "a"}]}'), "no assistant turn"),
    ],
)
def test_a_question_that_cannot_be_asked_says_why(question, says):
    with pytest.raises(DataError, match=says):
        question_record(question)
