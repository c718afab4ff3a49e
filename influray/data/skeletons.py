"""Plain conversations, read once per sequence of roles: what a pool mostly holds.

A sequence of roles is read over placeholders, and the template's text between them is kept. Put together with a row's
contents it must equal the template's rendering of the row, character for character. A row where it does not, or that
holds more than contents, is read on its own.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass

from influray.data.answers import Answer, AnsweredText, AnswerReader
from influray.data.records import BadRow, Record, Turn, is_blank
from influray.data.rendering import Conversation

MAX_SKELETONS, MAX_KEPT_TURNS = 1024, 64  # what is kept from row to row
_HOLDER = re.compile("\U000f1a63([0-9]+)\U000f1a64")
_PAD_LEFT, _PAD_RIGHT = "\n\u2003", "\u2003\n"  # white space around a placeholder tells how a template trims
_LEFT = {"": _PAD_LEFT, "n": "\u2003", "a": ""}  # what is left of it: nothing taken off, the newlines, all
_RIGHT = {"": _PAD_RIGHT, "n": "\u2003", "a": ""}


@dataclass(frozen=True, slots=True)
class _Skeleton:
    """`pieces[k]` stands before the k-th content and `pieces[-1]` after the last, `private` are the same with the
    private names of special tokens. `turns[k]` is the turn of the k-th content, `trims[k]` which white space the
    template takes off it, left and right: "" none, "n" newlines, "a" all. `answers` are (turn, start, stop, end), each
    position as (content, does it follow that, distance)."""

    pieces: tuple[str, ...]
    private: tuple[str, ...]
    turns: tuple[int, ...]
    trims: tuple[tuple[str, str], ...]
    answers: tuple[tuple[int, tuple[_Point, _Point, _Point]], ...]


_Point = tuple[int, bool, int]


class Skeletons:
    """The skeletons of a reader's template."""

    def __init__(self, reader: AnswerReader) -> None:
        self._reader = reader
        self._known: dict[tuple[str, ...], _Skeleton | None] = {}

    def read(self, record: Record, real: str) -> AnsweredText | None:
        """Return the reading of a plain record whose rendering is `real`, None where it has to be read on its own."""
        key = _shape(record)
        if key is None:
            return None
        if key in self._known:
            skeleton = self._known[key]
        else:
            skeleton = self._made(record)
            if len(self._known) >= MAX_SKELETONS:
                self._known.clear()
            if len(key) <= MAX_KEPT_TURNS:
                self._known[key] = skeleton
        if skeleton is None:
            return None
        trimmed = zip(skeleton.turns, skeleton.trims, strict=True)
        contents = [_trimmed(record.turns[turn].content, trim) for turn, trim in trimmed]
        if _joined(skeleton.pieces, contents) != real:
            return None
        starts = []
        position = 0
        for piece, content in zip(skeleton.private, contents, strict=False):
            position += len(piece)
            starts.append(position)
            position += len(content)

        def placed(point: _Point) -> int:
            k, follows, distance = point
            return starts[k] + (len(contents[k]) if follows else 0) + distance

        answers = tuple(Answer(turn, *map(placed, points)) for turn, points in skeleton.answers)
        return AnsweredText(_joined(skeleton.private, contents), answers, (), ())

    def _made(self, record: Record) -> _Skeleton | None:
        turns = [
            Turn(turn.role, f"\U000f1a63{i}\U000f1a64" if turn.content else "") for i, turn in enumerate(record.turns)
        ]
        conversation = self._conversation(record, turns)
        try:
            text = self._reader.template.render(conversation)
            reading = self._reader.read(conversation, text)
        except BadRow:
            return None  # the row's own contents tell why
        pieces, private = _HOLDER.split(text), _HOLDER.split(reading.text)
        order = list(map(int, pieces[1::2]))
        if order != [i for i, turn in enumerate(turns) if turn.content] or reading.gone or reading.cut:
            return None
        spans, position = [], 0
        for number, piece in enumerate(private):
            if number % 2:
                spans.append((position, position + len(piece) + 2))
            position += len(piece) + 2 * (number % 2)

        def point(turn: int, position: int) -> _Point:
            k = order.index(turn)
            start, stop = spans[k]
            return (k, False, position - start) if position <= start else (k, True, position - stop)

        answers = tuple(
            (
                answer.turn,
                (point(answer.turn, answer.start), point(answer.turn, answer.stop), point(answer.turn, answer.end)),
            )
            for answer in reading.answers
        )
        padded = [Turn(turn.role, turn.content and _PAD_LEFT + turn.content + _PAD_RIGHT) for turn in turns]
        try:
            wide = _HOLDER.split(self._reader.template.render(self._conversation(record, padded)))[::2]
        except BadRow:
            wide = pieces[::2]
        trims = _trims(pieces[::2], wide if len(wide) == len(pieces[::2]) else pieces[::2])
        return _Skeleton(tuple(pieces[::2]), tuple(private[::2]), tuple(order), trims, answers)

    def _conversation(self, record: Record, turns: Sequence[Turn]) -> Conversation:
        plain = Record(None, "", tuple(turns), None, (), record.template_options)
        return self._reader.template.conversation(plain)


def _shape(record: Record) -> tuple[str, ...] | None:
    """Return what a skeleton depends on, None for a record that is more than roles and contents."""
    if record.tools or any(turn.extra for turn in record.turns):
        return None
    shape = []
    for turn in record.turns:
        if turn.content and is_blank(turn.content):
            return None
        shape.append(turn.role if turn.content else f"no {turn.role}")
    if record.template_options:
        shape.append(json.dumps(record.template_options, sort_keys=True, default=repr))
    return tuple(shape)


def _joined(pieces: Sequence[str], contents: Sequence[str]) -> str:
    texts = [pieces[0]]
    for piece, content in zip(pieces[1:], contents, strict=True):
        texts += (content, piece)
    return "".join(texts)


def _trims(pieces: Sequence[str], padded: Sequence[str]) -> tuple[tuple[str, str], ...]:
    before, after = [], []  # what is taken off the content before a piece, at its right, and the one after it
    for plain, wide in zip(pieces, padded, strict=True):
        fits = ((b, a) for b in _RIGHT for a in _LEFT if wide == _RIGHT[b] + plain + _LEFT[a])
        # Where nothing fits, the template does something else, and the comparison finds that out row by row.
        b, a = next(fits, ("", ""))
        before.append(b)
        after.append(a)
    return tuple(zip(after[:-1], before[1:], strict=True))


def _trimmed(text: str, trim: tuple[str, str]) -> str:
    left, right = trim
    text = text.lstrip() if left == "a" else text.lstrip("\n") if left == "n" else text
    return text.rstrip() if right == "a" else text.rstrip("\n") if right == "n" else text
