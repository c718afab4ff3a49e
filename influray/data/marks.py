"""Marks in the texts of a conversation, by which a rendering tells what of it comes from which turn.

A mark stands after a word, so that it survives what templates do to a text: trimming, splitting, escaping. It never
stands inside a string that the template itself looks for, such as `</think>`. Taking the marks off a marked rendering
must give the real one; where it does not, the template has seen one of them, and that one is left out.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from influray.data.records import is_blank

OPEN, CLOSE = "\U000f1a61", "\U000f1a62"
MARK = re.compile(f"{OPEN}([0-9]+){CLOSE}")
# What of a message is text that its speaker said; transformers fills the first name of the reasoning from the others.
REASONING = ("reasoning_content", "thinking", "reasoning")
CALLS = ("tool_calls", "function_call")
_SAID = {"assistant": ("content", *REASONING, *CALLS)}
_HANDLES = ("type", "id", "tool_call_id")  # of no interest to a reader, and compared by templates
_WORD = re.compile(r"\w+")
ALL_WORDS, SOME_WORDS = 800, 24  # characters of a text that is marked after each word; marks in a longer one, about
NEAR = 200  # characters before the end of a text, or before a string to be kept whole, in which its last word is sought

Path = tuple[str | int, ...]


@dataclass(frozen=True, slots=True)
class Place:
    """Where a mark can stand: after `text[:offset]` of the string at `path` of a message.

    `word` characters before it are the word it stands after; `spelled` says that it breaks a special token's name.
    """

    turn: int
    path: Path
    text: str
    offset: int
    word: int
    spelled: bool


def mark(number: int) -> str:
    """Return a mark."""
    return f"{OPEN}{number}{CLOSE}"


def said(message: dict[str, Any]) -> Iterator[tuple[Path, str]]:
    """Yield (path, text) of each string of a message that is no handle and not blank, in order."""
    reasoned = False
    for key in _SAID.get(message["role"], ("content",)):
        if key in REASONING:
            if reasoned or message.get(key) is None:
                continue
            reasoned = True
        yield from _strings(message.get(key), (key,))


def says_something(message: dict[str, Any]) -> bool:
    """Return whether a message has a visible character that its speaker said, or calls something."""
    return any(not is_blank(text) for _, text in said(message))


def find_places(
    messages: Sequence[dict[str, Any]], literals: Sequence[str], first_special: Callable[[str, int], Any]
) -> list[Place]:
    """Return where marks can stand. `literals` are strings that must stay whole; `first_special` finds a name."""
    return [
        Place(turn, path, text, *found)
        for turn, message in enumerate(messages)
        for path, text in said(message)
        for found in _offsets(text, literals, first_special, ALL_WORDS if message["role"] == "assistant" else 0)
    ]


def with_marks(messages: Sequence[dict[str, Any]], places: Sequence[Place], used: Collection[int]) -> list[Any]:
    """Return the messages with the marks of the places numbered in `used`."""
    marks: dict[tuple[int, Path], list[int]] = {}
    for number in used:
        marks.setdefault((places[number].turn, places[number].path), []).append(number)

    def copy(value: Any, turn: int, path: Path) -> Any:
        if isinstance(value, str):
            numbers = marks.get((turn, path))
            return value if numbers is None else _marked(value, numbers, places)
        if isinstance(value, dict):
            return {key: copy(item, turn, (*path, key)) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [copy(item, turn, (*path, i)) for i, item in enumerate(value)]
        return value

    touched = {turn for turn, _ in marks}
    return [copy(message, turn, ()) if turn in touched else message for turn, message in enumerate(messages)]


def unmarked(text: str) -> tuple[str, list[tuple[int, int]]]:
    """Return a text without its marks, and (position, number) of each, in order."""
    pieces = MARK.split(text)
    found, position = [], 0
    for piece, number in zip(pieces[::2], pieces[1::2], strict=False):
        position += len(piece)
        found.append((position, int(number)))
    return "".join(pieces[::2]), found


def settle(numbers: Sequence[int], fits: Callable[[Sequence[int]], bool], tries: int = 48) -> list[int]:
    """Return the marks that leave the rendering as it is, as many as `tries` renderings find, by halving.

    What `fits` accepted last are the marks returned, where there are any.
    """
    if not numbers or fits(numbers):
        return list(numbers)
    left = tries

    def harmless(some: Sequence[int]) -> list[int]:
        nonlocal left
        if not some or left <= 0:
            return []
        left -= 1
        if fits(some):
            return list(some)
        middle = len(some) // 2
        return harmless(some[:middle]) + harmless(some[middle:]) if middle else []

    middle = len(numbers) // 2
    found = harmless(numbers[:middle]) + harmless(numbers[middle:])
    while found and not fits(found):  # harmless alone and not together: the first half may be
        found = found[: len(found) // 2]
    return found


def _strings(value: Any, path: Path) -> Iterator[tuple[Path, str]]:
    if isinstance(value, str):
        if value.strip():
            yield path, value
    elif isinstance(value, dict):
        for key, item in value.items():
            if key not in _HANDLES:
                yield from _strings(item, (*path, key))
    elif isinstance(value, list | tuple):
        for i, item in enumerate(value):
            yield from _strings(item, (*path, i))


def _offsets(
    text: str, literals: Sequence[str], first_special: Callable[[str, int], Any], all_words: int
) -> Iterator[tuple[int, int, bool]]:
    """Yield (offset, length of the word before, breaks a special token's name), ascending."""
    whole = [match.span() for literal in literals if literal in text for match in re.finditer(re.escape(literal), text)]
    found: dict[int, tuple[int, bool]] = {}
    for start, stop in _words(text, whole, all_words):
        if not any(begin < stop < end for begin, end in whole):
            found[stop] = (stop - start, False)
    if not found:
        end = len(text.rstrip())
        if not any(begin < end < stop for begin, stop in whole):
            found[end] = (1, False)
    at = 0
    while match := first_special(text, at):
        found[match.start() + 1] = (1, True)
        at = match.end()
    for offset in sorted(found):
        yield offset, *found[offset]


def _words(text: str, literals: Sequence[tuple[int, int]], all_words: int) -> Iterator[tuple[int, int]]:
    """Yield (start, stop) of words: all of a text of up to `all_words` characters, else some.

    Those are spread over the text, and next to where a template may cut; where `all_words` is 0, the first and last.
    """
    if len(text) <= all_words:
        yield from (match.span() for match in _WORD.finditer(text))
        return
    spread = range(0, len(text), len(text) // SOME_WORDS) if all_words else (0,)
    for at in {*spread, *(stop for _, stop in literals)}:
        if match := _WORD.search(text, at):
            begin = match.start()
            while begin and _WORD.match(text, begin - 1):
                begin -= 1
            yield begin, match.end()
    for at in {len(text), *(start for start, _ in literals)}:
        yield from [match.span() for match in _WORD.finditer(text, max(0, at - NEAR), at)][-1:]


def _marked(text: str, numbers: Sequence[int], places: Sequence[Place]) -> str:
    pieces, at = [], 0
    for number in numbers:
        pieces += (text[at : places[number].offset], mark(number))
        at = places[number].offset
    return "".join([*pieces, text[at:]])
