"""Trained tokens by construction: templates written out by hand, one character or byte at a time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


class Segment(NamedTuple):
    text: str
    special: bool = False
    trained: bool = False


def chatml(turns: Sequence[tuple[str, str]], end_token: bool = True) -> list[Segment]:
    segments = []
    for role, content in turns:
        mine = role == "assistant" and content.strip() != ""
        segments += [
            Segment("<|im_start|>", special=True),
            Segment(role + "\n"),
            Segment(content, trained=mine),
            Segment("<|im_end|>", special=True, trained=mine and end_token),
            Segment("\n"),
        ]
    return segments


def llama3(turns: Sequence[tuple[str, str]], end_token: bool = True) -> list[Segment]:
    segments = [Segment("<s>", special=True)]
    for role, content in turns:
        mine = role == "assistant" and content.strip() != ""
        segments += [
            Segment("<|start|>", special=True),
            Segment(role),
            Segment("<|end|>", special=True),
            Segment("\n\n"),
            Segment(content.strip(), trained=mine),
            Segment("<|eot|>", special=True, trained=mine and end_token),
        ]
    return segments


def gemma(turns: Sequence[tuple[str, str]], end_token: bool = True) -> list[Segment]:
    segments = [Segment("<s>", special=True)]
    for role, content in turns:
        mine = role == "assistant" and content.strip() != ""
        segments += [
            Segment("<|start|>", special=True),
            Segment({"assistant": "model"}.get(role, role) + "\n"),
            Segment(content.strip(), trained=mine),
            Segment("<|end|>", special=True, trained=mine and end_token),
            Segment("\n"),
        ]
    return segments


def mistral(turns: Sequence[tuple[str, str]], end_token: bool = True) -> list[Segment]:
    segments = [Segment("<s>", special=True)]
    for role, content in turns:
        if role == "user":
            segments += [Segment("[INST]", special=True), Segment(" " + content), Segment("[/INST]", special=True)]
        else:
            mine = content.strip() != ""
            # The space before the content is the template's; with bytes it is a token of its own.
            segments += [Segment(" "), Segment(content, trained=mine)]
            segments += [Segment("</s>", special=True, trained=mine and end_token)]
    return segments


def tulu(turns: Sequence[tuple[str, str]], end_token: bool = True) -> list[Segment]:
    segments = []
    for i, (role, content) in enumerate(turns):
        mine = role == "assistant" and content.strip() != ""
        segments += [Segment(f"<|{role}|>\n"), Segment(content, trained=mine)]
        if role == "assistant":
            segments += [Segment("</s>", special=True, trained=mine and end_token)]
        if role != "assistant" or i < len(turns) - 1:
            segments += [Segment("\n")]
    return segments


def thinking(turns: Sequence[tuple[str, str]], end_token: bool = True) -> list[Segment]:
    """ChatML with an empty block of thought before the answers after the last question: the model has to write it."""
    last_question = max(i for i, (role, _) in enumerate(turns) if role == "user")
    segments = []
    for i, (role, content) in enumerate(turns):
        mine = role == "assistant" and content.strip() != ""
        segments += [Segment("<|im_start|>", special=True), Segment(role + "\n")]
        if role == "assistant" and i > last_question:
            segments += [Segment("<think>\n\n</think>\n\n", trained=mine)]
        shown = content.lstrip("\n") if role == "assistant" else content
        segments += [Segment(shown, trained=mine)]
        segments += [Segment("<|im_end|>", special=True, trained=mine and end_token), Segment("\n")]
    return segments


def byte_tokens(segments: Sequence[Segment], byte_id: dict[int, int], special_id: dict[str, int]):
    """Return (ids, mask) of a tokenizer with one token a byte. Position 0 is not trained."""
    ids, mask = [], []
    for segment in segments:
        new = [special_id[segment.text]] if segment.special else [byte_id[b] for b in segment.text.encode()]
        ids += new
        mask += [segment.trained] * len(new)
    return ids, [False, *mask[1:]]


def mask_by_characters(segments: Sequence[Segment], offsets: Sequence[tuple[int, int]]) -> list[bool]:
    """Return the mask of any tokenizer from its character offsets: a walk over every character of every token.

    A token is trained if a character of it is, unless a character before that one is the template's and not white
    space; one that holds a character of a special token stands or falls with it.
    """
    characters = [(c, s) for s in segments for c in s.text]
    mask = []
    for begin, end in offsets:
        held = characters[begin:end]
        special = [s for _, s in held if s.special]
        if special:
            mask.append(special[0].trained)
            continue
        trained = False
        for character, segment in held:
            if segment.trained:
                trained = True
                break
            if not character.isspace():
                break
        mask.append(trained)
    return [False, *mask[1:]]


def truncated(ids: list[int], mask: list[bool], answer: int, bos: bool, limit: int) -> tuple[list[int], list[bool]]:
    """Return what is left of an example by removing one token at a time.

    First what follows the last trained token, then the oldest prompt token (never BOS) while more than a quarter of
    the limit is prompt, then the last token.
    """
    ids, mask = list(ids), list(mask)
    first = int(bos)
    while len(ids) > limit and not mask[-1]:
        ids.pop(), mask.pop()
    while len(ids) > limit:
        if answer - first > limit // 4:
            del ids[first], mask[first]
            answer -= 1
        else:
            ids.pop(), mask.pop()
    return ids, [False, *mask[1:]]
