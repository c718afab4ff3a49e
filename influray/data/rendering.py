"""A chat template run as transformers runs it: whole messages, the record's tools and options, and a clock that stands.

What is rendered here is the text: other modules find out what of it an answer is, and none of them writes any.
"""

from __future__ import annotations

import datetime
import inspect
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import jinja2

from influray.data.records import BadRow, Record
from influray.protocols import DataError

# The Tulu style, for tokenizers without a template of their own: arXiv 2306.04751, section 3. It knows no reasoning and
# no tools; here reasoning stands before the content, calls as a line of JSON each after it, and tools first of all.
TULU = (
    "{% if tools %}{{ '<|tools|>\n' + (tools | tojson) + '\n' }}{% endif %}"
    "{% for message in messages %}"
    "<|{{ message['role'] }}|>\n"
    "{% set thought = message['reasoning_content'] %}"
    "{% if thought %}{{ '<think>\n' + thought + '\n</think>\n\n' }}{% endif %}"
    "{{ message['content'] or '' }}"
    "{% for call in message['tool_calls'] or [] %}"
    "{{ ('\n' if message['content'] or not loop.first else '') + ((call['function'] or call) | tojson) }}"
    "{% endfor %}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}"
    "{% if not loop.last or message['role'] != 'assistant' %}{{ '\n' }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)
# A template that writes today's date would make the same data other bytes tomorrow, so the clock stands at one date:
# the one that Llama's template falls back to.
CLOCK = datetime.datetime(2024, 7, 26)
_GENERATION = re.compile(r"\{%[-+]?\s*generation\s*[-+]?%\}")
_PERCENT = "\U000f1a5e"  # stands for "%%" while the directives are written out
_PROBE = (("user", "What is a name?"), ("assistant", "A word."))
# What a template may raise on a row that it does not expect.
_REFUSALS = (
    jinja2.TemplateError,
    TypeError,
    ValueError,
    LookupError,
    AttributeError,
    ArithmeticError,
    RecursionError,
)


@dataclass(frozen=True, slots=True)
class Conversation:
    """What a template gets: messages, the functions they may call (None: none), further arguments."""

    messages: list[dict[str, Any]]
    tools: list[Any] | None = None
    options: Mapping[str, Any] = field(default_factory=dict)

    def until(self, turn: int) -> Conversation:
        """Return the conversation before a turn."""
        return Conversation(self.messages[:turn], self.tools, self.options)


class ChatTemplate:
    """The template `source` run by a tokenizer. `name` is how messages call it.

    `tool_source` is the template for records with tools, where the tokenizer keeps one apart. Templates that read the
    content of a message only as a list of parts get it so, which a plain exchange tells. `after_an_answer` is what is
    written after the last answer of such an exchange.

    Raises:
        DataError: it is no Jinja template, or it fails on a plain exchange or leaves out what that says.
    """

    def __init__(self, tokenizer: Any, source: str, name: str, tool_source: str | None = None) -> None:
        self._tokenizer = tokenizer
        self.source = source
        self.tool_source = source if tool_source is None else tool_source
        self.name = name
        self._sources = {text: standing(text) for text in (self.source, self.tool_source)}
        self._reserved = inspect.signature(tokenizer.apply_chat_template).parameters.keys()
        self.after_an_answer = self._probe()

    def conversation(self, record: Record) -> Conversation:
        """Return what the template gets of a record. Raises BadRow for an option that is transformers' own."""
        for key in record.template_options:
            if key in self._reserved:
                raise BadRow(f"chat_template_kwargs: {key} is not an argument of a template but of transformers")
        messages = [self._message(turn.message()) for turn in record.turns]
        return Conversation(messages, list(record.tools) or None, record.template_options)

    def render(self, conversation: Conversation, prompt: bool = False) -> str:
        """Return the text of a conversation, with `prompt` as one that asks for the next answer.

        Raises:
            BadRow: the template refuses it, in its own words.
        """
        try:
            return self._tokenizer.apply_chat_template(
                conversation.messages,
                chat_template=self._source(conversation),
                tools=conversation.tools,
                tokenize=False,
                add_generation_prompt=prompt,
                **conversation.options,
            )
        except jinja2.TemplateSyntaxError as error:
            raise DataError(f"{self.name}: not a Jinja template: {error}") from error
        except _REFUSALS as error:
            raise BadRow(f"the chat template refuses this conversation: {_words(error)}") from error

    def generated(self, conversation: Conversation) -> list[tuple[int, int]] | None:
        """Return which characters of the text the template marks as generated, None where it marks none at all."""
        if not _GENERATION.search(self._source(conversation)):
            return None
        from transformers.utils.chat_template_utils import render_jinja_template

        messages = [{k: v for k, v in message.items() if v is not None} for message in conversation.messages]
        try:
            rendered: Any = render_jinja_template(
                conversations=[messages],
                tools=conversation.tools,
                chat_template=self._source(conversation),
                return_assistant_tokens_mask=True,
                **{**self._tokenizer.special_tokens_map, **conversation.options},
            )
        except _REFUSALS as error:
            raise BadRow(f"the chat template refuses this conversation: {_words(error)}") from error
        return [(start, stop) for start, stop in rendered[1][0] if start < stop]

    @cached_property
    def literals(self) -> tuple[str, ...]:
        """The strings in the template's code that hold a word and more: what it may look for in a content."""
        found: set[str] = set()
        lexer = jinja2.Environment(autoescape=False)  # noqa: S701  (only its words are read, nothing is rendered)
        for source in {self.source, self.tool_source}:
            for _, kind, text in lexer.lex(source):
                inner = text[1:-1].strip() if kind == "string" else ""
                if re.search(r"\w", inner) and not inner.isalnum():
                    found.add(inner)
        return tuple(sorted(found))

    def _source(self, conversation: Conversation) -> str:
        return self._sources[self.tool_source if conversation.tools else self.source]

    def _message(self, message: dict[str, Any]) -> dict[str, Any]:
        if self._parts and isinstance(message.get("content"), str):
            message["content"] = [{"type": "text", "text": message["content"]}]
        return message

    def _probe(self) -> str:
        """Find out whether contents must be lists of parts; return the text after the answer of a plain exchange."""
        missing = refusal = None
        for parts in (False, True):
            self._parts = parts
            messages = [self._message({"role": role, "content": text}) for role, text in _PROBE]
            try:
                rendered = self.render(Conversation(messages))
            except BadRow as bad:
                refusal = refusal or bad.reason
                continue
            left_out = [role for role, text in _PROBE if text not in rendered]
            if not left_out:
                return rendered.rpartition(_PROBE[-1][1])[2]
            missing = missing or left_out[0]
        if missing is None:
            raise DataError(f"{self.name} fails on a plain exchange of two turns: {refusal}")
        raise DataError(
            f"{self.name} leaves out what the {missing} says in a plain exchange of two turns, given as a string and "
            "as a list of parts; give model.chat_template a file that writes it"
        )


def standing(source: str) -> str:
    """Return the template with a function `strftime_now` of its own, which tells CLOCK in whatever form is asked for.

    transformers' clock is a global of its environment and no argument can stand before it; a macro does. It is one
    like any other function: it may be given another name, and its format may be computed.
    """
    if "strftime_now" not in source:
        return source
    text = f"format | replace('%%', '{_PERCENT}')"
    for directive in "aAwdbBmyYHIMSfpjUWcxXGuVzZeDFTRhnCklPrst":
        plain = CLOCK.strftime(f"%{directive}")
        for form, value in ((directive, plain), (f"-{directive}", plain.lstrip("0") or "0")):
            text += f" | replace({f'%{form}'!r}, {value!r})"
    macro = f"{{% macro strftime_now(format) %}}{{{{ {text} | replace('{_PERCENT}', '%') }}}}{{% endmacro %}}"
    return f"{macro}\n{source}"  # trim_blocks takes this line end off, and none of the template's own


def _words(error: BaseException) -> str:
    return str(error) or type(error).__name__
