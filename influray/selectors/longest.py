"""The longest examples first: a baseline that looks at no target, and is hard to beat in places."""

from __future__ import annotations

import numpy as np

from influray.protocols import ConfigError, Selection, SelectionProblem, Selector
from influray.selectors.admission import Admission, as_selection, take_in_order


class Longest(Selector):
    """Rank rows by their number of tokens, which is the merit; ties to the lowest row. A smaller budget gives a prefix.

    Source: "Rethinking Data Selection for Supervised Fine-Tuning", arXiv 2402.06094, which takes the longest
    responses; here prompt and response count, up to the tokens at which examples are cut.

    Raises:
        ConfigError: the problem has no `tokens` of its rows, or they are no finite numbers.
    """

    def select(self, problem: SelectionProblem) -> Selection:
        if "tokens" not in problem.facts:
            raise ConfigError("rows.tokens: 'longest' needs the tokens of every row; give rows={'tokens': [...]}")
        try:
            token_N = np.asarray(problem.facts["tokens"], np.float64)
        except (TypeError, ValueError) as error:
            raise ConfigError(f"rows.tokens: expected a number per row: {error}") from error
        if token_N.ndim != 1 or not np.isfinite(token_N).all():
            raise ConfigError("rows.tokens: expected one finite number per row")
        chosen = take_in_order(Admission(problem), np.argsort(-token_N, kind="stable"))
        return as_selection(problem, chosen, token_N, None)
