"""Laws that every featurizer of the registry obeys, and a row that fails in each."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from influray.config import FeaturesConfig
from influray.protocols import FeatureBlock, Featurizer, TextExample, TokenizedExample
from influray.registry import FEATURIZERS, featurizer_traits, make, resolve
from influray.testing.featurizers import FEATURIZER_LAWS
from tests.tiny import tiny_llama
from tests.unit.test_example_gradients import ATTENTION, mixed_batch, with_lora

SICK = 200  # a token whose embedding is NaN
REASONS = {
    **dict.fromkeys(("gradient", "loss", "checkpoint_loss"), "non-finite loss"),
    "representation": "non-finite feature",
}


def featurizer_of(name: str, model: torch.nn.Module) -> Featurizer:
    reads = featurizer_traits(name).reads
    settings = FeaturesConfig.model_validate({"projector": {"dimension": 64}})
    given = {
        "checkpoints": lambda: (with_lora(model, ATTENTION), settings, None, "sgd", "cpu"),
        "adapters": lambda: (with_lora(model, ATTENTION), "cpu"),
        "base": lambda: (model, "cpu"),
        "records": lambda: (),
    }[reads]()
    return make("featurizers", name, {}, *given)


def examples_of(name: str) -> list:
    if featurizer_traits(name).reads == "records":
        texts = ["x y z", "y", "z z z x y z", "\u00c4rger \u6f22\u5b57!", "a b c d e f g"]
        return [TextExample(i, text, 10 * i + 9, i + 1) for i, text in enumerate(texts)]
    return mixed_batch()


@pytest.mark.parametrize("name", FEATURIZERS)
@pytest.mark.parametrize("law", FEATURIZER_LAWS, ids=lambda law: law.__name__)
def test_it_obeys_the_laws_of_its_seam(name, law):
    law(featurizer_of(name, tiny_llama(dtype=torch.float64)), examples_of(name), 1e-3)


@pytest.mark.parametrize("name", FEATURIZERS)
def test_the_table_says_of_it_what_its_class_says(name):
    kind, traits = resolve("featurizers", name, "key"), featurizer_traits(name)
    assert (kind.reads, kind.makes, kind.columns) == (traits.reads, traits.makes, traits.columns)


@pytest.mark.parametrize("name", REASONS)
def test_a_row_that_fails_leaves_the_others_their_bits(name):
    model = tiny_llama(tie_word_embeddings=False)
    with torch.no_grad():
        model.get_input_embeddings().weight[SICK] = torch.nan
    featurizer = featurizer_of(name, model)
    batch = [e for e in mixed_batch() if SICK not in e.input_ids_S]
    clean = featurizer.compute(batch)
    sick = TokenizedExample(77, batch[1].input_ids_S.copy(), batch[1].loss_mask_S)
    sick.input_ids_S[1] = SICK
    untrained = TokenizedExample(78, batch[2].input_ids_S, np.zeros_like(batch[2].loss_mask_S))
    found = featurizer.compute([batch[0], sick, untrained, *batch[2:]])
    assert found.failures == {77: REASONS[name], 78: "no trained token"}
    others = [0, *range(2, len(batch))]
    assert found.row_B.tolist() == clean.row_B[others].tolist()
    assert same(found, clean, others)
    assert not len(featurizer.compute([untrained]).row_B)


def same(found: FeatureBlock, clean: FeatureBlock, others: list[int]) -> bool:
    columns = all(np.array_equal(column, clean.columns[name][others]) for name, column in found.columns.items())
    return columns and (found.feature_BD is None or np.array_equal(found.feature_BD, clean.feature_BD[others]))
