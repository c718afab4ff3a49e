"""Odd rows and configs end in a record, a reason or a ConfigError, and in nothing else. jobs/fuzz.py throws more."""

from __future__ import annotations

import pytest
import yaml
from hypothesis import HealthCheck, event, given, settings

from influray.config import dump_config, parse_config
from influray.data.chat import ChatEncoder
from influray.data.identity import content_name
from influray.data.records import BadRow, parse_record
from influray.protocols import ConfigError
from tests.fuzz_strategy import configs, rows
from tests.tiny import CHATML, byte_tokenizer

BIG = "9" * 400
TURNS = '[{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]'
CORPUS = [
    f'{{"messages": {TURNS}, "answer": {BIG}}}',
    f'{{"messages": {TURNS}, "id": {BIG}, "source": -{BIG}, "score": {BIG}}}',
    f'{{"messages": [{{"role": "user", "content": {BIG}}}]}}',
    f'{{"messages": [{{"role": "assistant", "content": "a", "weight": {BIG}}}]}}',
    f'{{"prompt": {BIG}, "completion": {BIG}}}',
    f'{{"messages": {TURNS}, "answer": 1e999, "id": -1e999, "source": NaN}}',
    '{"messages": [{"role": {}, "content": "q"}]}',
    '{"messages": [{"role": ["user"], "content": "q"}]}',
    '{"messages": [["q", null], [null, "a"]]}',
    '{"messages": [[]]}',
    '{"messages": [{"from": 1, "role": null, "value": []}]}',
    '{"messages": [{"role": "assistant", "content": [[], 5, null]}]}',
    '{"messages": [{"role": "assistant", "content": [{"type": {}, "text": "a"}]}]}',
    '{"messages": [{"role": "assistant", "content": [{"type": "tool_use", "name": null}]}]}',
    '{"messages": [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "[[["}}]}]}',
    '{"messages": [{"role": "assistant", "tool_calls": {"function": "[]"}}]}',
    '{"messages": [{"role": "tool_call", "content": "null"}]}',
    '{"messages": "[\\"[{}]\\"]"}',
    f'{{"messages": {TURNS}, "history": {{"a": 1}}}}',
    f'{{"messages": {TURNS}, "history": "[1]", "system": 5, "tools": {{}}}}',
    f'{{"messages": {TURNS}, "chat_template_kwargs": "[]", "tools": [[]]}}',
    f'{{"messages": {TURNS}, "x": [{{"role": "user", "content": {{}}}}]}}',
    f'{{"messages": {TURNS}, "images": [[[]]], "chosen": {{"a": [""]}}}}',
    '{"instruction": "q", "output": "a", "context": {"a": 1}}',
    '{"question": [], "answer": {}}',
    '{"": "", "messages": {}}',
]


@pytest.fixture(scope="module")
def encoder() -> ChatEncoder:
    return ChatEncoder(byte_tokenizer(CHATML), "auto", 512)


def reason(data: bytes, encoder: ChatEncoder) -> str:
    """Return why a row is bad, "used" where it is good."""
    try:
        record = parse_record(data, "stem")
        content_name(record)
        encoder.encode(record)
    except BadRow as bad:
        return bad.reason
    return "used"


@pytest.mark.parametrize("line", CORPUS)
def test_rows_that_were_odd_once(line, encoder):
    assert 0 < len(reason(line.encode(), encoder)) < 1200


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=rows())
def test_any_row_is_a_record_or_has_a_reason(data, encoder):
    assert 0 < len(reason(data, encoder)) < 1200


@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(configs())
def test_any_config_is_read_or_refused_and_repeats_itself(tree):
    try:
        found = parse_config(tree)
    except ConfigError as error:
        event(str(error)[:40])
        return
    assert parse_config(yaml.safe_load(dump_config(found))) == found
