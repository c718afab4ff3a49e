"""Reductions and rankings of top_k, the random sample, and what wrong options say."""

from __future__ import annotations

import numpy as np
import pytest

from influray.plugins import permit
from influray.protocols import ConfigError, DataError, Selector
from influray.selectors.api import make_selector, select
from tests.reference.less_matching import less_scores


def matrix(n: int = 120, t: int = 12, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((n, t))


def test_less_on_tasks_of_equal_size_is_the_reshape_of_its_code():
    score_NT = matrix()
    expected_N = less_scores(score_NT, tasks=4)
    found = select(score_NT, list("aaabbbcccddd"), 120, method="less")
    assert found.rows.tolist() == np.argsort(-expected_N, kind="stable").tolist()
    np.testing.assert_allclose(found.merit, expected_N[found.rows], rtol=1e-12)
    assert (found.column == -1).all(), "a task wins, not a column"


def test_a_task_is_found_by_its_name_whatever_its_size_and_place():
    score_NT = matrix(t=7)
    groups = list("abcabab")
    means = [score_NT[:, [0, 3, 5]].mean(axis=1), score_NT[:, [1, 4, 6]].mean(axis=1), score_NT[:, 2]]
    found = select(score_NT, groups, 30, method="less")
    expected_N = np.max(means, axis=0)
    assert found.rows.tolist() == np.argsort(-expected_N, kind="stable")[:30].tolist()
    order = np.random.default_rng(0).permutation(7)
    moved = select(score_NT[:, order], [groups[j] for j in order], 30, method="less")
    assert moved.rows.tolist() == found.rows.tolist()


@pytest.mark.parametrize(("reduction", "expected"), [("sum", np.sum), ("mean", np.mean), ("instance_max", np.max)])
def test_a_reduction_is_what_its_name_says(reduction, expected):
    score_NT = matrix()
    found = select(score_NT, ["a"] * 12, 50, method="top_k", reduction=reduction)
    merit_N = expected(score_NT, axis=1)
    assert found.rows.tolist() == np.argsort(-merit_N, kind="stable")[:50].tolist()
    np.testing.assert_allclose(found.merit, merit_N[found.rows], rtol=1e-12)
    winner = score_NT[found.rows].argmax(axis=1) if reduction == "instance_max" else np.full(50, -1)
    assert found.column.tolist() == winner.tolist()


@pytest.mark.parametrize("method", ["less", "sum", "instance_max", "normalised_instance_max"])
def test_equal_merits_go_to_the_lowest_row_and_then_column(method):
    score_NT = np.tile([[0.0, 0.0], [1.0, 1.0], [1.0, 1.0], [0.0, 0.0]], (25, 1))
    found = select(score_NT, ["a", "b"], 100, method=method)
    assert found.rows.tolist() == sorted(range(100), key=lambda i: (-score_NT[i, 0], i))
    assert set(found.column.tolist()) <= {0, -1}


@pytest.mark.parametrize("block_rows", [1, 2, 7])
def test_the_merit_of_a_row_is_the_same_bits_in_a_block_of_any_size(block_rows):
    from influray.store.attribution import ArrayAttribution

    score_NT = matrix(t=40)
    groups = ["abc"[j % 3] for j in range(40)]
    for method in ("less", "sum"):
        whole = select(score_NT, groups, 120, method=method)
        cut = select(ArrayAttribution(score_NT, block_rows), groups, 120, method=method)
        assert cut.merit.tobytes() == whole.merit.tobytes()
        assert cut.rows.tolist() == whole.rows.tolist()


@pytest.mark.parametrize("share", [0.0, 0.1, 0.3, 1.0])
def test_the_highest_merits_can_be_set_aside_and_are_not_lost(share):
    score_N1 = matrix(t=1)
    order = np.argsort(-score_N1[:, 0], kind="stable").tolist()
    aside = int(share * 120)
    expected = order[aside:] + order[:aside][::-1]
    for budget in (1, 60, 120):
        found = select(score_N1, ["a"], budget, method="sum", drop_share=share)
        assert found.rows.tolist() == expected[:budget]
        assert found.merit.tolist() == score_N1[found.rows, 0].tolist()


def test_a_share_is_set_aside_as_its_decimal_digits_say():
    score_N1 = np.arange(100, dtype=np.float64)[::-1, None]  # 0.29 * 100 is 28.999999999999996 in binary
    assert select(score_N1, ["a"], 1, method="sum", drop_share=0.29).rows.tolist() == [29]


def test_task_weights_scale_the_columns_before_the_reduction():
    score_NT = matrix(t=4)
    found = select(score_NT, list("aabb"), 120, method="sum", task_weights={"b": 3})
    np.testing.assert_allclose(found.merit, np.sort(score_NT @ [1, 1, 3, 3])[::-1], rtol=1e-12)


def test_a_constant_column_stays_in_a_mean_and_leaves_a_standardised_one():
    score_NT = matrix(t=3)
    score_NT[:, 1] = 2.0
    raw = select(score_NT, list("aab"), 120, method="less")
    expected_N = np.maximum(score_NT[:, :2].mean(axis=1), score_NT[:, 2])
    np.testing.assert_allclose(raw.merit, expected_N[raw.rows], rtol=1e-12)
    standard = select(score_NT, list("aab"), 120, method="normalised_instance_max")
    without = select(score_NT[:, [0, 2]], list("ab"), 120, method="normalised_instance_max")
    assert standard.merit.tobytes() == without.merit.tobytes()
    assert standard.column.tolist() == [(0, 2)[c] for c in without.column]


def test_random_is_uniform_over_rows_and_ranks():
    counts = np.zeros((10, 10))
    for seed in range(1000):
        counts[np.arange(10), select(np.zeros((10, 1)), ["a"], 10, method="random", seed=seed).rows] += 1
    # 100 cells of mean 100 and standard deviation sqrt(90): five of those would be 47.
    assert np.abs(counts - 100).max() < 47


def test_random_differs_by_seed_and_repeats_for_one():
    def draw(seed):
        return select(matrix(), ["a"] * 12, 40, method="random", seed=seed).rows.tolist()

    assert draw(3) == draw(3)
    assert draw(3) != draw(4)
    with pytest.raises(ConfigError, match="seed: found -1"):
        draw(-1)


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        ("bids", {"normalizer": "zscore"}, r"options\.normalizer: 'balanced' has no such option; did you mean 'norm"),
        ("bids", {"zzz": 1}, r"\(known: normaliser, iterate, task_weights\)"),
        ("random", {"draws": 1}, r"options\.draws: .* \(it has none\)"),
        (
            "bids",
            {"normaliser": "z-score"},
            r"options\.normaliser: found 'z-score', expected none, zscore, .* or minmax; did you mean 'zscore'\?",
        ),
        ("bids", {"normaliser": ["zscore"]}, r"options\.normaliser: found \['zscore'\], expected none, zscore"),
        (
            "top_k",
            {"reduction": "average"},
            r"options\.reduction: found 'average', expected group_mean_max, instance_max, mean, sum, votes",
        ),
        ("sum", {"drop_share": 1.5}, r"options\.drop_share: found 1\.5, expected a number from 0 to 1"),
        ("bids", {"iterate": "yes"}, r"options\.iterate: found 'yes', expected true or false"),
        ("bids", {"task_weights": [1, 2]}, r"options\.task_weights: found \[1, 2\], expected a mapping"),
        ("bids", {"task_weights": {"a": 0}}, r"options\.task_weights\.a: found 0"),
        ("sum", {"task_weights": {"a": True}}, r"options\.task_weights\.a: found True"),
        ("sum", {"task_weights": {"c": 1.0}}, r"no column has the task 'c' \(known: a, b\)"),
        ("bid", {}, r"method: no method is called 'bid'; did you mean 'bids'"),
        ("no.such:Class", {}, r"plug-in 'no\.such:Class' cannot be imported"),
        ("math:pi", {}, r"'math:pi' is of Python's own library"),
    ],
)
def test_a_wrong_method_or_option_says_what_would_be_right(method, options, message):
    with pytest.raises(ConfigError, match=message):
        select(matrix(t=2), ["a", "b"], 5, method=method, **options)


