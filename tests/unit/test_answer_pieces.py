"""An answer taken apart: the pieces add up to the whole, in gradients and in text."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from influray.features.answer_pieces import answer_pieces
from influray.features.gradient import GradientFeaturizer
from influray.protocols import TokenizedExample
from tests.tiny import byte_tokenizer
from tests.unit.test_example_gradients import example
from tests.unit.test_gradient_features import adapted, config


def spoken(text: str, trained: slice) -> TokenizedExample:
    ids = np.array(byte_tokenizer()(text)["input_ids"], np.int32)
    mask = np.zeros(len(ids), dtype=bool)
    mask[trained] = True
    return TokenizedExample(7, ids, mask)


@pytest.mark.parametrize("most", [64, 5, 1])
@pytest.mark.parametrize("projector", [("identity", None), ("hadamard", 64)])
def test_the_projected_gradients_of_the_pieces_add_up_to_that_of_the_whole(most, projector):
    name, dimension = projector
    settings = config() if dimension is None else config(name, dimension)
    featurizer = GradientFeaturizer(adapted(dtype=torch.float64), settings, None, "sgd")
    whole = example(3, 24, [(8, 12), (16, 24)])
    pieces = answer_pieces(whole, byte_tokenizer(), most)
    _, expected, _ = featurizer.projected([whole])
    _, parts, _ = featurizer.projected([piece.example for piece in pieces])
    found = sum(piece.share * part for piece, part in zip(pieces, parts, strict=True))
    assert np.abs(found - expected[0]).max() <= 1e-6 * np.abs(expected[0]).max()
    assert sum(piece.share for piece in pieces) == pytest.approx(1, abs=1e-12)


def test_every_trained_token_is_in_one_piece_and_what_stands_after_it_is_left_out():
    whole = spoken("prompt: answer and more", slice(8, 20))
    pieces = answer_pieces(whole, byte_tokenizer(), 5)
    assert len(pieces) == 5
    trained = np.concatenate([np.flatnonzero(piece.example.loss_mask_S) for piece in pieces])
    assert trained.tolist() == np.flatnonzero(whole.loss_mask_S).tolist()
    assert all(piece.example.loss_mask_S[-1] for piece in pieces)


def test_the_texts_of_the_pieces_are_the_text_of_the_answer_and_break_no_character():
    text = "q: a\u00e9\u4e2d\U0001f600 z"  # characters of 1 to 4 bytes, a token a byte
    whole = spoken(text, slice(3, None))
    texts = [piece.text for piece in answer_pieces(whole, byte_tokenizer())]
    assert "".join(texts) == text[3:]
    assert not any("\ufffd" in one for one in texts)
