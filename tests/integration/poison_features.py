"""A plug-in whose rows may kill the process that computes them, as a bug in native code does."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

from influray.features.ngram import NgramFeaturizer
from influray.protocols import FeatureBlock, TextExample


class PoisonFeaturizer(NgramFeaturizer):
    """N-grams, except of rows that say "poison"."""

    def compute(self, examples: Sequence[TextExample]) -> FeatureBlock:
        if any("poison" in example.text for example in examples):
            ctypes.string_at(0)
        return super().compute(examples)
