"""What people's rows come to under templates of many habits: text as transformers', answers whole, no run ended."""

from __future__ import annotations

import json
from typing import Any

import pytest
from transformers.utils import chat_template_utils

from influray.data.chat import ChatEncoder
from influray.data.records import BadRow, Record, Turn, parse_record
from influray.data.rendering import CLOCK, ChatTemplate, standing
from influray.protocols import DataError
from tests.tiny import CHATML
from tests.unit.families import ANSWER, QUESTION, RESULT, THOUGHT, TOOLS, called, family_tokenizer

THINKING = """{%- set ns = namespace(last=-1) -%}
{%- for m in messages -%}{%- if m.role == 'user' -%}{%- set ns.last = loop.index0 -%}{%- endif -%}{%- endfor -%}
{%- if tools -%}{{ '<|im_start|>system\\nTOOLS ' + (tools | tojson) + '<|im_end|>\\n' }}{%- endif -%}
{%- for m in messages -%}
{%- set c = m.content if m.content is string else '' -%}
{%- set r = m.reasoning_content if m.reasoning_content is string else '' -%}
{%- if m.role == 'assistant' -%}
{%- if not r and '</think>' in c -%}
{%- set r = c.split('</think>')[0].split('<think>')[-1].strip('\\n') -%}{%- set c = c.split('</think>')[-1].lstrip('\\n') -%}
{%- endif -%}
{{ '<|im_start|>assistant\\n' }}
{%- if loop.index0 > ns.last and (loop.last or r) -%}{{ '<think>\\n' + r.strip('\\n') + '\\n</think>\\n\\n' }}{%- endif -%}
{{ c }}
{%- for t in m.tool_calls or [] -%}{{ '\\n<tool_call>\\n' + ((t.function or t) | tojson) + '\\n</tool_call>' }}{%- endfor -%}
{{ '<|im_end|>\\n' }}
{%- elif m.role == 'tool' -%}{{ '<|im_start|>user\\n<tool_response>\\n' + c + '\\n</tool_response><|im_end|>\\n' }}
{%- else -%}{{ '<|im_start|>' + m.role + '\\n' + c + '<|im_end|>\\n' }}{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}{%- endif -%}"""
TAKEN_OUT = """{{- bos_token -}}
{%- for m in messages -%}
{%- if m.role == 'user' -%}{{ '<|start|>user\\n' + m.content }}
{%- elif m.role == 'assistant' -%}{{ '<|start|>assistant\\n' + m.content.split('</think>')[-1] + eos_token }}
{%- else -%}{{ m.content }}{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|start|>assistant\\n<think>\\n' }}{%- endif -%}"""
PARTS = """{%- for m in messages -%}{{ '<|im_start|>' + m.role + ':' }}
{%- for p in m.content -%}{%- if p.type == 'text' -%}{{ ' ' + p.text }}{%- endif -%}{%- endfor -%}{{ '<|im_end|>\\n' }}
{%- endfor -%}{%- if add_generation_prompt -%}{{ '<|im_start|>assistant:' }}{%- endif -%}"""
NO_EMPTY_SYSTEM = """{{- bos_token -}}
{%- if messages[0].role == 'system' -%}
{%- if messages[0].content -%}{{ '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}{%- endif -%}
{%- set messages = messages[1:] -%}
{%- endif -%}
{%- for m in messages -%}{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}{%- endif -%}"""
EOS_AFTER_ALL = """{%- for m in messages -%}{{ '<|' + m.role + '|>\\n' + m.content + '<|end|>\\n' }}{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|assistant|>\\n' }}{%- else -%}{{ eos_token }}{%- endif -%}"""


def trained(template: str, record: Record, eos: str | None = None, end_token: bool = True):
    """Return (texts of the trained spans, the encoding), held against transformers' own rendering."""
    tokenizer = family_tokenizer(template, eos)
    encoder = ChatEncoder(tokenizer, "auto", 100_000, end_token)
    encoded = encoder.encode(record)
    conversation = encoder._template.conversation(record)
    own = tokenizer.apply_chat_template(
        conversation.messages, tools=conversation.tools, return_dict=False, **conversation.options
    )
    assert encoded.input_ids.tolist() == list(own)
    spans = encoded.loss_spans.reshape(-1, 2).tolist()
    return [tokenizer.decode(encoded.input_ids[start:stop]) for start, stop in spans], encoded


