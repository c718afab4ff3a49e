"""Comparing selections: its tables against slow counts, and the same sheet on a terminal, a page and a drawing."""

from __future__ import annotations

import json
import sys
from xml.etree import ElementTree

import numpy as np
import pyarrow.parquet as pq
import pytest
from rich.cells import cell_len

from influray import formatting
from influray.cli import main
from influray.evaluation.overlap import rank_biased_overlap
from influray.protocols import ArtifactMismatch, ConfigError
from influray.report.collect import collect
from influray.report.compare import compare, run_and_name
from influray.report.compare_sheet import compare_sheet
from influray.report.sheet import Table, as_html, as_svg
from influray.report.terminal import abbreviate, fit
from influray.store.attribution import Attribution
from influray.store.run_directory import RunDirectory
from tests.unit.synthetic_run import HOSTILE_SOURCE, TASKS, build_run
from tests.unit.test_report import Page

NAMES = ["bids", "normalised-instance-max", "normalised-instance-mix", "instance-max", "less", "round-robin", "random"]


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> RunDirectory:
    return build_run(tmp_path_factory.mktemp("compare") / "a-run")


@pytest.fixture(scope="module")
def found(run):
    return compare([run.path])


def table(comparison, title: str) -> Table:
    return next(one for one in compare_sheet(comparison).tables if one.title.startswith(title))


def cells(one: Table, row: str) -> dict[str, str]:
    line = next(line for line in one.rows if line[0] == row)
    return dict(zip(one.columns, line, strict=True))


def test_every_selection_and_every_result_has_a_row(run, found):
    data = collect(run.path)
    assert [row[0] for row in table(found, "What was chosen").rows] == ["bids", "less", "random"]
    assert [row[0] for row in table(found, "Over the tests").rows] == ["bids", "less", "random", "full", "base"]
    assert cells(table(found, "Over the tasks"), "bids")["worst task"] == data.selections[0].balance.worst_task
    gain = data.tuned[-1].macro_loss.mean - data.tuned[0].macro_loss.mean
    assert cells(table(found, "Over the tests"), "bids")["gain"] == formatting.signed(gain, 3)
    assert cells(table(found, "Over the tests"), "base")["gain"] == formatting.ABSENT
    for one in compare_sheet(found).tables:
        assert {len(row) for row in one.rows} == {len(one.columns)}


def test_aid_stands_with_its_deviation_over_the_targets(run, found):
    attribution = Attribution(run.attribution)
    score_NT = attribution.gather(attribution.rows).astype(np.float64)
    rows = pq.read_table(run.selection("less") / "selection.parquet")["row"].to_numpy()
    for task in TASKS:
        columns = [j for j, group in enumerate(attribution.groups) if group == task and score_NT[:, j].std() > 0]
        z_NC = (score_NT[:, columns] - score_NT[:, columns].mean(axis=0)) / score_NT[:, columns].std(axis=0)
        aid_C = z_NC[rows].mean(axis=0)
        slow = f"{formatting.signed(aid_C.mean())} \u00b1{formatting.number(aid_C.std())}"
        assert cells(table(found, "AID by task"), task)["less"] == slow


def test_overlap_is_counted_as_sets_and_as_orders(run, found):
    ids = {
        name: pq.read_table(run.selection(name) / "selection.parquet").sort_by("rank")["id"].to_pylist()
        for name in ("bids", "less", "random")
    }
    sets, orders = table(found, "Overlap"), table(found, "Rank-biased")
    depth = len(ids["bids"]) / 10
    for a, first in ids.items():
        for b, second in ids.items():
            slow = len(set(first) & set(second)) / len(set(first) | set(second))
            assert cells(sets, a)[b] == formatting.number(slow)
            ranked = rank_biased_overlap(first, second, 1 - 1 / depth)
            assert cells(orders, a)[b] == cells(orders, b)[a] == formatting.number(ranked)
    assert any("p = 0.58" in note for note in found.notes), found.notes


