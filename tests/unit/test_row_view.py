"""Some rows of a matrix chosen from as if they were all of it."""

from __future__ import annotations

import numpy as np
import pytest

import influray
from influray.selectors.row_facts import ArrayFeatures
from influray.store import row_view
from influray.store.attribution import ArrayAttribution
from influray.store.row_view import RowView

TASKS = ("a", "a", "b", "b", "b")


@pytest.fixture
def matrix_NT() -> np.ndarray:
    return np.random.default_rng(5).normal(size=(90, 5)).astype(np.float32)


@pytest.fixture
def rows() -> np.ndarray:
    return np.sort(np.random.default_rng(6).choice(90, 40, replace=False)).astype(np.int64)


@pytest.mark.parametrize(
    "method", ["bids", "less", "rr", "facility_location", "interaction", "quota", "icons", "betr", "layers"]
)
@pytest.mark.parametrize("block_rows", [7, 4096])
def test_methods_choose_from_a_view_as_from_its_rows_alone(matrix_NT, rows, monkeypatch, method, block_rows):
    monkeypatch.setattr(row_view, "BLOCK_ROWS", block_rows)
    view = RowView(ArrayAttribution(matrix_NT, block_rows=11), rows, TASKS)
    assert view.shape == (40, 5)
    alone = influray.select(matrix_NT[rows], TASKS, 12, method=method)
    chosen = influray.select(view, TASKS, 12, method=method)
    np.testing.assert_array_equal(chosen.rows, rows[alone.rows])
    np.testing.assert_array_equal(chosen.merit, alone.merit)


def test_blocks_and_lines_are_those_of_the_matrix(matrix_NT, rows, monkeypatch):
    monkeypatch.setattr(row_view, "BLOCK_ROWS", 9)
    view = RowView(ArrayAttribution(matrix_NT), rows, TASKS)
    found, lines = zip(*view.blocks(), strict=True)
    np.testing.assert_array_equal(np.concatenate(found), rows)
    np.testing.assert_array_equal(np.concatenate(lines), matrix_NT[rows])
    np.testing.assert_array_equal(view.gather(rows[[3, 1]]), matrix_NT[rows[[3, 1]]])


def test_near_duplicates_are_told_by_the_row_numbers_of_the_matrix(matrix_NT, rows):
    features_ND = np.random.default_rng(7).normal(size=(90, 8))
    features_ND[rows[5]] = features_ND[rows[9]]
    scores = matrix_NT.copy()
    scores[rows[[5, 9]]] += 3.0  # both would be chosen
    view = RowView(ArrayAttribution(scores), rows, TASKS)
    both = influray.select(view, TASKS, 10, method="sum")
    assert {rows[5], rows[9]} <= set(both.rows.tolist())
    limits = {"near_duplicates": 0.99}
    features = ArrayFeatures(features_ND, 90)
    apart = influray.select(view, TASKS, 10, method="sum", constraints=limits, features=features)
    assert len({rows[5], rows[9]} & set(apart.rows.tolist())) == 1