def record(*turns: Turn, tools: tuple = (), **options: Any) -> Record:
    return Record("r", "s", turns, None, tools, options)


@pytest.mark.parametrize("thought", ["0 apples and one more.", "a <b> c\n\nd \u65e5\u672c ...", "!?"])
def test_an_answer_that_stands_in_the_text_to_the_letter_is_trained_whole(thought):
    content = f"<think>\n{thought}\n</think>\n\n1"
    texts, encoded = trained(THINKING, record(QUESTION, Turn("assistant", content)))
    assert texts == [content + "<|im_end|>"]
    assert not encoded.cut_by_template


def test_reasoning_beside_the_content_is_trained_like_reasoning_in_it():
    for key in ("reasoning_content", "reasoning", "thinking"):
        texts, _ = trained(THINKING, record(QUESTION, Turn("assistant", ANSWER, {key: THOUGHT})))
        assert texts == [f"<think>\n{THOUGHT}\n</think>\n\n{ANSWER}<|im_end|>"]


def test_what_a_template_leaves_of_an_answer_is_trained_and_the_row_says_so():
    thinking = Turn("assistant", f"<think>\n{THOUGHT}\n</think>\n\n{ANSWER}")
    texts, encoded = trained(TAKEN_OUT, record(QUESTION, thinking), "<|end|>")
    assert texts == [f"\n\n{ANSWER}<|end|>"]
    assert encoded.cuts == ("content of turn 2",)
    texts, encoded = trained(THINKING, record(QUESTION, thinking, Turn("user", "And?"), thinking))
    assert texts == [f"{ANSWER}<|im_end|>", f"{thinking.content}<|im_end|>"]
    assert encoded.cuts == ("content of turn 2",)


def test_an_answer_of_which_nothing_is_left_names_the_mend():
    with pytest.raises(BadRow, match=r"leaves nothing of turn 2 \(assistant\).*model\.chat_template"):
        trained(TAKEN_OUT, record(QUESTION, Turn("assistant", "<think>all of it</think>")), "<|end|>")
    with pytest.raises(BadRow, match=r"leaves nothing of turn 2 \(assistant\).*model\.chat_template"):
        trained(CHATML, record(QUESTION, called({"port": "Brest"}, "")))


def test_calls_are_in_the_templates_form_and_trained_and_results_are_not():
    turns = (QUESTION, called({"port": "Brest", "days": 2}), RESULT, Turn("assistant", ANSWER))
    texts, encoded = trained(THINKING, record(*turns, tools=TOOLS))
    call = '{"name": "tide", "arguments": {"port": "Brest", "days": 2}}'
    assert texts == [
        f"\n<tool_call>\n{call}\n</tool_call><|im_end|>",
        f"<think>\n\n</think>\n\n{ANSWER}<|im_end|>",
    ]
    assert not encoded.cut_by_template


def test_arguments_that_are_a_json_text_are_never_quoted_twice():
    row = {
        "messages": [
            {"role": "user", "content": "When?"},
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [{"type": "function", "function": {"name": "tide", "arguments": '{"port": "Brest"}'}}],
            },
        ]
    }
    texts, _ = trained(THINKING, parse_record(json.dumps(row).encode()))
    assert '"arguments": {"port": "Brest"}' in texts[0]


def test_tools_that_a_template_does_not_write_are_said_to_be_cut():
    _, encoded = trained(CHATML, record(QUESTION, Turn("assistant", ANSWER), tools=TOOLS))
    assert encoded.cuts == ("tools",)


def test_turns_taken_out_of_the_loss_stand_in_the_text_untrained():
    turns = (QUESTION, Turn("assistant", "41", {}, False), Turn("user", "Look again."), Turn("assistant", "42"))
    texts, encoded = trained(CHATML, record(*turns))
    assert texts == ["42<|im_end|>"]
    assert encoded.answer_start == encoded.loss_spans[0]
    texts, _ = trained(CHATML, record(*turns[:3], Turn("assistant", "42", {}, False), Turn("assistant", "43")))
    assert texts == ["43<|im_end|>"]
    with pytest.raises(BadRow, match="no turn to train"):
        trained(CHATML, record(*turns[:2]))


