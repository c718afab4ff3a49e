"""The skills of the miniature world: problems with one right answer, ways to word them, ways to get them wrong.

A problem's `key` is its canonical form. The key alone decides whether the problem belongs to pretraining, pool,
targets or test, so no wording, order of operands or seed can carry a problem from one into another. Words and numbers
have one length and stand last in a question: a model of this size learns where to look long before what to look for.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import product
from random import Random

LETTERS = "abcdefghijklmnop"
SYLLABLES = ("ba", "do", "fi", "gu", "ka", "le", "mo", "nu", "pi", "ra", "so", "ti")
ENDINGS = ("lan", "mir", "na", "rik", "sa", "tor", "vel", "zo")
CITIES = ("Bern", "Cairo", "Delhi", "Kyiv", "Lima", "Oslo", "Paris", "Quito", "Rome", "Seoul", "Tunis", "Turin")
COLOURS = ("amber", "black", "blue", "brown", "gold", "green", "grey", "pink", "red", "teal", "white", "yellow")
PETS = ("cat", "crab", "dog", "duck", "frog", "goat", "hen", "horse", "mouse", "newt", "owl", "snail")
JOBS = ("baker", "clerk", "cook", "driver", "farmer", "judge", "miner", "nurse", "pilot", "singer", "tailor", "vet")
FACTS = {"city": CITIES, "colour": COLOURS, "pet": PETS, "job": JOBS}


@dataclass(frozen=True, slots=True)
class Limits:
    """How large the problems of a world are: what a base model was pretrained on, it must be tested on."""

    digits: int = 2  # of an operand
    people: int = 60  # of whom facts are known
    word: int = 4  # letters of a word, bits of a row


USUAL = Limits()


@dataclass(frozen=True, slots=True)
class Problem:
    """A question's content, apart from its wording."""

    key: str
    answer: str
    parts: Mapping[str, str]  # fills the wording


@dataclass(frozen=True)
class Wording:
    """A way to ask. `verbose` is the share of verbose answers it got in pretraining; None = never seen there."""

    text: str
    verbose: float | None


@dataclass(frozen=True, slots=True)
class PoolPart:
    """What the pool holds of a skill."""

    share: float  # of the pool's rows
    wrong: float  # share of wrong answers
    duplicates: float  # share of rows that copy an earlier one


@dataclass(frozen=True)
class Skill:
    """One kind of question."""

    name: str
    pool: PoolPart
    kinds: tuple[str, ...]
    make: Callable[[Random, str, Limits], Problem]
    spoil: Callable[[Random, str], str]  # a right answer -> a wrong one of the same form
    weight: float  # in the pretraining stream, relative to the others
    form: str  # how the targets want it answered; each task has a form of its own, which no other task teaches
    verbose: str  # how pretraining, and a part of the pool, answer instead
    wordings: tuple[Wording, ...]
    is_task: bool = True


def people(count: int) -> list[str]:
    """Return the first `count` names, two syllables first, three when those are used up."""
    short = [a.capitalize() + b for a, b in product(SYLLABLES, ENDINGS)]
    if count <= len(short):
        return short[:count]
    return (short + [a.capitalize() + b + c for a, b, c in product(SYLLABLES, SYLLABLES, ENDINGS)])[:count]


def fact(person: str, attribute: str) -> str:
    """Return the one value that holds in every world, whatever its seed."""
    values = FACTS[attribute]
    digest = hashlib.sha256(f"{person}/{attribute}".encode()).digest()
    return values[int.from_bytes(digest[:8], "big") % len(values)]


def _word(rng: Random, length: int) -> str:
    return "".join(rng.sample(LETTERS, length))


