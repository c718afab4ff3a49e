"""What a selector leaves in the run directory: records byte for byte, and numbers that can be checked."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pyarrow.parquet as pq
import pytest

from influray.config import DataConfig
from influray.config_select import SelectorConfig
from influray.data.catalogue import Catalogue, build_catalogue
from influray.data.chat import ChatEncoder
from influray.data.files import resolve_files
from influray.evaluation.balance import measure_balance
from influray.protocols import ArtifactMismatch, ConfigError, Limits
from influray.registry import METHODS, SELECTORS
from influray.report.selections import Pool, selection_facts
from influray.runtime.selecting import select_and_write
from influray.selectors.api import needs_features, select
from influray.store.artifact import ShardStore, hash_file, read_manifest
from influray.store.attribution import Attribution, attribution_table, commit_attribution
from influray.store.run_directory import RunDirectory
from influray.store.selection import read_selection
from influray.validation.reselection import Reselection
from tests.tiny import byte_tokenizer, chat, pool_rows

TASKS = ["sums", "sums", "reversals", "reversals", "reversals"]
SELECTOR = {"name": "even", "method": "bids", "budget": 0.5, "seed": 0, "options": {}, "constraints": {}}


@pytest.fixture
def run(tmp_path, request) -> RunDirectory:
    """24 records written with their own spacing, of which row 5 has no scores; 5 columns, one of them constant."""
    rows = [*pool_rows(23), chat("naive-é", "accents", "Ça va?", "Très bien, \u2028 merci.")]
    lines = [
        json.dumps(row, ensure_ascii=i % 2 == 0, indent=None, separators=(" ,", ":  ")) for i, row in enumerate(rows)
    ]
    (tmp_path / "pool.jsonl").write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    config = DataConfig.model_validate({"pool": "pool.jsonl", "targets": {"sums": "pool.jsonl"}})
    files = [("", file) for file in resolve_files(config.pool, tmp_path, "data.pool")]
    run = RunDirectory(tmp_path / "run")
    encoder = ChatEncoder(byte_tokenizer(), "auto", 512)
    build_catalogue(run.data("pool"), "pool", files, encoder, "k", config, quarantine=run.quarantine_path)
    row_N = np.delete(np.arange(24), 5)
    score_NT = np.random.default_rng(0).standard_normal((23, 5)).astype(np.float32)
    score_NT[:, 3] = 0.5
    score_NT *= getattr(request, "param", 1.0)
    store = ShardStore(run.attribution)
    store.commit("a" * 64, attribution_table(row_N[:9], score_NT[:9]), {})
    store.commit("b" * 64, attribution_table(row_N[9:], score_NT[9:]), {})
    ids = ["t1", "t2", "t3", "t4", "t5"]
    commit_attribution(store, ["a" * 64, "b" * 64], {"fingerprint": "f"}, range(5), ids, TASKS)
    return run


def lines_of(run: RunDirectory) -> list[bytes]:
    return (run.path.parent / "pool.jsonl").read_bytes().split(b"\n")[:-1]


def test_records_are_written_byte_for_byte_in_order_of_choice(run):
    select_and_write(run.path, SELECTOR, "print")
    expected = select(run.attribution, None, 0.5)
    written = (run.selection("even") / "selected.jsonl").read_bytes()
    assert written == b"".join(lines_of(run)[row] + b"\n" for row in expected.rows)
    assert len(expected.rows) == 11, "a fraction is of the 23 scored rows, rounded down"
    assert 5 not in expected.rows


def test_the_table_tells_of_every_pick(run):
    select_and_write(run.path, SELECTOR, "print")
    expected = select(run.attribution, None, 0.5)
    table = pq.read_table(run.selection("even") / "selection.parquet")
    records = [json.loads(lines_of(run)[row]) for row in expected.rows]
    assert table["rank"].to_pylist() == list(range(1, 12))
    assert table["row"].to_pylist() == expected.rows.tolist()
    assert table["id"].to_pylist() == [record["id"] for record in records]
    assert table["source"].to_pylist() == [record["source"] for record in records]
    assert table["merit"].to_pylist() == expected.merit.tolist()
    assert table["target_id"].to_pylist() == [f"t{j + 1}" for j in expected.column]
    assert table["task"].to_pylist() == [TASKS[j] for j in expected.column]


@pytest.mark.parametrize("method", ["bids", "less", "random"])
def test_the_summary_adds_up(run, method):
    summary = select_and_write(run.path, {**SELECTOR, "method": method}, "print")
    assert summary == json.loads((run.selection("even") / "selection.json").read_bytes())
    selection = read_selection(run.selection("even"))
    records = [json.loads(lines_of(run)[row]) for row in selection.rows]
    assert summary["budget"] == {"asked": 0.5, "examples": 11}
    assert summary["matrix"] == {"rows": 23, "columns": 5}
    assert summary["counts"]["source"] == {
        source: sum(record["source"] == source for record in records)
        for source in {record["source"] for record in records}
    }
    assert sum(summary["counts"]["task"].values()) == (11 if method == "bids" else 0)
    quantiles = summary["counts"]["token_quantiles"]
    assert sorted(quantiles.values()) == [
        quantiles[name] for name in ("min", "p10", "p25", "median", "p75", "p90", "max")
    ]
    assert summary["left_out"] == [{"column": 3, "id": "t4", "task": "reversals", "reason": "constant"}]
    matrix = Attribution(run.attribution)
    balance = measure_balance(matrix, matrix.stats, matrix.groups, selection.rows)
    assert [column["aid"] for column in summary["aid"]["columns"]] == [
        None if np.isnan(aid) else aid for aid in balance.aid_T.tolist()
    ]
    means = [task["mean"] for task in summary["aid"]["tasks"].values()]
    assert (summary["aid"]["macro"], summary["aid"]["worst"]) == pytest.approx((np.mean(means), min(means)))
    assert summary["thi"] == {"task": balance.thi_task, "instance": balance.thi_instance}


@pytest.mark.parametrize("method", ["bids", "less", "random"])
def test_a_committed_selection_reads_back(run, method):
    select_and_write(run.path, {**SELECTOR, "method": method, "seed": 3}, "print")
    found, expected = read_selection(run.selection("even")), select(run.attribution, None, 0.5, method=method, seed=3)
    for name in ("rows", "merit", "column"):
        assert getattr(found, name).tobytes() == getattr(expected, name).tobytes()
    assert (found.method, dict(found.options)) == (method, dict(expected.options))


def test_the_manifest_carries_the_fingerprint_and_the_hashes(run):
    select_and_write(run.path, SELECTOR, "print")
    folder = run.selection("even")
    manifest = read_manifest(folder)
    assert manifest is not None
    assert (manifest["fingerprint"], manifest["rows"]) == ("print", 11)
    assert sorted(one["file"] for one in manifest["beside"]) == [
        "selected.jsonl",
        "selection.json",
        "selection.parquet",
    ]
    assert all(hash_file(folder / one["file"]) == one["sha256"] for one in manifest["beside"])


def test_the_same_selection_is_the_same_bytes(run):
    select_and_write(run.path, SELECTOR, "print")
    first = {path.name: path.read_bytes() for path in run.selection("even").iterdir()}
    select_and_write(run.path, SELECTOR, "print")
    assert {path.name: path.read_bytes() for path in run.selection("even").iterdir()} == first


def test_a_selector_that_fails_leaves_the_older_selection_as_it_was(run):
    select_and_write(run.path, SELECTOR, "print")
    before = {path.name: path.read_bytes() for path in run.selection("even").iterdir()}
    with pytest.raises(ConfigError, match="budget: 24 examples of 23 rows"):
        select_and_write(run.path, {**SELECTOR, "budget": 24}, "other")
    assert {path.name: path.read_bytes() for path in run.selection("even").iterdir()} == before


def test_a_write_that_fails_half_way_leaves_the_older_selection_and_nothing_else(run, monkeypatch):
    select_and_write(run.path, SELECTOR, "print")
    before = {path.name: path.read_bytes() for path in run.selection("even").iterdir()}

    def full_disk(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("influray.store.selection.write_manifest", full_disk)
    with pytest.raises(OSError, match="No space left"):
        select_and_write(run.path, {**SELECTOR, "method": "random"}, "other")
    assert {path.name: path.read_bytes() for path in run.selection("even").iterdir()} == before
    assert [path.name for path in run.selection("even").parent.iterdir()] == ["even"]


def test_what_a_killed_run_left_is_swept(run):
    parent = run.selection("even").parent
    for name in (f".even.{'0' * 32}.tmp", f".even.{'1' * 32}.old", f".even.more.{'2' * 32}.tmp"):
        (parent / name).mkdir(parents=True)
    select_and_write(run.path, SELECTOR, "print")
    assert sorted(path.name for path in parent.iterdir()) == [f".even.more.{'2' * 32}.tmp", "even"], (
        "only its own scratch folders: another selection may be called even.more"
    )


def test_a_matrix_of_another_pool_is_refused(run):
    store = ShardStore(run.attribution)
    store.commit("c" * 64, attribution_table(np.array([3, 24]), np.eye(2, 5, dtype=np.float32)), {})
    commit_attribution(store, ["c" * 64], {}, range(5), ["t"] * 5, TASKS)
    with pytest.raises(ArtifactMismatch, match="holds row 24, but .* has 24 rows"):
        select_and_write(run.path, SELECTOR, "print")


def test_a_selection_that_is_not_there_is_named(run):
    with pytest.raises(ArtifactMismatch, match="influray select"):
        read_selection(run.selection("even"))


@pytest.mark.parametrize("run", [0.2], indirect=True)
def test_how_a_budget_chose_itself_is_recorded_told_and_kept(run):
    auto = {"auto": "otm", "most": 0.5, "folds": 3}
    summary = select_and_write(run.path, SELECTOR | {"budget": auto}, "print")
    number = summary["budget"]["examples"]
    assert summary["budget"]["asked"] == auto
    assert summary["budget"]["auto"]["by"] == "otm"
    assert [one["targets"] for one in summary["budget"]["auto"]["folds"]] == [2, 2, 1]
    assert number == min(summary["budget"]["auto"]["found"], 11) == len(read_selection(run.selection("even")).rows)
    numbered = select_and_write(run.path, SELECTOR | {"budget": number, "name": "numbered"}, "print")
    assert "auto" not in numbered["budget"]
    rows = [read_selection(run.selection(name)).rows.tolist() for name in ("even", "numbered")]
    assert rows[0] == rows[1], "the number is all that it decides"
    matrix, pool = Attribution(run.attribution), Pool(Catalogue(run.data("pool")))
    facts = [selection_facts(run, name, 0, pool, matrix)[0] for name in ("even", "numbered")]
    assert facts[0].own_budget.startswith(f"The budget of even chose itself: {number} rows, by OTM over 3 folds of the")
    assert facts[1].own_budget == ""
    assert facts[0].but_budget == facts[1].but_budget
    config = SimpleNamespace(data=SimpleNamespace(root=".", roles={}))
    selector = SelectorConfig(**SELECTOR | {"budget": {"auto": "otm", "most": 1}})
    again = Reselection(config, run)
    assert again.select(selector, matrix).tolist() == rows[0], "what it came to stays, whatever it would come to"
    assert len(again.select(selector.model_copy(update={"name": "new"}), matrix)) == 1


def test_every_method_selects_from_a_run_directory(run):
    comparing = [method for method in sorted({*SELECTORS, *METHODS}) if needs_features(method, {}, Limits())]
    assert comparing == ["group", "knn_kde", "weighted_draw"], "this run has no datastores for them"
    for method in sorted({*SELECTORS, *METHODS} - {*comparing}):
        summary = select_and_write(run.path, SELECTOR | {"name": method, "method": method}, "print")
        assert summary["budget"]["examples"] == 11
        assert len(read_selection(run.selection(method)).rows) == 11
    tokens = pq.read_table(run.selection("longest") / "selection.parquet")["merit"].to_pylist()
    assert tokens == sorted(tokens, reverse=True), "the catalogue hands the tokens of its rows to the methods"