def test_a_selector_with_a_required_option_asks_for_it():
    permit(["tests.unit.test_selectors:Fixed"])
    with pytest.raises(ConfigError, match=r"options\.value: required by 'tests\.unit\.test_selectors:Fixed'"):
        make_selector("tests.unit.test_selectors:Fixed", {})


class Fixed(Selector):
    """A plug-in whose answer is given, right or wrong."""

    def __init__(self, value):
        self.value = value

    def select(self, problem):
        from influray.protocols import Selection

        rows = np.array(self.value)
        return Selection(rows, np.zeros(len(rows)), np.full(len(rows), -1))


def test_a_plug_in_is_held_to_the_contract():
    name = "tests.unit.test_selectors:Fixed"
    found = select(matrix(), ["a"] * 12, 2, method=name, value=[5, 3])
    assert found.rows.tolist() == [5, 3]
    assert (found.method, dict(found.options)) == (name, {"value": [5, 3]})
    for wrong in ([1], [1, 1], [1, 120], [1, 2, 3]):
        with pytest.raises(ConfigError, match="did not return 2 different rows"):
            select(matrix(), ["a"] * 12, 2, method=name, value=wrong)


@pytest.mark.parametrize("method", ["bids", "less"])
def test_without_a_single_usable_column_the_error_says_why(method):
    score_NT = matrix(t=2)
    score_NT[0, 0], score_NT[1, 1] = np.nan, np.inf
    with pytest.raises(DataError, match="none of the 2 columns can be used .* non-finite"):
        select(score_NT, ["a", "b"], 5, method=method)