def _arithmetic(rng: Random, kind: str, limits: Limits) -> Problem:
    # Nothing is carried: each digit of the part is at most the total's. Carrying takes a small model long to learn.
    total = [rng.randint(2, 9), *(rng.randint(0, 9) for _ in range(limits.digits - 1))]
    part = [rng.randint(1, total[0] - 1), *(rng.randint(0, digit) for digit in total[1:])]
    a, b = (int("".join(map(str, digits))) for digits in (total, part))
    if kind == "plus":
        return Problem(f"{min(b, a - b)}+{max(b, a - b)}", str(a), {"p": f"{b}+{a - b}"})
    return Problem(f"{a}-{b}", str(a - b), {"p": f"{a}-{b}"})


# (left, right) bits that give the answer bit T or F.
_BITS = {
    "&": {"T": ("TT",), "F": ("TF", "FT", "FF")},
    "|": {"T": ("TF", "FT", "TT"), "F": ("FF",)},
    "^": {"T": ("TF", "FT"), "F": ("TT", "FF")},
}


def _logic(rng: Random, kind: str, limits: Limits) -> Problem:
    # The answer is drawn first: drawn from the operands, "&" would answer F three times in four.
    answer = "".join(rng.choice("TF") for _ in range(limits.word))
    pairs = [rng.choice(_BITS[kind][bit]) for bit in answer]
    left, right = "".join(p[0] for p in pairs), "".join(p[1] for p in pairs)
    return Problem(f"{min(left, right)}{kind}{max(left, right)}", answer, {"p": f"{left}{kind}{right}"})


def _code(rng: Random, kind: str, limits: Limits) -> Problem:
    word = _word(rng, limits.word)
    answer = {"upper": word.upper(), "twice": word * 2, "head": word[:2], "tail": word[-2:]}[kind]
    return Problem(f"{kind}('{word}')", answer, {"p": f"{kind}('{word}')"})


def _reversal(rng: Random, kind: str, limits: Limits) -> Problem:
    word = _word(rng, limits.word)
    return Problem(min(word, word[::-1]), word[::-1], {"p": word})


def _ordering(rng: Random, kind: str, limits: Limits) -> Problem:
    letters = rng.sample(LETTERS, limits.word)
    return Problem("".join(sorted(letters)), "".join(sorted(letters)), {"p": "".join(letters)})


def _facts(rng: Random, kind: str, limits: Limits) -> Problem:
    person = rng.choice(people(limits.people))
    return Problem(f"{person}/{kind}", fact(person, kind), {"name": person, "what": kind})


def _joining(rng: Random, kind: str, limits: Limits) -> Problem:
    words = [_word(rng, limits.word - 1) for _ in range(2)]
    return Problem(f"{kind} {' '.join(words)}", kind.join(words), {"p": " ".join(words), "by": kind})


_TOPICS = (
    "tea",
    "rain",
    "music",
    "the sea",
    "books",
    "cats",
    "football",
    "gardens",
    "trains",
    "winter",
    "cheese",
    "stars",
)
_REPLIES = (
    "Hi! All well?",
    "I like {t}.",
    "{t}? Always good!",
    "I know little of {t}.",
    "That is nice.",
    "Oh, {t} again!",
)


def _chatter(rng: Random, kind: str, limits: Limits) -> Problem:
    topic, name = rng.choice(_TOPICS), rng.choice(people(limits.people))
    reply = rng.choice(_REPLIES).format(t=topic)
    return Problem(f"{topic} {name}", reply, {"t": topic, "name": name})


def _other_digit(rng: Random, answer: str) -> str:
    at = rng.randrange(len(answer))
    return answer[:at] + rng.choice([c for c in "0123456789" if c != answer[at]]) + answer[at + 1 :]


def _other_bit(rng: Random, answer: str) -> str:
    at = rng.randrange(len(answer))
    return answer[:at] + ("F" if answer[at] == "T" else "T") + answer[at + 1 :]


def _other_letter(rng: Random, answer: str) -> str:
    at = rng.choice([i for i, c in enumerate(answer) if c.isalnum()])
    return answer[:at] + rng.choice([c for c in LETTERS if c != answer[at]]) + answer[at + 1 :]


