"""N-gram features: hashed counts of what a record says. Text in, no model and no tokenizer (DSIR, arXiv 2302.03169).

Rows are kept as counts, not as unit vectors: density ratios and BM25 need them, and the pool's totals.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from typing import Annotated

import numpy as np
from pydantic import Field

from influray.data.words import words_and_points
from influray.features.blocks import feature_block, tokens_of
from influray.protocols import FeatureBlock, Featurizer, SparseRows, TextExample


class NgramFeaturizer(Featurizer):
    """Counts of all 1- to `n`-grams of a row's lower-cased words and punctuation, hashed into `buckets`.

    The text is what users and assistants say, whole, as the record has it; n-grams run on over turns. system,
    developer and tool messages, chat templates and special tokens are left out.

    Source: DSIR, arXiv 2302.03169; p-lambda/dsir data_selection/hashed_ngram_dsir.py:22-49, bucket for bucket. Unlike
    that code a character of a script without spaces (Chinese, Thai, ...) is a word.
    """

    reads, makes, columns = "records", "counts", ("tokens",)

    def __init__(
        self, n: Annotated[int, Field(ge=1, le=16)] = 2, buckets: Annotated[int, Field(ge=1, le=2**31 - 1)] = 10_000
    ) -> None:
        self._n, self.dimension = n, buckets

    def compute(self, examples: Sequence[TextExample]) -> FeatureBlock:
        """Return the counts of the rows, in their order. None fails: a usable record has something visible."""
        rows = [self._counts(example.text) for example in examples]
        empty = np.zeros(0, np.int32)
        counts = SparseRows(
            offset=np.cumsum([0, *(len(bucket) for bucket, _ in rows)]).astype(np.int32),
            bucket=np.concatenate([empty, *(bucket for bucket, _ in rows)]),
            count=np.concatenate([empty, *(count for _, count in rows)]),
        )
        return feature_block(examples, {}, counts=counts, extra={"tokens": tokens_of(examples)})

    def _counts(self, text: str) -> tuple[np.ndarray, np.ndarray]:
        words = words_and_points(text.lower())
        counts: Counter[int] = Counter()
        for n in range(1, self._n + 1):
            grams = Counter(" ".join(words[i : i + n]) for i in range(len(words) - n + 1))
            for gram, count in grams.items():
                counts[_bucket(gram, self.dimension)] += count
        found = sorted(counts.items())
        return np.array([b for b, _ in found], np.int32), np.array([c for _, c in found], np.int32)


@lru_cache(maxsize=2**17)
def _bucket(gram: str, buckets: int) -> int:
    # Not Python's hash, which is salted anew in every process.
    return int.from_bytes(hashlib.sha256(gram.encode("utf-8")).digest(), "big") % buckets
