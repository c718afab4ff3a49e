"""The verdict at the head of report and comparison: which selection is best, and what the seeds allow to say."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from influray.report.collect import _unknown_to_base as told
from influray.report.evaluations import tuned
from influray.report.finding import difference, finding, verdict
from influray.steps.train import _unknown_to_base


def chosen(name, tokens=1000, examples=50, but_budget=None):
    facts = {"name": name, "method": name.split("-")[0], "tokens": tokens, "examples": examples}
    return SimpleNamespace(**facts, but_budget=but_budget or name)


SELECTIONS = [chosen(name) for name in ("bids", "less", "rr", "random")]


def results(name, macro_losses, exact=None):
    """A selection's results with two tasks, the second always .2 worse."""
    by_seed = {
        seed: {
            "sums": {"loss": loss - 0.1, "exact_match": exact},
            "words": {"loss": loss + 0.1, "exact_match": exact},
        }
        for seed, loss in enumerate(macro_losses)
    }
    return tuned(name, "c0", by_seed, "exact_match")


RANDOM = results("random", [0.60, 0.62, 0.61])
BIDS = results("bids", [0.50, 0.51, 0.52])  # -.10, -.11, -.09
LESS = results("less", [0.70, 0.73, 0.70])
SAME = results("rr", [0.50, 0.75, 0.55])
BASE = results("base", [0.9])


def test_the_interval_is_students_over_differences_paired_by_seed():
    mean, interval = difference(BIDS, RANDOM)
    half = 4.302653 * 0.01 / 3**0.5  # t of two degrees of freedom, times the standard error of -.10, -.11, -.09
    assert mean == pytest.approx(-0.1)
    assert interval == pytest.approx((-0.1 - half, -0.1 + half), rel=1e-4)
    one_seed = difference(results("bids", [0.5]), RANDOM)
    assert one_seed[1] is None


def test_what_is_better_than_random_worse_and_not_told_apart():
    best, beside = verdict(SELECTIONS, [BIDS, LESS, SAME, RANDOM, BASE])
    assert "Tuned on bids the model has a macro answer loss of 0.510" in best
    assert "the lowest of 4 selections (0.900 before tuning)" in best
    assert "its worst task is words, 0.610" in best
    assert "Against random rows (0.610) it is lower with bids (\u22120.100, \u22120.125 to \u22120.075)" in beside
    assert "higher with less (+0.100, " in beside
    assert "not told apart with rr (\u22120.010)" in beside
    assert "95 % over the 3 tuning seeds" in beside


def test_one_seed_has_no_interval_and_without_random_nothing_is_said_to_pay():
    single = [results("bids", [0.5], 0.25), results("random", [0.6], 0.125)]
    _, beside, exact = verdict(SELECTIONS, single)
    assert "not told apart with bids (\u22120.100): one seed has no interval" in beside
    assert exact == "Exact match: 25.0% with bids and 12.5% with random."
    assert "The selection random was not tuned" in verdict(SELECTIONS, [BIDS])[1], "it is there"
    assert "add {name: random, method: random" in verdict(SELECTIONS[:3], [BIDS])[1]


def test_selections_of_unlike_length_are_told_where_both_were_tuned():
    longer = [chosen("less", 1300), *SELECTIONS[:1], *SELECTIONS[2:]]
    told = verdict(longer, [BIDS, LESS, RANDOM])
    assert "1.3 k with less, 1 k with bids and 1 k with random tokens" in told[2]
    assert len(verdict(longer, [BIDS, RANDOM])) == len(told) - 1, "of those that were tuned all are alike"


def budgets(*losses_of_each):
    """Selections of one method with 100, 200 ... rows, and their results."""
    names = [f"bids-{size}" for size in range(1, len(losses_of_each) + 1)]
    made = [chosen(name, examples=100 * place, but_budget="bids") for place, name in enumerate(names, start=1)]
    return made, [results(name, losses) for name, losses in zip(names, losses_of_each, strict=True)]


def test_of_budgets_of_one_method_the_smallest_that_is_not_told_from_the_best_is_enough():
    # The second is higher than the third by .02, .00 and .01, the first by .10, .10 and .11.
    found = budgets([0.60, 0.60, 0.62], [0.52, 0.50, 0.52], [0.50, 0.50, 0.51], [0.51, 0.51, 0.52])
    told = [one for one in verdict(*found) if "budget alone" in one]
    assert len(told) == 1
    assert "bids-1, bids-2, bids-3 and bids-4 differ in budget alone (100, 200, 300 and 400 rows)" in told[0]
    assert "the lowest loss is that of bids-3, and bids-2 is the smallest that is not told apart from it" in told[0]
    assert "(+0.010, \u22120.015 to +0.035; 95 % over the tuning seeds): a budget of 200 is enough." in told[0]


def test_where_all_smaller_budgets_are_worse_the_best_is_the_smallest_that_is_enough():
    found = budgets([0.60, 0.60, 0.61], [0.50, 0.50, 0.51])
    told = next(one for one in verdict(*found) if "budget alone" in one)
    assert "and all smaller ones are higher: a budget of 200 is the smallest that is enough." in told


def test_one_seed_says_of_no_budget_that_it_is_enough_and_other_methods_are_not_budgets():
    told = next(one for one in verdict(*budgets([0.60], [0.50])) if "budget alone" in one)
    assert "the lowest loss is that of bids-2, by one seed, which may be chance; tune.seeds" in told
    assert not any("budget alone" in one for one in verdict(SELECTIONS, [BIDS, LESS, SAME, RANDOM, BASE]))
    made, found = budgets([0.60, 0.61], [0.50, 0.52])
    alike = [SimpleNamespace(**{**vars(one), "examples": 100}) for one in made]
    assert not any("budget alone" in one for one in verdict(alike, found)), "of one size they are no budgets"


def test_untuned_selections_have_no_verdict():
    assert verdict(SELECTIONS, [BASE]) == ()
    assert finding([], []) == ()


def test_a_base_that_guesses_is_told_of_and_one_that_knows_is_not(caplog):
    context = SimpleNamespace(tuned=SimpleNamespace(tokenizer=range(100)))  # guessing among them has a loss of 4.61
    evaluation = {"tasks": {"sums": {"loss": 4.5}, "words": {"loss": 2.0}}}
    assert _unknown_to_base(context, evaluation) == ["sums"]
    assert "knows nothing of sums: its loss there is 4.50, and guessing among its 100 tokens gives 4.61" in caplog.text
    assert told({"evaluate": {"unknown_to_base": ["sums"]}})[0].startswith("The base knows nothing of sums")
    assert told({"evaluate": {"unknown_to_base": []}}) == told({}) == []
