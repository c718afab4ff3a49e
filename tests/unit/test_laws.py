"""Each law of influray.testing finds a class that breaks it, and says what is broken."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from influray.features.ngram import NgramFeaturizer
from influray.features.projectors.identity import IdentityProjector
from influray.protocols import Projector, Scorer, Selection, Selector, TextExample
from influray.scorers.inner_product import InnerProduct
from influray.selectors.top_k import TopK
from influray.testing import check_featurizer, check_projector, check_scorer, check_selector

TEXTS = [TextExample(i, text, 9, 4) for i, text in enumerate(["a b c", "b b", "c d e f g"])]
turn = itertools.count()


class Greedy(Selector):
    """Takes the first rows, whatever the limits."""

    def select(self, problem):
        rows = problem.attribution.rows[: problem.budget]
        return Selection(rows, np.zeros(len(rows)), np.full(len(rows), -1))


class Short(TopK):
    def select(self, problem):
        found = super().select(problem)
        return Selection(found.rows[:-1], found.merit[:-1], found.column[:-1])


class Repeating(TopK):
    def select(self, problem):
        found = super().select(problem)
        return Selection(np.full_like(found.rows, found.rows[0]), found.merit, found.column)


class Moody(Selector):
    def select(self, problem):
        rows = np.random.permutation(problem.attribution.rows)[: problem.budget]
        return Selection(rows, np.zeros(len(rows)), np.full(len(rows), -1))


class Blockish(Selector):
    def select(self, problem):
        firsts = [rows[0] for rows, _ in problem.attribution.blocks()]
        rows = np.array(list(dict.fromkeys([*firsts[::-1], *problem.attribution.rows.tolist()]))[: problem.budget])
        return Selection(rows, np.zeros(len(rows)), np.full(len(rows), -1))


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        (Short, "a budget of 1 gave"),
        (Repeating, "rows repeat in a selection of 30"),
        (Moody, "two selections|global generator was moved"),
        (Blockish, "blocks of 1 rows give another selection"),
        (Greedy, "row-0|row-5|Admission"),
    ],
)
def test_a_selector_that_breaks_a_law_is_told_which(kind, said):
    with pytest.raises(AssertionError, match=said):
        check_selector(kind)


class Relative(InnerProduct):
    def score(self, pool, target, state):
        found = super().score(pool, target, state)
        return found - found.mean() if len(found) else found


class Double(InnerProduct):
    def score(self, pool, target, state):
        return super().score(pool, target, state).astype(np.float64)


class Uneven(InnerProduct):
    passes = 1

    def sums(self, number, pool, target, state):
        return {"blocks": np.ones(1)}

    def fit(self, number, sums, target, state):
        return dict(sums)

    def score(self, pool, target, state):
        return super().score(pool, target, state) * np.float32(state["blocks"][0])


class Eager(InnerProduct):
    def score(self, pool, target, state):
        pool.facts_KB[0]["norm"][:1] += 1
        return super().score(pool, target, state)


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        (Double, r"float64 \(40, 5\), expected float32 \(40, 5\)"),
        (Relative, "depends on the rows beside it"),
        (Uneven, "sums depend on how the pool is cut"),
        (Eager, "rows were written to"),
    ],
)
def test_a_scorer_that_breaks_a_law_is_told_which(kind, said):
    assert issubclass(kind, Scorer)
    with pytest.raises(AssertionError, match=said):
        check_scorer(kind)


class Squared(IdentityProjector):
    def add_slice(self, out_BD, block_Bp, offset):
        super().add_slice(out_BD, block_Bp.square(), offset)


class Setting(IdentityProjector):
    def add_slice(self, out_BD, block_Bp, offset):
        out_BD[:, offset : offset + block_Bp.shape[1]] = block_Bp


class Centring(IdentityProjector):
    def add_slice(self, out_BD, block_Bp, offset):
        super().add_slice(out_BD, block_Bp - block_Bp.mean(0) if len(block_Bp) > 2 else block_Bp, offset)


class Drawn(Projector):
    def __init__(self, dimension, parameters, seed, device="cpu"):
        self.dimension = dimension
        self.sign_P = torch.randn(parameters, generator=torch.Generator().manual_seed(next(turn)), dtype=torch.float64)

    def add_slice(self, out_BD, block_Bp, offset):
        here = slice(offset, offset + block_Bp.shape[1])
        out_BD[:, here] += block_Bp * self.sign_P[here].to(block_Bp.dtype)


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        (Squared, "it is not linear"),
        (Setting, "not added to what is there"),
        (Centring, "it is not linear|other bits in a batch"),
        (Drawn, "slices do not add up|one seed gave two matrices"),
    ],
)
def test_a_projector_that_breaks_a_law_is_told_which(kind, said):
    with pytest.raises(AssertionError, match=said):
        check_projector(kind)


class Silent(NgramFeaturizer):
    columns = ()


class Reversed(NgramFeaturizer):
    def compute(self, examples):
        return super().compute(examples[::-1])


class Counting(NgramFeaturizer):
    def compute(self, examples):
        found = super().compute(examples)
        found.extra["tokens"][:] = len(examples)
        return found


class Growing(NgramFeaturizer):
    def compute(self, examples):
        found = super().compute(examples)
        found.extra["tokens"][:] = next(turn)
        return found


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        (
            Silent,
            r"Silent gives makes = 'counts' and columns = \['tokens'\], and says makes = 'counts' and columns = \[\]",
        ),
        (Reversed, "rows are not those of the batch in order"),
        (Counting, "tokens of a row depends on the rows beside it"),
        (Growing, "the same batch gave other numbers"),
    ],
)
def test_a_featurizer_that_breaks_a_law_is_told_which(kind, said):
    with pytest.raises(AssertionError, match=said):
        check_featurizer(kind(), TEXTS)


def test_methods_of_the_house_pass():
    check_selector(lambda: TopK(reduction="sum"))
    check_scorer(lambda stores: InnerProduct(stores, similarity="dot"))
    check_projector(IdentityProjector)
    check_featurizer(NgramFeaturizer(), TEXTS)
