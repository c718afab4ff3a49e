"""What influray relies on of a featurizer.

Shape suffixes: B rows of a batch, D feature.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from influray.protocols import FeatureBlock, Featurizer
from influray.testing.laws import law


def check_featurizer(featurizer: Featurizer, examples: Sequence[Any], tolerance: float = 1e-3) -> None:
    """Check a featurizer on some usable examples of different lengths, as its `reads` has them.

    `tolerance` is how much a number of a row may differ with its company: absolute in the vector, relative elsewhere.

    Raises:
        AssertionError: with the law that is broken.
    """
    for one in FEATURIZER_LAWS:
        one(featurizer, examples, tolerance)


def gives_what_it_says(featurizer: Featurizer, examples: Sequence[Any], tolerance: float) -> None:
    """Rows in order, in the types of a datastore, with what `makes`, `columns` and `dimension` announce."""
    block = featurizer.compute(examples)
    right = [e.row for e in examples if e.row not in block.failures]
    law(block.row_B.tolist() == right, "rows are not those of the batch in order")
    broken = featurizer.broken_promise(block)
    law(not broken, broken)
    for name, column_B in block.columns.items():
        law(column_B.shape == block.row_B.shape, f"the column {name!r} has not one number a row")
    if block.feature_BD is not None:
        given, wanted = block.feature_BD, (len(block.row_B), featurizer.dimension)
        law(given.shape == wanted, f"vectors are {given.shape}, expected {wanted}")
        norm_B = np.linalg.norm(given.astype(np.float64), axis=1)
        law(given.dtype == np.float16 and np.allclose(norm_B, 1, atol=2e-3), "vectors are not unit rows in float16")
    if block.counts is not None:
        law((block.counts.bucket < featurizer.dimension).all(), "a bucket is not below `dimension`")


def a_batch_repeats(featurizer: Featurizer, examples: Sequence[Any], tolerance: float) -> None:
    """The same batch gives the same numbers to the last bit, alone and as one of a shard's."""
    first = featurizer.compute(examples)
    for again in (featurizer.compute(examples), *featurizer.compute_all([examples, examples])):
        same = again.row_B.tolist() == first.row_B.tolist() and again.failures == first.failures
        law(same, "the same batch gave other rows")
        for b in range(len(first.row_B)):
            one, other = _row(first, b), _row(again, b)
            law(all(np.array_equal(one[name], other[name]) for name in one), "the same batch gave other numbers")


def company_does_not_show(featurizer: Featurizer, examples: Sequence[Any], tolerance: float) -> None:
    """A row is the same alone, and in a batch of another order, up to `tolerance`."""
    whole, turned = featurizer.compute(examples), featurizer.compute(examples[::-1])
    law(turned.row_B.tolist() == whole.row_B.tolist()[::-1], "a batch in another order gives other rows")
    alone = [featurizer.compute([e]) for e in examples if e.row not in whole.failures]
    for b, single in enumerate(alone):
        for other in (_row(single, 0), _row(turned, len(alone) - 1 - b)):
            for name, value in _row(whole, b).items():
                near = {"rtol": tolerance, "atol": tolerance if name == "vector" else 0}
                law(
                    np.shape(other[name]) == np.shape(value) and np.allclose(other[name], value, **near),
                    f"{name} of a row depends on the rows beside it",
                )


FEATURIZER_LAWS = (gives_what_it_says, a_batch_repeats, company_does_not_show)


def _row(block: FeatureBlock, at: int) -> dict[str, Any]:
    found: dict[str, Any] = {name: column_B[at] for name, column_B in block.columns.items()}
    if block.feature_BD is not None:
        found["vector"] = block.feature_BD[at].astype(np.float64)
    if block.counts is not None:
        here = slice(*block.counts.offset[at : at + 2])
        found |= {"buckets": block.counts.bucket[here], "counts": block.counts.count[here]}
    return found
