"""The explorer's numbers against those of the report, its pages of rows against a slow search, its HTML as text."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from influray.data.catalogue import Catalogue
from influray.data.drafts import SCHEMA
from influray.data.records import parse_record
from influray.protocols import ArtifactMismatch, ConfigError
from influray.report.collect import collect
from influray.report.explorer import page as page_module
from influray.report.explorer.data import chosen_rows, overview
from influray.report.explorer.page import explorer_page, write_explorer
from influray.report.explorer.rows import ChosenRows, open_chosen
from influray.report.explorer.sample import sample_rows
from influray.report.page import write_report
from influray.report.templating import inline_json
from influray.store.artifact import ShardStore, describe, hash_bytes, write_json, write_manifest, write_sealed
from influray.store.attribution import Attribution
from influray.store.run_directory import RunDirectory
from influray.store.selection import TABLE, read_selection
from tests.unit.synthetic_run import HOSTILE, HOSTILE_SOURCE, TASKS, build_run


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> RunDirectory:
    return build_run(tmp_path_factory.mktemp("explorer") / "a-run")


def test_a_whole_selection_has_the_numbers_of_the_report(run):
    found, report = overview(run.path), collect(run.path)
    assert json.loads(json.dumps(found, allow_nan=False)) == json.loads(json.dumps(found)), "plain JSON"
    tasks = [task["name"] for task in found["tasks"]]
    for entry, one in zip(found["selections"], report.selections, strict=True):
        at = entry["at"]
        assert dict(zip(tasks, at["aid"][-1], strict=True)) == pytest.approx(one.balance.aid, rel=1e-3)
        assert dict(zip(tasks, at["std"][-1], strict=True)) == pytest.approx(one.balance.aid_std, rel=1e-3)
        assert dict(zip(tasks, at["thi"][-1], strict=True)) == one.balance.thi_task
        assert dict(zip(tasks, at["instance"][-1], strict=True)) == one.balance.thi_instance
        assert at["entropy"][-1] == pytest.approx(one.balance.entropy, rel=1e-3)
        from_source = dict(zip((s["name"] for s in found["sources"]), map(sum, at["flow"][-1]), strict=True))
        assert {name: rows for name, rows in from_source.items() if rows} == dict(one.sources)
        assert all(len(values) == len(found["budgets"]) for values in at.values()), "all have one size here"
    both = [[line[-1] for line in lines] for lines in found["shared"]]
    size = report.selections[0].examples
    found_jaccard = np.array([[n / (2 * size - n) for n in line] for line in both])
    np.testing.assert_allclose(found_jaccard, report.overlap.jaccard)


def test_sources_past_the_limit_are_summed_up(run, monkeypatch):
    monkeypatch.setattr("influray.report.explorer.data.SOURCES", 3)
    found = overview(run.path)
    assert [s["name"] for s in found["sources"]][-1] == "3 other sources"
    assert sum(s["rows"] for s in found["sources"]) == found["pool"]["rows"]
    for entry in found["selections"]:
        assert np.sum(entry["at"]["flow"][-1]) == entry["examples"]


def test_targets_past_the_limit_are_left_out_evenly(run, monkeypatch):
    monkeypatch.setattr("influray.report.explorer.data.TARGET_NUMBERS", 0)
    found = overview(run.path)
    assert [found["tasks"][t["task"]]["name"] for t in found["targets"]] == [task["name"] for task in found["tasks"]]


QUERIES = [
    {},
    {"text": "ANSWER to <SCRIPT>"},
    {"text": "number 1"},
    {"text": "row-1"},
    {"source": "lists"},
    {"source": HOSTILE_SOURCE, "text": "onerror"},
    {"source": "no such source"},
    {"task": "ordering", "sort": "merit"},
    {"sort": "source", "offset": 5, "limit": 7},
    {"sort": "row", "budget": 9},
    {"text": "it goes on", "budget": 12, "sort": "merit", "offset": 1},
]


@pytest.mark.parametrize("query", QUERIES, ids=str)
@pytest.mark.parametrize("name", ["bids", "less"])
def test_a_page_of_rows_is_what_a_slow_search_finds(run, name, query):
    assert chosen_rows(run.path, name, **query) == slow_page(run, name, **query)


def slow_page(run, name, text="", source="", task="", sort="rank", offset=0, limit=50, budget=0):
    catalogue = Catalogue(run.data("pool"))
    rows = []
    for line in pq.read_table(run.selection(name) / TABLE).to_pylist():
        turns = parse_record(catalogue.record(line["row"])).turns
        whole = "\n\n".join(f"{turn.role}: {turn.content}" for turn in turns)
        row = {key: line[key] or "" for key in ("id", "source", "task", "target_id")}
        merit = None if np.isnan(line["merit"]) else line["merit"]
        row |= {"rank": line["rank"], "row": line["row"], "merit": merit, "text": whole[:4000]}
        row |= {"cut": len(whole) > 4000, "chosen_in": None}
        if budget and row["rank"] > budget:
            continue
        if (source and row["source"] != source) or (task and row["task"] != task):
            continue
        if text.lower() in whole.lower() or text.lower() in row["id"].lower():
            rows.append(row)
    keys = {"rank": "rank", "row": "row", "source": "source"}
    rows.sort(key=lambda row: -row["merit"] if sort == "merit" else row[keys[sort]])
    return {"total": len(rows), "variants": None, "rows": rows[offset : offset + limit]}


def test_rows_say_in_how_many_variants_they_are_chosen_while_the_selection_is_that_one(run, tmp_path):
    shutil.copytree(run.path, tmp_path / "copy")
    mine = RunDirectory(tmp_path / "copy")
    assert chosen_rows(mine.path, "bids")["variants"] is None
    rows = read_selection(mine.selection("bids")).rows
    times = [1 + place % 4 for place in range(len(rows))]
    told = {"name": "bids", "rows": len(rows), "variants": 4, "times": times, "digest": hash_bytes(rows.tobytes())}
    found = {"experiment": "stability", "selectors": [told], "fingerprint": "first"}
    mine.validation.mkdir(exist_ok=True)
    write_sealed(mine.validation / "stability.json", found)
    page = chosen_rows(mine.path, "bids", limit=5, offset=3)
    assert page["variants"] == 4
    assert [one["chosen_in"] for one in page["rows"]] == times[3:8]
    assert chosen_rows(mine.path, "less")["variants"] is None  # of which nothing is told
    sample = sample_rows(mine.path, ["bids", "less"], None, 10**9)["selections"]
    assert [row[-1] for row in sample["bids"]["rows"]] == times
    assert (sample["bids"]["variants"], sample["less"]["variants"]) == (4, None)
    shutil.rmtree(mine.selection("bids"))
    shutil.copytree(mine.selection("random"), mine.selection("bids"))
    assert chosen_rows(mine.path, "bids")["variants"] is None  # of these rows nothing is told


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"selection": "bidz"}, "did you mean 'bids'"),
        ({"selection": "../bids"}, "none is called"),
        ({"sort": "merits"}, "did you mean 'merit'"),
        ({"limit": 501}, "at most 500"),
        ({"limit": 0}, "at least 1"),
        ({"offset": -1}, "offset: found -1"),
        ({"text": "x" * 1001}, "at most 1000"),
    ],
)
def test_a_page_that_cannot_be_is_refused(run, wrong, told):
    with pytest.raises(ConfigError, match=told):
        chosen_rows(run.path, **{"selection": "bids", **wrong})


def test_a_search_follows_a_selection_that_was_made_again(run, tmp_path):
    shutil.copytree(run.path, tmp_path / "copy")
    mine = RunDirectory(tmp_path / "copy")
    before = chosen_rows(mine.path, "bids", text="number")
    shutil.rmtree(mine.selection("bids"))
    shutil.copytree(mine.selection("random"), mine.selection("bids"))
    after = chosen_rows(mine.path, "bids", text="number")
    assert after["total"] != before["total"] or after["rows"] != before["rows"]
    assert after == {**slow_page(mine, "bids", text="number")}


def test_a_selection_of_another_pool_is_refused(run, tmp_path):
    shutil.copytree(run.path, tmp_path / "copy")
    mine = RunDirectory(tmp_path / "copy")
    table = pq.read_table(mine.selection("bids") / TABLE)
    beyond = pa.array(np.full(len(table), 10**6))
    folder = mine.selection("bids")
    pq.write_table(table.set_column(1, "row", beyond), folder / TABLE)
    write_manifest(folder, {"fingerprint": "other", "beside": describe(folder, [TABLE])})
    with pytest.raises(ArtifactMismatch, match="not those of"):
        chosen_rows(mine.path, "bids")


def test_the_sample_begins_every_selection_and_keeps_its_bound(run):
    attribution = Attribution(run.attribution)
    names = ["bids", "less", "random"]
    assert not sample_rows(run.path, names, attribution, 0)["records"]
    whole = sample_rows(run.path, names, attribution, 10**9)
    assert all(len(one["rows"]) == one["total"] for one in whole["selections"].values())
    size = len(inline_json(whole))
    for bound in (2000, 6000, size // 2, size + 8000):
        part = sample_rows(run.path, names, attribution, bound)
        counts = [len(one["rows"]) for one in part["selections"].values()]
        assert bound > 2000 or max(counts) < 24
        assert bound < size or max(counts) == 24
        assert max(counts) == min(counts), "each selection gives as many"
        assert len(inline_json(part)) <= bound
        for name in names:
            rows = part["selections"][name]["rows"]
            assert rows == whole["selections"][name]["rows"][: len(rows)]
            assert [row for row, *_ in rows] == read_selection(run.selection(name)).rows[: len(rows)].tolist()
    stats, groups = attribution.stats, np.array(attribution.groups)
    for row, record in whole["records"].items():
        z_T = (attribution.gather(np.array([int(row)]))[0] - stats.mean_T) / np.where(stats.used_T, stats.std_T, 1)
        slow = {task: z_T[(groups == task) & stats.used_T].mean() for task in TASKS}
        assert dict(record["tasks"]) == pytest.approx(slow, rel=1e-3, abs=1e-3)
        values = [value for _, value in record["tasks"]]
        assert values == sorted(values, reverse=True)


def test_the_page_repeats_and_is_written_beside_the_report(run):
    path = write_report(run.path)
    explorer = path.with_name("explorer.html")
    first = explorer.read_bytes()
    write_report(run.path)
    assert explorer.read_bytes() == first
    assert 'href="explorer.html"' in path.read_text(encoding="utf-8")


def test_a_large_run_keeps_the_page_within_its_bound(run, tmp_path, monkeypatch):
    shutil.copytree(run.path, tmp_path / "copy")
    data = collect(tmp_path / "copy")
    bare = len(explorer_page(overview(run.path), live=False).encode())
    monkeypatch.setattr(page_module, "MOST_BYTES", bare + 9000)
    monkeypatch.setattr(page_module, "LEAST_SAMPLE", 2000)
    path = write_explorer(tmp_path / "copy", data)
    assert bare < path.stat().st_size <= bare + 9000


@pytest.mark.parametrize("live", [True, False])
def test_no_text_of_the_pool_ends_the_data_or_begins_markup(run, live):
    rows = sample_rows(run.path, ["bids", "less", "random"], Attribution(run.attribution), 10**9)
    html = explorer_page(overview(run.path), live=live, rows=rows, nonce="abc" if live else "")
    blocks = re.findall(r"<script[^>]*>(.*?)</script>", html, re.DOTALL)
    assert len(blocks) == 2, "the data and the page's own script"
    assert "<" not in blocks[0]
    assert "\u2028" not in html
    told = json.loads(blocks[0])
    texts = " ".join(record["text"] for record in told["rows"]["records"].values())
    for hostile in HOSTILE:
        assert hostile in texts, "unchanged in the data"
    assert html.count("<script") == 2
    assert html.count("<!--") == 0
    assert 'on="' not in html
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', html)[1].replace("&#39;", "'")
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert ("'nonce-abc'" in policy) == live
    assert ("connect-src 'self'" in policy) == live


def test_a_hostile_name_of_a_run_stays_text(run):
    attack = "</title><script>alert(1)</script>\u202e"
    html = explorer_page({**overview(run.path), "name": attack, "title": attack}, live=False)
    assert "<script>alert" not in html
    assert "\u202e" not in html


@pytest.mark.parametrize("part", ["attribution", "selection", "data", "quarantine.jsonl"])
def test_a_run_without_a_part_still_has_a_page(run, tmp_path, part):
    shutil.copytree(run.path, tmp_path / "copy")
    path = tmp_path / "copy" / part
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    found = overview(tmp_path / "copy")
    assert write_explorer(tmp_path / "copy", collect(tmp_path / "copy")).stat().st_size > 10_000
    assert bool(found["tasks"]) == (part not in ("attribution", "data"))
    assert bool(found["selections"]) == (part not in ("selection", "data"))


def large_run(folder: Path, rows: int) -> RunDirectory:
    """A run that chose all `rows` rows of its pool in a random order; nothing but catalogue, config and selection."""
    run = build_run(folder, rows=40, evaluated=False, selections=False)
    shutil.rmtree(run.data("pool"))
    generator = np.random.default_rng(0)
    words = np.array([f"word{i}" for i in range(5000)])
    store, keys = ShardStore(run.data("pool")), []
    for start in range(0, rows, 25_000):
        stop = min(rows, start + 25_000)
        said = [" ".join(line) for line in words[generator.integers(0, 5000, (stop - start, 30))]]
        records = [
            f'{{"id":"r{start + i}","prompt":"{text}","completion":"{i}"}}'.encode() for i, text in enumerate(said)
        ]
        columns = {
            "id": [f"r{i}" for i in range(start, stop)],
            "source": [f"source-{i % 7}" for i in range(start, stop)],
            "record": records,
        }
        table = pa.table(
            [
                pa.array(columns[field.name], field.type)
                if field.name in columns
                else pa.array(
                    [[] if pa.types.is_list(field.type) else ("" if pa.types.is_string(field.type) else 0)]
                    * (stop - start)
                ).cast(field.type)
                for field in SCHEMA
            ],
            schema=SCHEMA,
        )
        keys.append(f"{start:064d}")
        store.commit(keys[-1], table, {})
    store.freeze(keys, {"split": "pool", "encoder": "", "digest": "d", "files": [{"rows": rows}]})
    row_n = generator.permutation(rows)
    table = pa.table(
        {
            "rank": np.arange(1, rows + 1),
            "row": row_n,
            "id": [f"r{i}" for i in row_n],
            "source": [f"source-{i % 7}" for i in row_n],
            "merit": generator.normal(0, 1, rows),
            "target_id": [f"target-{i % 50}" for i in row_n],
            "task": [f"task-{i % 5}" for i in row_n],
            "column": row_n % 50,
        }
    )
    folder = run.selection("bids")
    folder.mkdir(parents=True)
    pq.write_table(table, folder / TABLE)
    write_json(folder / "selection.json", {"method": "bids"})
    files = describe(folder, [TABLE, "selection.json"])
    write_manifest(folder, {"fingerprint": "f", "rows": rows, "beside": files})
    return run


def test_the_work_of_a_page_does_not_grow_with_the_selection(tmp_path, monkeypatch):
    rows = 30_000
    run = large_run(tmp_path / "large", rows)
    done = {"parsed": 0, "searched": 0}

    def counted(kind, name, work):
        original = getattr(kind, name)

        def count(*arguments):
            done[work] += 1
            return original(*arguments)

        monkeypatch.setattr(kind, name, count)

    counted(Catalogue, "parsed", "parsed")
    counted(ChosenRows, "_match", "searched")
    assert len(open_chosen(run.path, "bids").texts) == rows
    assert done == {"parsed": rows, "searched": 0}, "made once for a selection"
    searches = 0
    for query in (
        {},
        {"offset": rows - 20},
        {"sort": "merit"},
        {"sort": "source", "offset": 15_000},
        {"sort": "row", "task": "task-3"},
        {"source": "source-2", "task": "task-1", "budget": 10_000},
        {"text": "word77"},
        {"text": "word77", "offset": 50},
        {"text": "WORD77", "offset": 100, "sort": "merit"},
        {"text": "word78"},
    ):
        done.update(parsed=0, searched=0)
        found = chosen_rows(run.path, "bids", **query)
        assert len(found["rows"]) == min(50, found["total"] - query.get("offset", 0)) > 0
        assert done["parsed"] == len(found["rows"]), query
        searches += done["searched"]
    assert searches == 2, "all texts are looked through once for what is searched, not for every page"
