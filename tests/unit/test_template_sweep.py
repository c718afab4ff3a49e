"""The templates of real model families, as trl's wheel carries them, times kinds of conversations.

`python -m tests.unit.test_template_sweep` prints the table of docs/data.md.
"""

from __future__ import annotations

import datetime
import functools
import importlib.util
import re
from pathlib import Path

import jinja2
import pytest
from transformers.utils import chat_template_utils

from influray.data.answers import AnswerReader
from influray.data.chat import ChatEncoder
from influray.data.records import BadRow
from influray.data.rendering import CLOCK
from tests.unit.families import KINDS, QUESTION, family_tokenizer, record

DOCS = Path(__file__).parents[2] / "docs" / "data.md"
TRL = importlib.util.find_spec("trl")  # found, not imported: its templates are files
FOLDER = Path(TRL.origin).parent / "chat_templates" if TRL and TRL.origin else None
NAMES = sorted(path.stem for path in FOLDER.glob("*.jinja")) if FOLDER else []
# yes: as transformers, all answers trained; part: so, and the row says what the template cuts; no: refused.
YES, PART, NO = "yes", "part", "no"

needs_trl = pytest.mark.skipif(not NAMES, reason="trl is not installed")


class Standing(datetime.datetime):
    @classmethod
    def now(cls, tz=None):
        return CLOCK


@functools.cache
def encoder(name: str) -> ChatEncoder:
    assert FOLDER is not None
    return ChatEncoder(family_tokenizer((FOLDER / f"{name}.jinja").read_text(encoding="utf-8")), "auto", 100_000)


def own_rendering(name: str, kind: str) -> list[int] | str:
    """Return the token ids by transformers alone, or its refusal."""
    tokenizer = encoder(name)._template._tokenizer
    turns, tools, _ = KINDS[kind]
    messages = [turn.message() for turn in turns]
    if encoder(name)._template.conversation(record("plain")).messages[0]["content"] != QUESTION.content:
        for message in messages:
            if isinstance(message["content"], str):
                message["content"] = [{"type": "text", "text": message["content"]}]
    try:
        return list(tokenizer.apply_chat_template(messages, tools=list(tools) or None, return_dict=False))
    except (jinja2.TemplateError, TypeError, ValueError, LookupError, AttributeError) as error:
        return str(error)


def outcome(name: str, kind: str) -> str:
    """Return YES, PART or NO; fail where neither transformers' text nor its refusal is given."""
    real = own_rendering(name, kind)
    (encoded,) = encoder(name).encode_many([record(kind)])
    if isinstance(encoded, BadRow):
        own = isinstance(real, str) and real in encoded.reason
        assert own or re.search(r"leaves nothing of turn 2 .*give model\.chat_template", encoded.reason), encoded.reason
        return NO
    assert encoded.input_ids.tolist() == real, (name, kind)
    tokenizer = encoder(name)._template._tokenizer
    spans = encoded.loss_spans.reshape(-1, 2).tolist()
    trained = "".join(tokenizer.decode(encoded.input_ids[start:stop]) for start, stop in spans)
    turns, _, wanted = KINDS[kind]
    for turn in turns:
        assert turn.role == "assistant" or turn.content == "" or turn.content not in trained
    missing = [text for text in wanted if text not in trained]
    assert not missing or encoded.cut_by_template, (missing, trained)
    return PART if encoded.cut_by_template else YES


def table() -> str:
    """Return the outcomes as Markdown; families whose templates end alike share a line."""
    lines: dict[tuple[str, ...], list[str]] = {}
    for name in NAMES:
        lines.setdefault(tuple(outcome(name, kind) for kind in KINDS), []).append(name)
    head = ["| templates | " + " | ".join(KINDS) + " |", "|---" * (len(KINDS) + 1) + "|"]
    body = ["| " + ", ".join(f"`{n}`" for n in names) + " | " + " | ".join(row) + " |" for row, names in lines.items()]
    return "\n".join([*head, *body])


@needs_trl
@pytest.mark.parametrize("name", NAMES)
def test_text_and_tokens_are_those_of_transformers_or_its_refusal(name, monkeypatch):
    monkeypatch.setattr(chat_template_utils, "datetime", Standing)
    outcomes = {kind: outcome(name, kind) for kind in KINDS}
    assert outcomes["plain"] == YES
    assert outcomes["multi-turn"] == YES


@needs_trl
def test_the_table_in_the_docs_is_what_comes_out(monkeypatch):
    monkeypatch.setattr(chat_template_utils, "datetime", Standing)
    assert table() in DOCS.read_text(encoding="utf-8"), "make it anew: python -m tests.unit.test_template_sweep"


@needs_trl
@pytest.mark.parametrize("name", [name for name in NAMES if name.endswith("_training")])
def test_answers_found_in_the_text_agree_with_what_a_template_marks_as_generated(name):
    """trl's authors marked by hand what this package finds: but for headers and white space, both are the same."""
    theirs = encoder(name)
    source = theirs._template.source
    bare = re.sub(r"\{%(-?)\s*(?:end)?generation\s*(-?)%\}", r"{%\1 set none_of_it = 0 \2%}", source)
    tokenizer = family_tokenizer(bare, theirs._template._tokenizer.eos_token)
    ours = ChatEncoder(tokenizer, "auto", 100_000)
    assert isinstance(theirs._reader, AnswerReader)
    for kind in KINDS:
        try:
            marked, found = theirs.encode(record(kind)), ours.encode(record(kind))
        except BadRow:
            continue
        assert marked.input_ids.tolist() == found.input_ids.tolist()
        for more, less in (
            (marked.loss_mask & ~found.loss_mask, "marked"),
            (found.loss_mask & ~marked.loss_mask, "found"),
        ):
            text = str(tokenizer.decode(marked.input_ids[more]))
            # Headers that trl trains, prompts to think, a second end token, and what asks for a tool's answer.
            rest = re.sub(
                r"<\|start\|>assistant|<\uff5cAssistant\uff5c>|<think>(\n\n</think>\n\n)?|<\|tool_response>|<\|user\|>|<\|end\|>",
                "",
                text,
            )
            assert not rest.strip(), (kind, less, text)


if __name__ == "__main__":
    setattr(chat_template_utils, "datetime", Standing)  # noqa: B010
    print(table())
