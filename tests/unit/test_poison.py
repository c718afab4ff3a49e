"""The hunt for the row that kills its process: it convicts who is guilty, in few probes, and nobody else."""

from __future__ import annotations

import math
import random

import pytest

from influray.runtime.poison import Hunt


def carry_out(hunt: Hunt, dies) -> list[tuple[int, int]]:
    """Answer every probe by `dies(rows)` and return them."""
    probes = []
    while not hunt.done:
        first, stop = hunt.probe
        rows = [row for row in range(first, stop) if row not in hunt.without]
        assert rows, "a probe of nothing proves nothing"
        probes.append((first, stop))
        hunt.note(dies(rows))
    return probes


@pytest.mark.parametrize("rows", [1, 2, 3, 5, 64, 500])
def test_the_one_guilty_row_is_found_wherever_it_is(rows):
    for guilty in {*range(min(rows, 8)), rows // 2, rows - 1}:
        hunt = Hunt(100, 100 + rows)
        probes = carry_out(hunt, lambda found, guilty=100 + guilty: guilty in found)
        assert hunt.row == 100 + guilty
        assert len(probes) <= math.ceil(math.log2(rows)) + 4


def test_several_guilty_rows_are_found_one_after_the_other():
    draw = random.Random(0)
    for _ in range(50):
        start = draw.randrange(100)
        guilty = set(draw.sample(range(start, start + 40), draw.randrange(1, 6)))
        without: tuple[int, ...] = ()
        while guilty - set(without):
            hunt = Hunt(start, start + 40, without)
            carry_out(hunt, lambda found, guilty=guilty: bool(guilty & set(found)))
            assert hunt.row in guilty - set(without)
            without = (*without, hunt.row)


def test_where_processes_die_whatever_they_compute_no_row_is_convicted():
    hunt = Hunt(0, 64)
    carry_out(hunt, lambda rows: True)
    assert hunt.row is None
    assert "whatever row" in hunt.finding


def test_where_rows_die_only_together_no_row_is_convicted():
    hunt = Hunt(0, 64)
    carry_out(hunt, lambda rows: len(rows) > 8)
    assert hunt.row is None
    assert "alone lives" in hunt.finding


def test_one_death_that_has_another_cause_convicts_nobody():
    """A node is taken away during any one probe of a shard whose rows are all good."""
    for unlucky in range(10):
        hunt, count = Hunt(0, 64), iter(range(100))
        carry_out(hunt, lambda rows, count=count, unlucky=unlucky: next(count) == unlucky)
        assert hunt.row is None
