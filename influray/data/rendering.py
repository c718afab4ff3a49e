"""A chat template taken apart: what of a rendering is the template's own text, and where each content stands in it.

The template is run once over marks in place of the contents, per sequence of roles; the text between the marks is
the template's. Put together with a row's contents it must equal the template's rendering of the row, character for
character, so a template that does something else with a content is found out and never guessed at.
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jinja2

from influray.data.records import BadRow, Turn
from influray.protocols import DataError

# The Tulu style, for tokenizers without a template of their own: arXiv 2306.04751, section 3.
TULU = (
    "{% for message in messages %}"
    "<|{{ message['role'] }}|>\n{{ message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}"
    "{% if not loop.last or message['role'] != 'assistant' %}{{ '\n' }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)
# A template that writes today's date would make the same data other bytes tomorrow, so its calls of the clock become
# one date: the one that Llama's template falls back to.
_DATE = datetime.datetime(2024, 7, 26)
_CLOCK = re.compile(r"""strftime_now\(\s*(["'])(.*?)\1\s*\)""")
_MARK = re.compile("\U000f1a61([0-9]+)\U000f1a62")
_PAD_LEFT, _PAD_RIGHT = "\n\u2003", "\u2003\n"  # white space around a mark tells how a template trims
_LEFT = {"": _PAD_LEFT, "n": "\u2003", "a": ""}  # what is left of it: nothing taken off, the newlines, all
_RIGHT = {"": _PAD_RIGHT, "n": "\u2003", "a": ""}
_REFUSALS = (jinja2.TemplateError, TypeError, ValueError, KeyError, AttributeError, IndexError)
MAX_PREFIXES = 64  # prefixes checked per sequence of roles, half from each end: all would be quadratic
MAX_SKELETONS, MAX_KEPT_TURNS = 1024, 64  # what is kept from row to row
MAX_REWRITTEN_TURNS = 200


@dataclass(frozen=True, slots=True)
class Skeleton:
    """A sequence of roles as the template writes it.

    `pieces[i]` stands before the content of turn i and `pieces[-1]` after the last; `trims[i]` says which white
    space the template takes off that content, left and right: "" none, "n" newlines, "a" all.
    """

    pieces: tuple[str, ...]
    trims: tuple[tuple[str, str], ...]


class ChatTemplate:
    """The template `source` run by a tokenizer. `name` is how messages call it."""

    def __init__(self, tokenizer: Any, source: str, name: str) -> None:
        self._tokenizer = tokenizer
        self.source = source
        self.name = name
        self._timeless = _CLOCK.sub(lambda call: repr(_DATE.strftime(call[2])), source)
        if "strftime_now(" in self._timeless:
            raise DataError(
                f"{name}: the chat template writes today's date in a computed form, so the same data would give other "
                "tokens tomorrow; give model.chat_template a file with a fixed date"
            )
        self._skeletons: dict[tuple[str, ...], Skeleton | BadRow] = {}

    def render(self, turns: Sequence[Turn], contents: Sequence[str] | None = None) -> str:
        """Return the text of a conversation. Raises BadRow where the template refuses it."""
        texts = [turn.content for turn in turns] if contents is None else contents
        messages = [{"role": turn.role, "content": text} for turn, text in zip(turns, texts, strict=True)]
        try:
            return self._tokenizer.apply_chat_template(messages, chat_template=self._timeless, tokenize=False)
        except jinja2.TemplateSyntaxError as error:
            raise DataError(f"{self.name}: not a Jinja template: {error}") from error
        except _REFUSALS as error:
            raise BadRow(f"the chat template refuses this conversation: {error}") from error

    def skeleton(self, turns: Sequence[Turn]) -> Skeleton:
        """Return the skeleton of these turns' roles.

        Raises:
            BadRow: the template refuses the roles, or writes a turn not at all.
            DataError: it is not prefix-stable: a later turn changes the text of what stands before it.
        """
        roles = tuple(turn.role for turn in turns)
        known = self._skeletons.get(roles)
        if known is None:
            try:
                known = self._take_apart(turns)
            except BadRow as bad:
                known = bad
            if len(self._skeletons) >= MAX_SKELETONS:
                self._skeletons.clear()
            if len(roles) <= MAX_KEPT_TURNS:
                self._skeletons[roles] = known
        if isinstance(known, BadRow):
            raise BadRow(known.reason)
        return known

    def contents(self, turns: Sequence[Turn], skeleton: Skeleton) -> list[str]:
        """Return each turn's content as it stands in the rendering.

        Raises:
            BadRow: the template changes an assistant's content beyond trimming it, so that what would be trained is
                not what the row says; or it makes something of the contents that depends on one another.
        """
        texts = [_trimmed(turn.content, trim) for turn, trim in zip(turns, skeleton.trims, strict=True)]
        real = self.render(turns)
        if assemble(skeleton.pieces, texts) == real:
            return texts
        texts = self._rewritten(turns, skeleton, texts)
        if assemble(skeleton.pieces, texts) != real:
            raise BadRow("the chat template rewrites this conversation, so its answers cannot be found in the text")
        return texts

    def _take_apart(self, turns: Sequence[Turn]) -> Skeleton:
        marks = _marks(len(turns))
        text = self.render(turns, marks)
        pieces = _MARK.split(text)  # text, number, text, number, ..., text
        order, pieces = [int(number) for number in pieces[1::2]], pieces[::2]
        for i, turn in enumerate(turns):
            if i >= len(order) or order[i] != i:
                if i not in order:
                    raise BadRow(f"the chat template leaves out turn {i + 1} ({turn.role})")
                raise self._unstable(turns, i)
        if len(order) > len(turns):
            raise self._unstable(turns, order[len(turns)])
        answers = [i for i, turn in enumerate(turns) if turn.role == "assistant" and i > 0]
        if len(answers) > MAX_PREFIXES:
            answers = answers[: MAX_PREFIXES // 2] + answers[-MAX_PREFIXES // 2 :]
        for i in answers:
            if not text.startswith(self.render(turns[:i], marks[:i])):
                raise self._unstable(turns, i)
        padded = _MARK.split(self.render(turns, [_PAD_LEFT + mark + _PAD_RIGHT for mark in marks]))[::2]
        trims = _trims(pieces, padded if len(padded) == len(pieces) else pieces)
        return Skeleton(tuple(pieces), trims)

    def _rewritten(self, turns: Sequence[Turn], skeleton: Skeleton, texts: list[str]) -> list[str]:
        """Find what the template makes of each prompt content by rendering it alone among the marks."""
        if len(turns) > MAX_REWRITTEN_TURNS:
            raise BadRow(f"the chat template rewrites one of more than {MAX_REWRITTEN_TURNS} turns")
        marks = _marks(len(turns))
        found = list(texts)
        for i, turn in enumerate(turns):
            if turn.role == "assistant":
                continue
            text = self.render(turns, [*marks[:i], turn.content, *marks[i + 1 :]])
            head = assemble(skeleton.pieces[: i + 1], marks[:i])
            tail = assemble(skeleton.pieces[i + 1 :], marks[i + 1 :])
            if len(text) < len(head) + len(tail) or not (text.startswith(head) and text.endswith(tail)):
                raise BadRow(f"the chat template rewrites more than turn {i + 1} ({turn.role}) because of its content")
            found[i] = text[len(head) : len(text) - len(tail)]
        return found

    def _unstable(self, turns: Sequence[Turn], i: int) -> DataError:
        roles = ", ".join(turn.role for turn in turns[:12]) + (", ..." if len(turns) > 12 else "")
        return DataError(
            f"{self.name}: the chat template is not prefix-stable: in a conversation of the roles {roles}, the text up "
            f"to turn {i + 1} depends on the turns after it, so the model would not see in use what it is trained on; "
            "give model.chat_template a file with one that is"
        )


def assemble(pieces: Sequence[str], contents: Sequence[str]) -> str:
    """Return pieces[0] + contents[0] + pieces[1] + ... + pieces[-1]; one piece more than contents."""
    texts = [pieces[0]]
    for piece, content in zip(pieces[1:], contents, strict=True):
        texts += (content, piece)
    return "".join(texts)


def _marks(count: int) -> list[str]:
    return [f"\U000f1a61{i}\U000f1a62" for i in range(count)]


def _trims(pieces: Sequence[str], padded: Sequence[str]) -> tuple[tuple[str, str], ...]:
    before, after = [], []  # what is taken off the content before a piece, at its right, and the one after it
    for plain, wide in zip(pieces, padded, strict=True):
        fits = ((b, a) for b in _RIGHT for a in _LEFT if wide == _RIGHT[b] + plain + _LEFT[a])
        # Where nothing fits, the template does something else, and `contents` finds that out row by row.
        b, a = next(fits, ("", ""))
        before.append(b)
        after.append(a)
    return tuple(zip(after[:-1], before[1:], strict=True))


def _trimmed(text: str, trim: tuple[str, str]) -> str:
    left, right = trim
    text = text.lstrip() if left == "a" else text.lstrip("\n") if left == "n" else text
    return text.rstrip() if right == "a" else text.rstrip("\n") if right == "n" else text
