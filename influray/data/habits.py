"""What a chat template writes around any plain answer, and the comparing of its texts that tells so."""

from __future__ import annotations

import re
from dataclasses import dataclass

from influray.data.records import BadRow, Record, Turn
from influray.data.rendering import ChatTemplate
from influray.data.vocabulary import PRIVATE, PrivateVocabulary

EXCHANGE = ("One", "Two", "Three", "Four")
# Two texts of a template are compared by words, tags and special tokens, since the letters of different ones agree.
_UNITS = re.compile(rf"{PRIVATE.pattern}|<[^<>\s]{{1,60}}>|\[[^\[\]\s]{{1,60}}\]|\w+|.", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Habits:
    """What a template writes around a plain answer: after a user's words, as header, and as its last special token.

    `prompts` says whether it writes more where an answer is asked for; without that a header is what stands before
    the answer's first word.
    """

    after_user: str = ""
    header: str = ""
    end: str = ""
    prompts: bool = True


def common(one: str, other: str) -> int:
    """Return how long a beginning two texts share, in whole words, tags and special tokens."""
    length = 0
    for mine, its in zip(_UNITS.finditer(one), _UNITS.finditer(other), strict=False):
        if mine[0] != its[0]:
            break
        length = mine.end()
    return length


def shared(one: str, other: str) -> str:
    """Return the beginning that two texts share."""
    return one[: common(one, other)]


def without_thought(template: ChatTemplate, vocabulary: PrivateVocabulary, header: str) -> str:
    """Return a header without what an answer may begin with itself, such as the `<think>` of a prompt to think.

    An answer is trained whole where it stands to the letter, so its reasoning is to be where it stands apart.
    """
    question, thought, answer, _ = EXCHANGE
    asked = Turn("user", question)

    def rendered(*answers: Turn) -> str:
        return template.render(template.conversation(Record(None, "", (asked, *answers), None)))

    try:
        apart = rendered(Turn("assistant", answer, {"reasoning_content": thought}))
    except BadRow:
        return header
    plain = vocabulary.plain(header)
    at, stop = apart.rfind(plain), apart.rfind(answer) + len(answer)
    if thought not in apart or at < 0:
        return header
    for unit in reversed([*_UNITS.finditer(header)]):
        kept = len(vocabulary.plain(header[: unit.start()]))
        rest = len(vocabulary.plain(header[: unit.end()]))
        if unit[0].isspace() or not kept:
            continue
        try:
            spelled = rendered(Turn("assistant", apart[at + kept : stop]))
            other = rendered(Turn("assistant", question + apart[at + rest : stop]))
        except BadRow:
            continue
        if spelled == apart != other:  # the answer says it, and not just anything in its place
            return header[: unit.start()]
    return header


def squeezed(text: str) -> str:
    """Return a text without its white space."""
    return "".join(text.split())
