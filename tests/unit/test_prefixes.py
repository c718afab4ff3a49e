"""What the prefixes of a selection give, against the balance measured anew at each budget."""

from __future__ import annotations

import numpy as np
import pytest

from influray.evaluation import prefixes
from influray.evaluation.balance import measure_balance
from influray.evaluation.prefixes import measure_prefixes, shared_prefixes
from influray.protocols import DataError
from influray.store.attribution import ArrayAttribution

GROUPS = ("a", "a", "b", "c", "b", "c", "c")
EDGES = np.linspace(-2.0, 3.0, 11)


def world(seed: int, rows: int = 60):
    generator = np.random.default_rng(seed)
    score_NT = generator.normal(0, 1, (rows, len(GROUPS))).astype(np.float32)
    score_NT[:, 5] = 4.0  # takes no part
    source = ArrayAttribution(score_NT)
    row_n = generator.permutation(rows)[:41]
    return source, row_n, generator.integers(0, 4, len(row_n)), np.array([1, 2, 7, 30, 41])


@pytest.mark.parametrize("block", [1, 3, 4096])
def test_every_prefix_is_as_if_it_were_the_selection(monkeypatch, block):
    monkeypatch.setattr(prefixes, "BLOCK_ROWS", block)
    source, row_n, label_n, budgets = world(block)
    found = measure_prefixes(source, source.stats, GROUPS, row_n, label_n, 4, budgets, EDGES)
    z_NC = (source.gather(source.rows).astype(float) - source.stats.mean_T) / np.where(
        source.stats.used_T, source.stats.std_T, 1
    )
    for m, budget in enumerate(budgets):
        balance = measure_balance(source, source.stats, GROUPS, row_n[:budget])
        np.testing.assert_allclose(found.aid_MC[m], balance.aid_T[found.column_C], rtol=1e-12)
        assert dict(zip(found.tasks, found.flow_MSG[m].sum(axis=0), strict=True)) == balance.thi_task
        assert dict(zip(found.tasks, found.instance_MG[m], strict=True)) == balance.thi_instance
        assert found.flow_MSG[m].sum(axis=1).tolist() == np.bincount(label_n[:budget], minlength=4).tolist()
        for g, task in enumerate(found.tasks):
            columns = [j for j, group in enumerate(GROUPS) if group == task and source.stats.used_T[j]]
            mean_n = z_NC[row_n[:budget]][:, columns].mean(axis=1)
            inside = np.clip(mean_n, EDGES[0], EDGES[-1])
            assert found.bins_MGH[m, g].tolist() == np.histogram(inside, EDGES)[0].tolist()


def test_budgets_of_nothing_are_refused():
    source, row_n, label_n, budgets = world(0)
    with pytest.raises(DataError, match="0 rows are chosen"):
        measure_prefixes(source, source.stats, GROUPS, row_n[:0], label_n[:0], 4, budgets[:0], EDGES)


@pytest.mark.parametrize("seed", range(4))
def test_shared_rows_of_two_prefixes_are_the_rows_in_both(seed):
    generator = np.random.default_rng(seed)
    a, b = generator.permutation(50)[:40], generator.permutation(50)[:17]
    budgets = np.arange(1, 46)
    slow = [len(set(a[:budget].tolist()) & set(b[:budget].tolist())) for budget in budgets]
    assert shared_prefixes(a, b, budgets).tolist() == slow
