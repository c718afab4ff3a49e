"""What `influray value` found, as tables: they fit 80 columns whatever rows and tasks are called."""

from __future__ import annotations

from typing import Any

import pytest
from rich.cells import cell_len

from influray.report.terminal import GAP, NARROWEST, fit
from influray.report.value import value_notes, value_tables

LONG = "an id that goes on and on, without an end, \u4f60\u597d\u4f60\u597d " * 3
NUMBERS = {"mean": 0.5, "mean_of_chosen": -1.25, "gain": 0.25, "gain_of_pool": None, "gain_of_best": 12.0}


def found(name: str, **changes: Any) -> dict[str, Any]:
    row = {"id": name, "source": name, "text": name * 20}
    kinds = [{"of": of, "kind": kind, "rows": 3} for of in ("pool", "new") for kind in ("same text", "near")]
    reasons = "nothing helps", "helped far less than the others", "least helped of its task"
    return {
        "place": "validate/value/0123",
        "selection": "bids",
        "chosen": 200,
        "rows": 5210,
        "unusable": 0,
        "contaminated": [],
        "counted": 1000,
        "tasks": [{"task": name[:40], "role": "seek", **NUMBERS}],
        "mean": NUMBERS,
        "copies": {"kinds": kinds, "note": ""},
        "best": {"ids": [name] * 30, "described": [{**row, "gain": 0.125, "target": name, "task": name}] * 30},
        "wanted": {
            "met": [],
            "targets": [
                {**row, "task": name, "reason": reason, "z_of_pool": 11.25, "z_of_new": -0.5} for reason in reasons
            ],
        },
        **changes,
    }


@pytest.mark.parametrize("name", ["sums", LONG])
def test_tables_fit_eighty_columns(name):
    tables = value_tables(found(name), 80)
    assert len(tables) == 4
    fitted, _ = fit(tables, 80, [])
    assert len(fitted) == 4, "none is cut"
    for table in fitted:
        widths = [max(map(cell_len, cells)) for cells in zip(table.columns, *table.rows, strict=True)]
        others = sum(GAP + width for width in widths[1:])
        assert min(widths[0], NARROWEST) + others <= 80, table.title
    assert tables[0].title == "1,000 of 5,210 rows beside bids (200 rows)"
    assert tables[0].rows[-1] == ("all tasks", "+0.500", "\u22121.250", "+0.250", "\u2013", "+12.000")
    assert [row[0] for row in tables[2].rows] == [str(rank) for rank in range(1, 11)]
    assert [row[4] for row in tables[3].rows] == ["nothing helps", "far less", "least of task"]


def test_what_was_left_out_is_told():
    assert len(value_notes(found("a"))) == 2
    wanted = {"met": ["t-1"], "targets": []}
    told = found("a", unusable=3, contaminated=["leak"], wanted=wanted, best={"ids": [], "described": []})
    notes = " ".join(value_notes({**told, "copies": {"kinds": [], "note": "near copies: some are missed"}}))
    for text in ("No new row helps", "are helped now: t-1", "3 rows cannot be used", "record, and are left", "missed"):
        assert text in notes
    assert [table.title for table in value_tables(told, 80)][2:] == []
