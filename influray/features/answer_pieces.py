"""The answer of a question taken apart: copies of the record that train one token each.

The gradient of a mean loss is the mean of the gradients of its tokens, so the projected gradients of the copies,
each times its share of the trained tokens, add up to that of the whole.

Shape suffixes: S tokens, n trained tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from influray.protocols import TokenizedExample

MOST_PIECES = 64  # a copy costs a forward and a backward; longer answers are taken in runs of tokens


@dataclass(frozen=True, slots=True)
class AnswerPiece:
    """One trained token, or a run of them. `share` is its part of the trained tokens; shares sum to 1."""

    example: TokenizedExample
    share: float
    text: str


def answer_pieces(example: TokenizedExample, tokenizer: Any, most: int = MOST_PIECES) -> list[AnswerPiece]:
    """Return the trained tokens of an example in order, in `most` runs of nearly equal length where they are more.

    The tokens after a piece are left out of its copy: a causal model's loss cannot depend on them. The texts together
    are that of the trained tokens, a character of several tokens at the last of them.
    """
    position_n = np.flatnonzero(example.loss_mask_S)
    pieces = []
    for run in np.array_split(position_n, min(most, len(position_n))):
        stop = int(run[-1]) + 1
        mask_S = np.zeros(stop, dtype=bool)
        mask_S[run] = True
        pieces.append((TokenizedExample(example.row, example.input_ids_S[:stop], mask_S), run))
    texts = _texts([example.input_ids_S[run].tolist() for _, run in pieces], tokenizer)
    return [
        AnswerPiece(copy, len(run) / len(position_n), text) for (copy, run), text in zip(pieces, texts, strict=True)
    ]


def _texts(runs: Sequence[Sequence[int]], tokenizer: Any) -> list[str]:
    # A token by itself may decode to half a character, or lose the space before it.
    texts, ids, before = [], [], ""
    for number, run in enumerate(runs):
        ids += run
        whole = tokenizer.decode(ids, clean_up_tokenization_spaces=False)
        if number < len(runs) - 1:
            whole = whole.rstrip("\ufffd")  # a character that is not complete yet
        texts.append(whole[len(before) :])
        before = whole if len(whole) > len(before) else before
    return texts
