"""The report: its numbers against slow ones, its page against hostile text, its parts left out one by one."""

from __future__ import annotations

import dataclasses
import shutil
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from influray import formatting
from influray.protocols import ArtifactMismatch, ConfigError
from influray.report.collect import collect, general
from influray.report.compare import compare
from influray.report.compare_sheet import compare_sheet
from influray.report.data import TaskBalance, TaskFacts
from influray.report.evaluations import tuned
from influray.report.examples import extreme
from influray.report.figures import (
    NARROW,
    WIDTH,
    Interval,
    Line,
    Series,
    bullet,
    dots,
    heat_map,
    intervals,
    lines,
    ticks,
    wide_part,
)
from influray.report.page import render, write_report
from influray.store.artifact import read_sealed, write_sealed
from influray.store.attribution import Attribution
from influray.store.run_directory import RunDirectory
from tests.unit.synthetic_run import HOSTILE, HOSTILE_SOURCE, TASKS, build_run

VOID = {"meta", "br", "img", "link", "input", "hr"}
UNSAFE = "\u202e\u202c\u200f\u2066\x00\x1b\ud800"


class Page(HTMLParser):
    """Reads a page as a browser would and keeps what matters; fails on elements that do not nest."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)
        self.close()
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open
        assert self.open[-1] == tag, f"</{tag}> closes <{self.open[-1]}>"
        self.open.pop()

    def handle_data(self, data):
        self.text += data

    @property
    def words(self) -> str:
        return " ".join(self.text.split())


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> RunDirectory:
    return build_run(tmp_path_factory.mktemp("report") / "a-run")


@pytest.fixture(scope="module")
def page(run) -> Page:
    return Page(write_report(run.path).read_text(encoding="utf-8"))


def copy_of(run: RunDirectory, folder: Path) -> RunDirectory:
    shutil.copytree(run.path, folder / run.path.name)
    return RunDirectory(folder / run.path.name)


def test_the_page_asks_nothing_of_the_network_and_runs_no_script(page):
    assert not [tag for tag, _ in page.elements if tag in ("script", "link", "img", "iframe", "object", "base")]
    for tag, attributes in page.elements:
        for name, value in attributes.items():
            assert not name.startswith("on"), f"<{tag}> has the handler {name}"
            if name in ("href", "src", "action", "data", "xlink:href"):
                assert value is not None
                assert value.startswith("#") or value == "explorer.html", f"<{tag} {name}={value}> leaves the page"
    policy = next(a["content"] for t, a in page.elements if t == "meta" and "http-equiv" in a)
    assert policy == "default-src 'none'; style-src 'unsafe-inline'"


def test_hostile_text_stands_on_the_page_as_text(page):
    shown = [" ".join(formatting.visible(text).split()) for text in HOSTILE]
    missing = [text for text in shown if text not in page.words]
    assert not missing, f"not on the page as it was written: {missing}"
    assert formatting.visible(HOSTILE_SOURCE) in page.text


def test_no_mark_that_steers_the_reading_reaches_the_page(run):
    html = render(collect(run.path))
    assert not [character for character in UNSAFE if character in html]
    assert "[U+202E]" in html


def test_a_name_or_a_reason_that_is_hostile_is_escaped_too(run):
    attack = "</title></style><script>x</script>\"'\u202e\ud800"
    data = collect(run.path)
    quarantine = dataclasses.replace(
        data.quarantine,
        groups=((attack, attack, attack, 1),),
        first=({"file": attack, "line": 1, "id": attack, "stage": attack, "reason": attack},),
    )
    steps = (dataclasses.replace(data.steps[0], name=attack, facts={"started": attack, attack: attack}),)
    hostile = dataclasses.replace(
        data,
        name=attack,
        model=attack,
        finding=(attack,),
        quarantine=quarantine,
        steps=steps,
        versions={attack: attack},
    )
    html = render(hostile)
    assert not [tag for tag, _ in Page(html).elements if tag == "script"]
    html.encode("utf-8")


@pytest.mark.parametrize(
    ("tasks", "title"),
    [
        ([], "run"),
        (["math"], "run: math"),
        (["math", "code", "law"], "run: math, code and law"),
        (["math", "code", "law", "art"], "run: math, code and 2 more"),
    ],
)
def test_a_page_is_called_after_the_run_and_its_tasks(run, tasks, title):
    data = collect(run.path)
    named = dataclasses.replace(data, name="run", tasks=tuple(TaskFacts(task, 1, 1) for task in tasks))
    assert named.title == title
    assert f"<h1>{formatting.visible(data.title)}</h1>" in render(data)


def test_the_same_run_gives_the_same_bytes(run):
    first = write_report(run.path).read_bytes()
    run.record_step("report", status="done", seconds=3.2, started="2027-01-01T00:00:00+00:00")
    assert write_report(run.path).read_bytes() == first, "the page tells when it was made, or of itself"


def test_aid_and_thi_are_those_of_the_definition(run):
    attribution = Attribution(run.attribution)
    score_NT = attribution.gather(attribution.rows).astype(np.float64)
    used = [j for j in range(len(attribution.groups)) if score_NT[:, j].std() > 0]
    z_NT = (score_NT - score_NT.mean(axis=0)) / np.where(score_NT.std(axis=0) > 0, score_NT.std(axis=0), 1)
    for selection in collect(run.path).selections:
        rows = pq.read_table(run.selection(selection.name) / "selection.parquet")["row"].to_pylist()
        by_task = dict.fromkeys(TASKS, 0)
        for i in rows:
            means = {t: np.mean([z_NT[i, j] for j in used if attribution.groups[j] == t]) for t in TASKS}
            by_task[max(means, key=lambda task: means[task])] += 1
        assert selection.balance.thi_task == by_task
        for task in TASKS:
            columns = [j for j in used if attribution.groups[j] == task]
            slow = np.mean([[z_NT[i, j] for j in columns] for i in rows])
            assert selection.balance.aid[task] == pytest.approx(slow, abs=1e-5)


def test_the_page_shows_the_curve_of_every_selection_with_its_knee(run, page):
    data = collect(run.path)
    assert [one.name for one in data.curves] == ["bids", "less", "random"]
    for one, selection in zip(data.curves, data.selections, strict=True):
        assert one.curve.macro[-1] == pytest.approx(selection.balance.macro)
        assert one.curve.worst_task(-1) == selection.balance.worst_task
        assert one.tokens_M[-1] == selection.tokens
    drawn = [tag for tag, attributes in page.elements if attributes.get("class") == "knee"]
    knees = [knee for one in data.curves for knee in (one.coverage_knee, one.worst_knee)]
    assert len(drawn) == 2 * sum(knee.index is not None for knee in knees) > 0  # for either width


def test_worst_best_spread_and_entropy_follow_from_aid_and_thi():
    balance = TaskBalance(
        {"a": 1.0, "b": -1.0, "c": 3.0}, dict.fromkeys("abc", 0.0), {"a": 5, "b": 5, "c": 0}, {"a": 10, "b": 0, "c": 0}
    )
    assert (balance.macro, balance.worst_task, balance.best_task) == (1.0, "b", "c")
    assert balance.spread == pytest.approx(np.std([1.0, -1.0, 3.0]))
    assert balance.entropy == pytest.approx(np.log(2) / np.log(3))
    assert TaskBalance({"a": 1.0}, {"a": 0.0}, {"a": 5}, {"a": 5}).entropy == 1.0


def test_what_was_planted_is_found_again(run, page):
    data = collect(run.path)
    assert {known.task: known.auc > 0.9 for known in data.known} == {"sums": True, "facts": True}
    assert data.known[1].absent == ("not-there",)
    ordering = next(task for task in data.examples if task.task == "ordering")
    assert {example.source for example in ordering.helpful} == {HOSTILE_SOURCE}
    assert [left.id for left in data.left_out] == ["facts-2"]
    assert "bids" in data.finding[0]
    assert data.finding[0] in page.words


def test_examples_are_the_ends_of_the_matrix_and_tell_who_chose_them(run):
    attribution = Attribution(run.attribution)
    row = {
        name: pq.read_table(run.selection(name) / "selection.parquet")["row"].to_pylist() for name in ("bids", "less")
    }
    score_NT = attribution.gather(attribution.rows)
    for task in collect(run.path).examples:
        columns = np.flatnonzero((np.array(attribution.groups) == task.task) & attribution.stats.used_T)
        z_NC = (score_NT[:, columns] - attribution.stats.mean_T[columns]) / attribution.stats.std_T[columns]
        score_N = z_NC.mean(axis=1)
        assert task.helpful[0].row == int(score_N.argmax())
        assert task.harmful[0].row == int(score_N.argmin())
        assert all(example.score < 0 and example.influence < 0 for example in task.harmful)
        assert [e.score for e in task.helpful] == sorted((e.score for e in task.helpful), reverse=True)
        for example in (*task.helpful, *task.harmful):
            assert example.influence == pytest.approx(float(score_NT[example.row, columns].mean()), rel=1e-5)
            for name, rows in row.items():
                assert example.chosen.get(name) == (rows.index(example.row) + 1 if example.row in rows else None)


def test_rows_of_one_text_are_shown_once_and_counted(run):
    data = collect(run.path)
    last = data.pool.rows - 1  # a copy of row 0, planted as the best of this task
    reversal = next(task for task in data.examples if task.task == "reversal")
    assert {e.row for e in reversal.helpful if e.copies == 2} in ({0}, {last})
    assert len({e.turns for e in reversal.helpful}) == len(reversal.helpful)
    for selection in data.selections:
        rows = pq.read_table(run.selection(selection.name) / "selection.parquet")["row"].to_pylist()
        assert selection.duplicates == ({0, last} <= set(rows))
    assert any(selection.duplicates for selection in data.selections), "nothing was tested"


def test_extremes_are_those_of_a_full_stable_sort():
    generator = np.random.default_rng(3)
    for size in (1, 2, 7, 50):
        value_N = generator.integers(0, 5, size).astype(float)
        for most in range(1, size + 1):
            assert extreme(value_N, most).tolist() == np.argsort(value_N, kind="stable")[:most].tolist()


@pytest.mark.parametrize(
    ("gone", "said"),
    [
        (("selection",), "influray select CONFIG"),
        (("evaluation",), "influray evaluate CONFIG"),
        (("attribution",), "influray score CONFIG"),
        (("data", "selection", "attribution", "evaluation", "quarantine.jsonl", "run.json"), "influray run CONFIG"),
    ],
)
def test_a_part_that_is_not_there_names_the_command_that_makes_it(run, tmp_path, gone, said):
    copy = copy_of(run, tmp_path)
    for name in gone:
        path = copy.path / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert said in Page(render(collect(copy.path))).words


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="config"):
        collect(tmp_path)


def test_a_selection_of_another_pool_is_refused(run, tmp_path):
    copy = copy_of(run, tmp_path)
    path = copy.selection("bids") / "selection.parquet"
    table = pq.read_table(path)
    ids = pa.array(["stranger", *table["id"].to_pylist()[1:]])
    pq.write_table(table.set_column(table.schema.get_field_index("id"), "id", ids), path)
    with pytest.raises(ArtifactMismatch, match="influray select"):
        collect(copy.path)


def test_the_quarantine_is_counted_by_reason(run):
    quarantine = collect(run.path).quarantine
    assert quarantine.total == 2
    assert [(split, stage, rows) for split, stage, _, rows in quarantine.groups] == [("pool", "read", 1)] * 2
    assert general("id 'a' was used in x.jsonl:12") == general("id 'b' was used in y.jsonl:7")
    assert general("non-finite loss") != general("non-finite gradient")


def test_results_are_means_over_tasks_and_then_seeds():
    by_seed = {
        0: {"a": {"loss": 1.0, "exact_match": 0.5}, "b": {"loss": 3.0, "exact_match": None}},
        1: {"a": {"loss": 2.0, "exact_match": 0.7}, "b": {"loss": 5.0, "exact_match": None}},
    }
    found = tuned("bids", "c0", by_seed, "exact_match")
    assert dataclasses.astuple(found.macro_loss) == (2.75, 2.0, 3.5)
    assert dataclasses.astuple(found.loss["b"]) == (4.0, 3.0, 5.0)
    assert list(found.exact) == ["a"], "a task without answers has no exact match"
    assert found.macro_exact.mean == pytest.approx(0.6)
    assert (found.worst_loss_task, found.worst_exact_task) == ("b", "a")
    assert found.spread_loss == pytest.approx(np.std([1.5, 4.0]))


def test_teacher_forced_matches_stand_in_where_nothing_was_generated(run, tmp_path):
    copy = copy_of(run, tmp_path)
    for path in (copy.path / "evaluation").glob("*/*.json"):
        tree = read_sealed(path)
        for results in tree["tasks"].values():
            results.update(exact_match=None, teacher_forced=0.25)
        write_sealed(path, tree)
    data = collect(copy.path)
    assert {one.exact_metric for one in data.tuned} == {"teacher_forced"}
    assert data.tuned[0].macro_exact.mean == 0.25
    assert "teacher forcing" in Page(render(data)).words
    shown = " ".join((*data.finding, repr(compare_sheet(compare([copy.path])))))
    assert "teacher-forced match" in shown
    assert "exact match" not in shown.lower()


def test_an_evaluation_of_other_tasks_is_refused(run, tmp_path):
    copy = copy_of(run, tmp_path)
    write_sealed(copy.evaluation("bids", 1), {"tasks": {"another": {"loss": 1.0}}})
    with pytest.raises(ArtifactMismatch, match="influray evaluate"):
        collect(copy.path)


@pytest.mark.parametrize(
    ("low", "high"), [(0, 1), (-0.3, 0.85), (0, 0), (5, 5), (-2e-7, 3e-7), (120, 98_000), (-1e-3, 0)]
)
def test_ticks_are_round_and_cover_the_values(low, high):
    marks = ticks(low, high)
    step = marks[1] - marks[0]
    assert marks[0] <= low + 1e-12
    assert marks[-1] >= high - 1e-12
    assert 2 <= len(marks) <= 9
    assert round(step / 10 ** np.floor(np.log10(step) + 1e-9), 6) in (1, 2, 5)


def test_figures_are_well_formed_whatever_their_labels():
    attack = "</svg><script>\"'&" * 3
    drawings = [
        dots(
            [attack, "b"],
            [Series(attack, "c0", [1.0, None], [0.5, None], [1.5, None]), Series("s", "cg", [0.2, -3.0])],
            ident="a",
            title=attack,
            axis=attack,
            reference=0.0,
            stems=True,
        ),
        intervals([Interval(attack, "c1", 0.0, 0.1, 0.2, 0.3, 0.4, [0.0, 0.4])], ident="b", title=attack, axis=attack),
        heat_map([attack], [attack, "c"], [[0.5, None]], [[attack, "-"]], ident="c", title=attack),
        lines(
            [Line(attack, "c0", [(1.0, 2.0), (3.0, -1.0)], 1), Line("s", "c1", [(2.0, 0.0)])],
            ident="d",
            title=attack,
            x_axis=attack,
            y_axis=attack,
            rule=(2.0, attack),
        ),
        bullet(0.4, 1.0, "c0", 2.0),
    ]
    for drawing in drawings:
        root = ElementTree.fromstring(f"<both>{drawing}</both>")
        assert not [node for node in root.iter() if node.tag == "script"]
    for drawing in drawings[:4]:
        both = ElementTree.fromstring(f"<both>{drawing}</both>")
        assert ElementTree.tostring(both[0]) == ElementTree.tostring(ElementTree.fromstring(wide_part(drawing)))
        for root, kind, most in zip(both, ("wide", "narrow"), (WIDTH, NARROW), strict=True):
            assert root.get("class") == f"figure {kind}"
            assert float(root.get("width")) <= most
            assert root.get("role") == "img"
            labels = root.get("aria-labelledby").split()
            assert {node.get("id") for node in root.iter()} >= set(labels)
        idents = [node.get("id") for node in both.iter() if node.get("id")]
        assert len(set(idents)) == len(idents)


@pytest.mark.parametrize("width", [WIDTH, NARROW])
def test_nothing_is_drawn_beyond_the_edges_of_a_figure(width):
    """Texts by their letters; a label longer than there is room for is cut off."""
    names = ["a short one", "a task of a name that is rather long for a label"]
    series = [Series(name, f"c{k}", [-0.25, 1e4], [-1.0, 9e3], [0.5, 1.1e4]) for k, name in enumerate(names)]
    axis = "standard deviations of influence above the pool's mean"
    rows = [Interval(name, "c1", -1.0, -0.5, 0.0, 0.5, 2.0, [0.0]) for name in names]
    curves = [Line(name, "c0", [(0.0, 1.0), (123_456.0, 2.0)]) for name in names]
    for drawing in (
        dots(names, series, ident="a", title="t", axis=axis, reference=0.0),
        intervals(rows, ident="b", title="t", axis=axis),
        heat_map(names, [f"column {c}" for c in range(5)], [[0.5] * 5] * 2, [["100%"] * 5] * 2, ident="c", title="t"),
        lines(curves, ident="d", title="t", x_axis="rows of the selection", y_axis="mean influence"),
    ):
        root = ElementTree.fromstring(f"<both>{drawing}</both>")[width == NARROW]
        for node in root.iter("text"):
            long = len("".join(node.itertext()) if not len(node) else node[0].tail) * 5.8  # letters of 12 px
            x, anchor = float(node.get("x")), node.get("text-anchor")
            left = x - {"start": 0, "middle": long / 2, "end": long}[anchor]
            assert left >= -3, node[0].text if len(node) else node.text
            assert left + long <= float(root.get("width")) + 3, node[0].text if len(node) else node.text
        assert all(0 <= float(node.get("cx")) <= width for node in root.iter("circle"))


def test_marks_stand_at_their_values():
    drawing = dots(["a", "b", "c"], [Series("s", "c0", [0.0, 5.0, 10.0])], ident="x", title="t", axis="a")
    circles = [float(n.get("cx")) for n in ElementTree.fromstring(wide_part(drawing)).iter() if n.tag == "circle"]
    assert circles[1] - circles[0] == pytest.approx(circles[2] - circles[1], abs=0.11)
    assert circles[0] < circles[1]


def test_curves_run_through_their_points_and_mark_the_knee():
    points = [(1.0, 0.0), (2.0, 3.0), (4.0, 4.0)]
    root = ElementTree.fromstring(
        wide_part(lines([Line("s", "c0", points, 1)], ident="x", title="t", x_axis="x", y_axis="y"))
    )
    drawn = next(node for node in root.iter() if node.tag == "polyline").get("points").split()
    (x1, y1), (x2, y2), (x3, y3) = [tuple(float(v) for v in point.split(",")) for point in drawn]
    assert x3 - x2 == pytest.approx(2 * (x2 - x1), abs=0.2)
    assert y1 - y2 == pytest.approx(3 * (y2 - y3), abs=0.3)
    knee = next(node for node in root.iter() if node.get("class") == "knee")
    assert (float(knee.get("cx")), float(knee.get("cy"))) == (x2, y2)


def test_a_legend_too_long_for_one_line_takes_several():
    series = [Series(f"a rather long name {k}", f"c{k % 6}", [float(k)]) for k in range(9)]
    root = ElementTree.fromstring(wide_part(dots(["a"], series, ident="x", title="t", axis="a")))
    legend = [(float(n.get("x")), float(n.get("y"))) for n in root.iter() if n.get("class") == "legend"]
    assert len({y for _, y in legend}) > 1
    assert len(set(legend)) == 9
    assert max(x for x, _ in legend) < 880 - 20 * 6
    stripe = next(n for n in root.iter() if n.get("class") == "stripe")
    assert float(stripe.get("y")) > max(y for _, y in legend), "the legend stands above the rows"


def test_numbers_read_as_people_write_them():
    assert formatting.signed(-0.004) == "0.00", "no minus zero"
    assert formatting.signed(-1234.5, 1) == "\u22121,234.5"
    assert formatting.percent(0.00001) == "<0.1%"
    assert formatting.percent(0.0) == "0.0%"
    assert [formatting.seconds(s) for s in (0.314, 59.96, 245, 7620)] == [
        "0.31 s",
        "1 min 00 s",
        "4 min 05 s",
        "2 h 07 min",
    ]
    assert [formatting.tokens(n) for n in (812, 45_210, 3_100_000, 1.25e9)] == ["812", "45.2K", "3.10M", "1.25B"]
    assert formatting.visible("a\u202eb\r\nc\u200dd") == "a[U+202E]b\nc\u200dd", "joiners belong to scripts and emoji"