def test_shares_of_the_sources_stand_beside_the_pools(run, found):
    shares = table(found, "Share of each source")
    assert shares.columns == ("source", "pool", "bids", "less", "random")
    assert formatting.visible(HOSTILE_SOURCE) in [row[0] for row in shares.rows]
    sources = pq.read_table(run.selection("bids") / "selection.parquet")["source"].to_pylist()
    share = sources.count("trivia") / len(sources)
    assert cells(shares, "trivia")["bids"] == formatting.percent(share)


def test_one_selection_can_be_named(run):
    one = compare([run.path / "less", run.path / "bids"])
    assert [entry.label for entry in one.entries] == ["less", "bids"]
    alone = compare_sheet(compare([run.path / "less"]))
    assert "Overlap" not in [section.title for section in alone.sections]


def test_selections_of_two_runs_are_compared_by_record_id(run, tmp_path):
    # The same records in another order: rows differ, ids do not.
    other = build_run(tmp_path / "other", rows=120, seed=5, first_id=60, evaluated=False)
    comparison = compare([run.path, other.path / "random"])
    assert comparison.entries[-1].label == "other/random"
    chosen = {
        name: set(pq.read_table(folder / "selection.parquet")["id"].to_pylist())
        for name, folder in (("mine", run.selection("random")), ("its", other.selection("random")))
    }
    slow = len(chosen["mine"] & chosen["its"]) / len(chosen["mine"] | chosen["its"])
    cell = cells(table(comparison, "Overlap"), "other/random")[f"{run.path.name}/random"]
    assert cell == formatting.number(slow)
    assert any("different matrices" in note for note in comparison.notes)
    assert "pool" not in table(comparison, "Share of each source").columns, "the pools differ"
    styles = [one.style for _, one in comparison.chosen]
    assert len(set(styles)) == len(styles), "two lines of one colour"


def test_runs_of_pools_without_a_common_record_are_refused(run, tmp_path):
    other = build_run(tmp_path / "other", rows=40, first_id=10_000, evaluated=False)
    with pytest.raises(ArtifactMismatch, match="no record id in common"):
        compare([run.path, other.path])


def test_a_comparison_of_nothing_says_what_is_wrong(run, tmp_path):
    with pytest.raises(ConfigError, match="no run given"):
        compare([])
    with pytest.raises(ConfigError, match="neither a run directory"):
        compare([tmp_path / "nowhere"])
    with pytest.raises(ConfigError, match="no selection 'bibs'.*known: bids, less, random"):
        compare([run.path / "bibs"])
    bare = build_run(tmp_path / "bare", rows=40, selections=False, evaluated=False)
    with pytest.raises(ArtifactMismatch, match="influray select"):
        compare([bare.path])


def test_the_sheet_is_a_page_and_a_drawing_that_need_nothing(found):
    sheet = compare_sheet(found)
    page = Page(as_html(sheet))
    assert not [tag for tag, _ in page.elements if tag in ("script", "link", "img", "iframe")]
    assert HOSTILE_SOURCE not in page.text
    assert formatting.visible(HOSTILE_SOURCE) in page.text
    for one in sheet.tables:
        assert one.title in page.text
    root = ElementTree.fromstring(as_svg(sheet))
    assert len([node for node in root if node.tag.endswith("svg")]) == len(sheet.figures) == 6
    assert "http" not in "".join(value for node in root.iter() for value in node.attrib.values())
    places = [float(node.get("y")) for node in root if node.tag.endswith("svg")]
    heights = [float(node.get("height")) for node in root if node.tag.endswith("svg")]
    for place, height, following in zip(places, heights, places[1:], strict=False):
        assert place + height < following, "a drawing covers the next one"


def test_the_same_comparison_gives_the_same_bytes(run, found):
    assert as_html(compare_sheet(found)) == as_html(compare_sheet(compare([run.path])))


