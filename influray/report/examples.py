"""The rows that help a task most, and those that harm it most, with their text.

Shape suffixes: N rows of the attribution matrix, G tasks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from influray.data.records import Record
from influray.evaluation.copies import content_key
from influray.evaluation.harm import harm_limit
from influray.report.data import Example, TaskExamples
from influray.report.selections import Pool
from influray.store.attribution import Attribution

HELPFUL, HARMFUL = 5, 3  # shown per task
LOOKED_AT = 40  # rows from each end, so that copies of one text do not fill the list
MAX_TEXT = 8000  # characters of one row that go into the page


def examples_of(
    attribution: Attribution,
    tasks: Sequence[str],
    row_N: np.ndarray,
    score_NG: np.ndarray,
    pool: Pool,
    chosen: Mapping[str, Mapping[int, int]],
) -> tuple[TaskExamples, ...]:
    """Return the rows of highest score of every task that has scores, and those of lowest that harm it.

    `chosen` maps a selection to {row: rank from 1}. Rows with equal turns are shown once, with their number.
    """
    group_T = np.array(attribution.groups, dtype=object)
    found = []
    for g, task in enumerate(tasks):
        score_N = score_NG[:, g]
        if not len(score_N) or not np.isfinite(score_N).all():
            continue
        column_C = np.flatnonzero(attribution.stats.used_T & (group_T == task))

        def shown(
            place: np.ndarray, most: int, score_N: np.ndarray = score_N, column_C: np.ndarray = column_C
        ) -> tuple[Example, ...]:
            influence = attribution.gather(row_N[place])[:, column_C].mean(axis=1, dtype=np.float64)
            return _distinct(row_N[place], score_N[place], influence, pool, chosen, most)

        looked_at = min(LOOKED_AT, len(score_N))
        best, worst = extreme(-score_N, looked_at), extreme(score_N, looked_at)
        limit = harm_limit(attribution.stats.mean_T[column_C], attribution.stats.std_T[column_C])
        worst = worst[score_N[worst] < limit]
        found.append(TaskExamples(task, shown(best, HELPFUL), shown(worst, HARMFUL)))
    return tuple(found)


def extreme(value_N: np.ndarray, most: int) -> np.ndarray:
    """Return the places of the `most` smallest values in ascending order, ties to the lower place."""
    if most < len(value_N):
        # A partition leaves ties at its edge in any order: take all that reach the edge, then sort.
        edge = np.partition(value_N, most - 1)[most - 1]
        place = np.flatnonzero(value_N <= edge)
    else:
        place = np.arange(len(value_N))
    return place[np.argsort(value_N[place], kind="stable")][:most]


def _distinct(
    rows: np.ndarray,
    scores: np.ndarray,
    influence: np.ndarray,
    pool: Pool,
    chosen: Mapping[str, Mapping[int, int]],
    most: int,
) -> tuple[Example, ...]:
    records = pool.catalogue.all_parsed(rows.tolist())
    keys = [content_key(record) for record in records]
    examples = []
    for key in list(dict.fromkeys(keys))[:most]:
        place = keys.index(key)
        row = int(rows[place])
        examples.append(
            Example(
                row=row,
                id=str(pool.id_N[row]),
                source=str(pool.source_N[row]),
                tokens=int(pool.token_N[row]),
                score=float(scores[place]),
                influence=float(influence[place]),
                copies=keys.count(key),
                chosen={name: ranks[row] for name, ranks in chosen.items() if row in ranks},
                turns=_turns(records[place], row),
            )
        )
    return tuple(examples)


def _turns(record: Record, row: int) -> tuple[tuple[str, str], ...]:
    """Return (role, text) of a record's turns, cut off after MAX_TEXT characters in all."""
    turns, left = [], MAX_TEXT
    for turn in record.turns:
        turns.append((turn.role, turn.text[:left]))
        left -= len(turn.text)
        if left <= 0:
            break
    hidden = sum(len(turn.text) for turn in record.turns) - MAX_TEXT
    if hidden > 0:
        role, text = turns[-1]
        turns[-1] = (role, f"{text}\n[{hidden:,} more characters: `influray inspect CONFIG --row {row}`]")
    return tuple(turns)