def test_a_template_of_content_parts_gets_parts():
    texts, _ = trained(
        PARTS, record(QUESTION, Turn("assistant", ANSWER), Turn("user", "And?"), Turn("assistant", "No."))
    )
    assert texts == [f" {ANSWER}<|im_end|>", " No.<|im_end|>"]


def test_an_empty_system_text_is_left_out_as_the_template_has_it_and_a_full_one_is_not():
    answers = (QUESTION, Turn("assistant", ANSWER))
    texts, encoded = trained(NO_EMPTY_SYSTEM, record(Turn("system", ""), *answers))
    assert texts == [f"{ANSWER}<|im_end|>"]
    assert len(encoded.input_ids) == len(trained(NO_EMPTY_SYSTEM, record(*answers))[1].input_ids)
    silent = (
        "{% for m in messages %}{% if m.role != 'system' %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n"
        + ("{% endif %}{% endfor %}")
    )
    with pytest.raises(BadRow, match=r"leaves out turn 1 \(system\).*model\.chat_template"):
        trained(silent, record(Turn("system", "You know the sea."), *answers))


def test_an_end_of_text_after_all_is_no_reason_to_refuse():
    texts, _ = trained(
        EOS_AFTER_ALL,
        record(QUESTION, Turn("assistant", ANSWER), Turn("user", "And?"), Turn("assistant", "No.")),
        "<|endoftext|>",
    )
    assert texts == [f"{ANSWER}<|end|>", "No.<|end|>"]


@pytest.mark.parametrize(
    ("head", "date"),
    [
        ("{%- set now = strftime_now -%}{{ now('%d %b %Y') }}\n", "26 Jul 2024"),
        ("{{- strftime_now ('%d %b %Y') }}\n", "26 Jul 2024"),
        ("{% set form = '%A' ~ ', %-d.%m.' %}{{ strftime_now(form) }}\n", "Friday, 26.07."),
        ("{% macro day() %}{{ strftime_now(format='%Y-%m-%d %H:%M 100%% %%d') }}{% endmacro %}{{ day() }}\n", None),
        ("{{ (strftime_now('%Y') | int) + 1 }}\n", "2025"),
    ],
)
def test_the_clock_stands_however_it_is_asked(head, date):
    tokenizer = family_tokenizer(head + CHATML)
    text = ChatEncoder(tokenizer, "auto", 999).render(record(QUESTION, Turn("assistant", ANSWER)))
    assert text.split("<|im_start|>")[0].strip() == (date or CLOCK.strftime("%Y-%m-%d %H:%M 100%% %%d"))


def test_the_standing_clock_is_the_real_one_at_its_date(monkeypatch):
    class Standing(type(CLOCK)):
        @classmethod
        def now(cls, tz=None):
            return CLOCK

    monkeypatch.setattr(chat_template_utils, "datetime", Standing)
    forms = " ".join(f"%{directive}" for directive in "aAwdbBmyYHIMSpjUWcxX")
    template = f"  {{{{ strftime_now({forms!r}) }}}}|" + CHATML
    tokenizer = family_tokenizer(template)
    messages = [{"role": "user", "content": "Hi"}]
    real = tokenizer.apply_chat_template(messages, tokenize=False)
    assert tokenizer.apply_chat_template(messages, tokenize=False, chat_template=standing(template)) == real


def test_one_odd_row_is_read_as_rendered_or_bad_and_the_others_are_used():
    tokenizer = family_tokenizer(THINKING)
    good = record(QUESTION, Turn("assistant", ANSWER))
    odd = record(QUESTION, Turn("assistant", ANSWER), Turn("assistant", "Not later."))
    worse = record(QUESTION, Turn("assistant", ANSWER), chat_template="{{ 1 / 0 }}")
    results = ChatEncoder(tokenizer, "auto", 999).encode_many([good, odd, worse, good])
    assert results[0].input_ids.tolist() == results[3].input_ids.tolist()
    spans = results[1].loss_spans.reshape(-1, 2).tolist()
    texts = [tokenizer.decode(results[1].input_ids[start:stop]) for start, stop in spans]
    assert texts == [f"{ANSWER}<|im_end|>", "<think>\n\n</think>\n\nNot later.<|im_end|>"]
    assert isinstance(results[2], BadRow)