def wide() -> list[Table]:
    rows = tuple((f"a task of some length {k}", *["+0.29 \u00b10.12"] * len(NAMES)) for k in range(8))
    return [
        Table("AID", ("task", *NAMES), rows),
        Table("Overlap", ("selection", *NAMES), tuple((name, *["0.50"] * len(NAMES)) for name in NAMES)),
    ]


def extent(one: Table) -> int:
    lines = (one.columns, *one.rows)
    return sum(max(cell_len(line[c]) for line in lines) for c in range(len(one.columns))) + 2 * (len(one.columns) - 1)


@pytest.mark.parametrize("width", [60, 80, 100, 120, 400])
def test_tables_fit_the_terminal_and_lose_no_cell(width):
    tables = wide()
    fitted, short = fit(tables, width, NAMES)
    assert max(extent(one) for one in fitted) <= width
    for one in tables:
        parts = [part for part in fitted if part.title.startswith(one.title)]
        assert {part.rows[k][0] for part in parts for k in range(len(one.rows))} == {row[0] for row in one.rows}
        heads = [short.get(head, head) for part in parts for head in part.columns[1:]]
        assert heads == list(one.columns[1:])
        cut = [tuple(cell for part in parts for cell in part.rows[k][1:]) for k in range(len(one.rows))]
        assert cut == [row[1:] for row in one.rows]
    assert not short or width < 400, "names are shortened only where they must be"


def test_short_names_differ_and_those_that_fit_stay():
    for most in range(8, 25):
        short = abbreviate(NAMES, most)
        assert len(set(short.values())) == len(NAMES)
        assert all(len(name) <= most for name in short.values())
        assert all(short[name] == name for name in NAMES if len(name) <= most)
    assert abbreviate(["normalised-instance-max"], 14) == {"normalised-instance-max": "norm-inst-max"}


def command(monkeypatch, capsys, *arguments: str) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "argv", ["influray", *arguments])
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        main()
    captured = capsys.readouterr()
    return int(stop.value.code or 0), captured.out, captured.err


def test_the_command_prints_the_tables_and_writes_the_files(run, tmp_path, monkeypatch, capsys):
    page, drawing, numbers = tmp_path / "c.html", tmp_path / "c.svg", tmp_path / "c.json"
    status, out, _ = command(
        monkeypatch, capsys, "compare", str(run.path), "--figure", str(page), "--json", str(numbers)
    )
    assert status == 0
    assert "Rank-biased overlap" in out
    assert "<!doctype html>" in page.read_text()
    tree = json.loads(numbers.read_text())
    assert [entry["label"] for entry in tree["entries"]] == ["bids", "less", "random", "full", "base"]
    assert tree["overlap"]["jaccard"][0][0] == 1
    assert tree["entries"][0]["selection"]["balance"]["aid"]["sums"].keys() == {"mean", "std"}
    assert command(monkeypatch, capsys, "compare", str(run.path), "--figure", str(drawing))[0] == 0
    assert ElementTree.parse(drawing).getroot().tag.endswith("svg")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--figure", "x.png"], ["--figure", "x.png", ".html", ".svg"]),
        (["--figure", "no/such/folder/x.svg"], ["--figure", "no/such/folder"]),
        (["--json", "."], ["--json", "is a folder"]),
    ],
)
def test_files_that_cannot_be_written_are_refused_before_the_work(run, monkeypatch, capsys, arguments, said):
    status, out, err = command(monkeypatch, capsys, "compare", str(run.path), *arguments)
    assert status == 2
    assert not out
    for text in said:
        assert text in err


def test_the_path_that_a_run_prints_names_its_selection_and_a_folder_above_a_run_names_the_run(run):
    for part in ("selection/bids", "selection/bids/selected.jsonl"):
        assert run_and_name(run.path / part, "export") == (run.path, "bids")
    with pytest.raises(ConfigError, match=f"did you mean {run.path}"):
        run_and_name(run.path.parent, "export")