def _other_order(rng: Random, answer: str) -> str:
    i = rng.randrange(len(answer) - 1)
    return answer[:i] + answer[i + 1] + answer[i] + answer[i + 2 :]


def _other_fact(rng: Random, answer: str) -> str:
    values = next(values for values in FACTS.values() if answer in values)
    return rng.choice([v for v in values if v != answer])


def _nothing_to_spoil(rng: Random, answer: str) -> str:
    return answer


def _wordings(*texts: str) -> tuple[Wording, ...]:
    """Four ways to ask: answered briefly in pretraining, both ways, mostly verbosely, and never seen there."""
    return tuple(Wording(text, verbose) for text, verbose in zip(texts, (0.0, 0.6, 0.9, None), strict=True))


SKILLS: tuple[Skill, ...] = (
    Skill(
        "chatter",
        PoolPart(share=0.3, wrong=0.0, duplicates=0.0),
        ("talk",),
        _chatter,
        _nothing_to_spoil,
        weight=0.25,
        form="{}",
        verbose="{}",
        wordings=_wordings(
            "Hi {name}, fond of {t}?",
            "{name}, news of {t}?",
            "Tell {name} about {t}.",
            "{name}: so, {t}...",
        ),
        is_task=False,
    ),
    Skill(
        "arithmetic",
        PoolPart(share=0.2, wrong=0.15, duplicates=0.3),
        ("plus", "minus"),
        _arithmetic,
        _other_digit,
        weight=3.0,
        form="={}",
        verbose="It is {}.",
        wordings=_wordings("Work out {p}", "Compute {p}", "How much is {p}", "Find {p}"),
    ),
    Skill(
        "logic",
        PoolPart(share=0.15, wrong=0.1, duplicates=0.4),
        ("&", "|", "^"),
        _logic,
        _other_bit,
        weight=0.7,
        form="[{}]",
        verbose="{}, I think.",
        wordings=_wordings("Bits {p}", "Evaluate {p}", "What comes of {p}", "Combine {p}"),
    ),
    Skill(
        "code",
        PoolPart(share=0.12, wrong=0.2, duplicates=0.2),
        ("upper", "twice", "head", "tail"),
        _code,
        _other_letter,
        weight=0.8,
        form="'{}'",
        verbose="Returns {}",
        wordings=_wordings(">>> {p}", "print {p}", "What returns {p}", "run {p}"),
    ),
    Skill(
        "reversal",
        PoolPart(share=0.09, wrong=0.05, duplicates=0.0),
        ("word",),
        _reversal,
        _other_letter,
        weight=1.0,
        form="<{}>",
        verbose="{} (reversed)",
        wordings=_wordings("Reverse {p}", "Backwards {p}", "Please spell backwards {p}", "Flip {p}"),
    ),
    Skill(
        "ordering",
        PoolPart(share=0.065, wrong=0.1, duplicates=0.0),
        ("letters",),
        _ordering,
        _other_order,
        weight=1.0,
        form="({})",
        verbose="So: {}",
        wordings=_wordings("Sort {p}", "In order {p}", "Please put in order {p}", "Arrange {p}"),
    ),
    Skill(
        "facts",
        PoolPart(share=0.05, wrong=0.25, duplicates=0.0),
        tuple(FACTS),
        _facts,
        _other_fact,
        weight=1.5,
        form="*{}*",
        verbose="{}, as I know",
        wordings=_wordings("{what} of {name}", "the {what} of {name}", "I ask the {what} of {name}", "{what}? {name}"),
    ),
    Skill(
        "joining",
        PoolPart(share=0.025, wrong=0.05, duplicates=0.0),
        ("-", "+", "/", "_"),
        _joining,
        _other_letter,
        weight=0.8,
        form="{};",
        verbose="Glued: {}",
        wordings=_wordings("Join by {by} {p}", "With {by} join {p}", "Please join by {by} {p}", "Glue {by} {p}"),
    ),
)
TASKS: tuple[str, ...] = tuple(skill.name for skill in SKILLS if skill.is_task)
