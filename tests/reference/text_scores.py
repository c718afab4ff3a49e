"""DSIR and BM25 on lists of n-grams, with dictionaries and loops. Slow and obvious.

A text is the list of its n-grams (or buckets), each as often as it stands there.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Sequence

Text = Sequence[Hashable]


def dsir_weights(pool: Sequence[Text], targets: Sequence[Text], everything: Sequence[Hashable], smoothing: float):
    """Return the log importance weight of each pool text for one task; `everything` are all buckets there are."""

    def probabilities(texts, extra):
        counts = Counter(gram for text in texts for gram in text)
        total = sum(counts[gram] + extra for gram in everything)
        return {gram: (counts[gram] + extra) / total for gram in everything}

    p_target, p_pool = probabilities(targets, smoothing), probabilities(pool, 0.0)
    return [sum(math.log(p_target[gram] + 1e-8) - math.log(p_pool[gram] + 1e-8) for gram in text) for text in pool]


def bm25_score(query: Text, document: Text, pool: Sequence[Text], k1: float, b: float) -> float:
    """Return BM25 of one document of the pool, every term of the query as often as it stands there."""
    mean_length = sum(len(text) for text in pool) / len(pool)
    score = 0.0
    for term in query:
        having = sum(term in text for text in pool)
        idf = math.log(1 + (len(pool) - having + 0.5) / (having + 0.5))
        count = list(document).count(term)
        if count:
            score += idf * count * (k1 + 1) / (count + k1 * (1 - b + b * len(document) / mean_length))
    return score
