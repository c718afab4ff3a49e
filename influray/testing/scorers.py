"""What influray relies on of a scorer.

Shape suffixes: B pool rows, D feature, K checkpoints.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from influray.protocols import Arrays, Columns, FeatureRows, Scorer, SparseRows, Stores
from influray.scorers.propagation import Propagating
from influray.store.arrays import add_arrays
from influray.testing.laws import law

CHECKPOINTS, DIMENSION = 3, 24
GRADIENTS = Stores((1 / 6, 2 / 6, 3 / 6), direction="sgd")


def check_scorer(make: Callable[[Stores], Scorer], stores: Stores = GRADIENTS) -> None:
    """Check the scorers that `make(stores)` returns; `stores` has the weights of three checkpoints.

    Raises:
        AssertionError: with the law that is broken.
    """
    for one in SCORER_LAWS:
        one(make(stores))


def made_rows(
    rows: int, dimension: int = DIMENSION, checkpoints: int = CHECKPOINTS, seed: int = 0, groups: Sequence[str] = "ab"
) -> FeatureRows:
    """Return unit rows with norms that differ by a factor of ten, counts and all plain columns; groups in turn."""
    rng = np.random.default_rng(seed)
    features, facts = [], []
    for _ in range(checkpoints):
        wide_BD = rng.standard_normal((rows, dimension))
        features.append((wide_BD / np.linalg.norm(wide_BD, axis=1, keepdims=True)).astype(np.float16))
        floats = {name: rng.uniform(0.3, 3, rows).astype(np.float32) for name in ("norm", "grad_norm", "loss", "el2n")}
        facts.append(floats | {name: rng.integers(1, 99, rows).astype(np.int32) for name in ("tokens", "loss_tokens")})
    count_BD = rng.integers(0, 4, (rows, dimension)) * (rng.random((rows, dimension)) < 0.3)
    count_BD[:, 0] += 1
    offset = np.concatenate([[0], np.cumsum((count_BD > 0).sum(axis=1))])
    counts = SparseRows(offset, np.nonzero(count_BD)[1].astype(np.int32), count_BD[count_BD > 0].astype(np.int32))
    return FeatureRows(np.arange(rows), [groups[i % len(groups)] for i in range(rows)], features, facts, counts)


def taken(rows: FeatureRows, which: slice | np.ndarray | Sequence[int]) -> FeatureRows:
    """Return some of the rows, in the order asked for."""
    place_B = np.arange(len(rows))[which]
    counts = rows.counts
    if counts is not None:
        entry = np.concatenate([np.arange(*counts.offset[i : i + 2]) for i in place_B.tolist()] or [place_B])
        length_B = np.diff(counts.offset)[place_B]
        counts = SparseRows(np.concatenate([[0], np.cumsum(length_B)]), counts.bucket[entry], counts.count[entry])
    return FeatureRows(
        rows.row_B[place_B],
        [str(rows.group_B[i]) for i in place_B.tolist()],
        [feature_BD[place_B] for feature_BD in rows.feature_KBD],
        [{name: column[place_B] for name, column in facts.items()} for facts in rows.facts_KB],
        counts,
    )


def fitted(scorer: Scorer, pool: FeatureRows, target: FeatureRows, cuts: Sequence[int] = (0, 13, 27)) -> Arrays:
    """Return the state after all passes of a scorer over the pool, cut into blocks at `cuts`."""
    state: Arrays = {}
    if isinstance(scorer, Propagating):
        row_E, exact_ET = scorer.exact.matched([str(row) for row in range(len(pool))], COLUMNS)
        state = {"row": row_E, "exact": exact_ET}
    for number in range(1, scorer.passes + 1):
        total: dict[str, np.ndarray] = {}
        for start, stop in zip(cuts, (*cuts[1:], len(pool)), strict=True):
            add_arrays(total, scorer.sums(number, taken(pool, slice(start, stop)), target, state))
        law(all(array.dtype == np.float64 for array in total.values()), f"the sums of pass {number} are not float64")
        state = scorer.fit(number, total, target, state)
        law(all(array.size for array in state.values()), f"pass {number} leaves an empty array, which no file keeps")
    return state


POOL, TARGET = made_rows(40), made_rows(5, seed=1, groups=("sums", "reversals"))
COLUMNS = Columns(tuple(range(5)), tuple("vwxyz"), tuple(TARGET.group_B))


def _scored(scorer: Scorer, pool: FeatureRows = POOL, cuts: Sequence[int] = (0, 13, 27)) -> np.ndarray:
    return scorer.score(pool, TARGET, fitted(scorer, pool, TARGET, cuts))


def scores_every_row_and_column(scorer: Scorer) -> None:
    """One finite float32 a row and column; a column is a target's, or says that it is none's."""
    columns, found = scorer.columns(COLUMNS), _scored(scorer)
    shape = len(POOL), len(columns)
    law(found.shape == shape and found.dtype == np.float32, f"{found.dtype} {found.shape}, expected float32 {shape}")
    law(np.isfinite(found).all(), "a score is not finite")
    law(len(columns.rows) == len(columns.ids) == len(columns.tasks) >= 1, "columns have not one id and task each")
    for row, identity, task in zip(columns.rows, columns.ids, columns.tasks, strict=True):
        own = row == -1 or (identity, task) == (COLUMNS.ids[row], COLUMNS.tasks[row])
        law(own, f"the column of target {row} has another's id or task")


def scores_are_a_pure_function(scorer: Scorer) -> None:
    """The same rows give the same bytes, and are left alone."""
    facts = [column for rows in (POOL, TARGET) for one in rows.facts_KB for column in one.values()]
    arrays = [*POOL.feature_KBD, *TARGET.feature_KBD, *facts]
    before = [array.copy() for array in arrays]
    law(_scored(scorer).tobytes() == _scored(scorer).tobytes(), "the same rows were scored in two ways")
    law(all(map(np.array_equal, before, arrays)), "rows were written to")


def order_and_cuts_do_not_show(scorer: Scorer) -> None:
    """Rows in another order, and a pool cut otherwise or row by row, give the same scores to rounding."""
    near: dict[str, Any] = {"rtol": 1e-4, "atol": 1e-5}
    whole = _scored(scorer, cuts=(0,))
    moved = taken(POOL, np.random.default_rng(0).permutation(len(POOL)))
    law(
        np.allclose(_scored(scorer, moved, cuts=(0,)), whole[moved.row_B], **near),
        "another order of rows gives other scores",
    )
    state = fitted(scorer, POOL, TARGET, cuts=(0, 1, 2, 30))
    law(np.allclose(scorer.score(POOL, TARGET, state), whole, **near), "sums depend on how the pool is cut")
    alone = [scorer.score(taken(POOL, [i]), TARGET, state) for i in range(len(POOL))]
    law(np.allclose(np.concatenate(alone), whole, **near), "a row's score depends on the rows beside it")


def takes_maps_and_no_rows(scorer: Scorer) -> None:
    """Read-only features and a block without a row are taken."""
    state = fitted(scorer, POOL, TARGET)
    pool = taken(POOL, slice(0, 0))
    for array in (*pool.feature_KBD, *TARGET.feature_KBD):
        array.flags.writeable = False
    shape = 0, len(scorer.columns(COLUMNS))
    law(scorer.score(pool, TARGET, state).shape == shape, f"a block without rows does not give scores {shape}")


SCORER_LAWS = (
    scores_every_row_and_column,
    scores_are_a_pure_function,
    order_and_cuts_do_not_show,
    takes_maps_and_no_rows,
)