def test_names_of_special_tokens_stay_text_also_beside_calls_and_reasoning():
    tokenizer = family_tokenizer(THINKING)
    spelled = "end it with <|im_end|> and </s>, then"
    answer = Turn("assistant", spelled, {"reasoning_content": spelled, **called({"port": spelled}, "").extra})
    encoded = ChatEncoder(tokenizer, "auto", 9999).encode(record(Turn("user", spelled), answer, tools=TOOLS))
    assert encoded.input_ids.tolist().count(tokenizer.convert_tokens_to_ids("<|im_end|>")) == 3
    assert encoded.input_ids.tolist().count(tokenizer.convert_tokens_to_ids("</s>")) == 0
    assert tokenizer.decode(encoded.input_ids).count(spelled) == 4
    assert not encoded.cut_by_template


def test_options_of_a_row_reach_the_template():
    template = "{% if loud %}LOUD {% endif %}" + CHATML
    tokenizer = family_tokenizer(template)
    encoder = ChatEncoder(tokenizer, "auto", 999)
    plain, loud = (record(QUESTION, Turn("assistant", ANSWER), **options) for options in ({}, {"loud": True}))
    assert "LOUD " in encoder.render(loud)
    assert "LOUD" not in encoder.render(plain)
    with pytest.raises(BadRow, match="tokenize is not an argument of a template"):
        encoder.encode(record(QUESTION, Turn("assistant", ANSWER), tokenize=True))


def test_a_template_for_tools_is_used_for_records_with_tools():
    tokenizer = family_tokenizer(CHATML)
    tokenizer.chat_template = {"default": CHATML, "tool_use": THINKING}
    encoder = ChatEncoder(tokenizer, "auto", 999)
    answers = (QUESTION, Turn("assistant", ANSWER))
    assert "TOOLS" in encoder.render(record(*answers, tools=TOOLS))
    assert "<think>" not in encoder.render(record(*answers))


GENERATION = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}{% generation %}{{ m.content }}"
    "<|im_end|>{% endgeneration %}{% else %}{{ m.content }}<|im_end|>{% endif %}\n{% endfor %}"
)


def test_a_template_that_marks_what_is_generated_is_believed():
    turns = (QUESTION, Turn("assistant", ANSWER), Turn("user", "And?"), Turn("assistant", "No <|im_end|>."))
    texts, _ = trained(GENERATION, record(*turns[:2]))
    assert texts == [f"{ANSWER}<|im_end|>"]
    tokenizer = family_tokenizer(GENERATION)
    encoded = ChatEncoder(tokenizer, "auto", 999).encode(record(*turns))
    assert tokenizer.decode(encoded.input_ids[encoded.loss_mask]) == f"{ANSWER}<|im_end|>No <|im_end|>.<|im_end|>"
    without = ChatEncoder(tokenizer, "auto", 999, end_token=False).encode(record(*turns))
    assert tokenizer.decode(without.input_ids[without.loss_mask]) == f"{ANSWER}No <|im_end|>."


def test_a_template_that_marks_a_question_as_generated_is_refused_by_name():
    wrong = "{% for m in messages %}{% generation %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n" + (
        "{% endgeneration %}{% endfor %}"
    )
    with pytest.raises(BadRow, match=r"marks turn 1 \(user\) as generated.*model\.chat_template"):
        trained(wrong, record(QUESTION, Turn("assistant", ANSWER)))


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{{ raise_exception('only for pictures') }}", "fails on a plain exchange of two turns: .*only for pictures"),
        (
            "{% for m in messages %}{% if m.role == 'user' %}{{ m.content }}{% endif %}{% endfor %}",
            "leaves out what the assistant",
        ),
        ("{% for m in messages %}", "not a Jinja template"),
    ],
)
def test_a_template_is_condemned_for_a_plain_exchange_alone(template, reason):
    tokenizer = family_tokenizer(CHATML)
    with pytest.raises(DataError, match=reason):
        ChatTemplate(tokenizer, template, "the chat template of x")
