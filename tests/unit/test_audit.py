"""What is planted in a pool is found by an audit, and stands where it should."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.cells import cell_len
from typer.testing import CliRunner

from influray.cli import printing
from influray.cli.app import app
from influray.config import dump_config, parse_config, parse_constraints
from influray.data.catalogue import build_catalogue
from influray.data.chat import ChatEncoder
from influray.data.files import resolve_files
from influray.evaluation import audit, copies, neighbours
from influray.evaluation.known_answer import auc
from influray.miniature.world import Size, make_world
from influray.report.audit import audit as look_over
from influray.report.audit import audit_tables, read_audit
from influray.report.page import write_report
from influray.report.terminal import fit
from influray.selectors.api import resolve_limits
from influray.store.run_directory import RunDirectory
from tests.reference.near_copies import reachable
from tests.tiny import byte_tokenizer, chat, write_jsonl
from tests.unit.synthetic_features import write_matrix, write_store

HOSTILE = "</script><img src=x onerror=alert(1)> [bold]\u202egnp.exe"
WEIGHTS = (0.6, 0.4)
D = 48


@pytest.fixture(scope="module")
def planted(tmp_path_factory) -> tuple[RunDirectory, dict[str, list[str]]]:
    """The miniature world's pool with rows planted in it, and features that say what each row is.

    A row points to its skill, a wrong one away from it with a high loss and a long gradient, a duplicate is the same
    row again. Planted are copies and leaks of targets, rows against every task, and a target that no row helps.
    """
    folder = tmp_path_factory.mktemp("planted")
    world = make_world(3, Size(pool=240, targets=4, test=2))
    tasks = list(world.targets)
    copied, leaked = world.targets[tasks[0]][0], world.targets[tasks[1]][1]
    held = world.test[tasks[2]][0]
    pool = [
        *world.pool,
        {**copied, "id": "copy"},
        {**held, "id": "test-copy"},
        {**chat("leak", "x", leaked["messages"][0]["content"], "I do not know."), "flaws": []},
        chat("harm-a", "x", "Say nothing", HOSTILE),
        chat("harm-b", HOSTILE, "Say less", "no"),
    ]
    targets = {**world.targets, "lost": [chat("lost-0", "t", "Sing a song of sixpence", "la"), copied | {"id": "ok"}]}
    run = _catalogues(folder, pool, targets, world.test)
    generator = np.random.default_rng(0)
    skills = sorted({row["source"] for row in world.pool})
    at = {skill: i for i, skill in enumerate(skills)}
    plain = {"norm": [], "grad_norm": [], "loss": []}
    base = []
    for row in pool:
        vector = 0.2 * generator.standard_normal(D) / np.sqrt(D)
        wrong = "wrong" in row.get("flaws", ())
        if row["id"].startswith("harm"):
            vector[: len(skills)] -= 1
        elif row["source"] in at:
            vector[at[row["source"]]] += -1 if wrong else 1
        base.append(vector)
        noise = generator.uniform(0.8, 1.2)
        for name in plain:
            plain[name].append(noise * (3 if wrong else 1))
    first: dict[str, int] = {}
    for i, row in enumerate(pool):  # the same text, the same gradient
        base[i] = base[first.setdefault(json.dumps(row["messages"]), i)]
    wanted = []
    for task, rows in targets.items():
        for row in rows:
            vector = 0.2 * generator.standard_normal(D) / np.sqrt(D)
            if task in at or row["id"] == "ok":
                vector[at.get(task, 0)] += 1
            else:
                vector[:] = np.eye(D)[D - 1]
            wanted.append(vector)
    base_ND = np.array(base)
    base_ND[:, D - 1] = -0.4  # what the lost target asks for, no row gives
    columns = {name: np.array(value, np.float32) for name, value in plain.items()}
    for k in range(1, len(WEIGHTS) + 1):
        for split, rows in (("pool", base_ND), ("target", np.array(wanted))):
            unit = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float16)
            facts = columns if split == "pool" else None
            write_store(run.features(split, k), np.arange(len(rows)), unit, seed=k, plain=facts)
    write_matrix(run, WEIGHTS, [task for task, rows in targets.items() for _ in rows], "cosine")
    flaws = {flaw: [row["id"] for row in world.pool if flaw in row["flaws"]] for flaw in ("wrong", "duplicate")}
    return run, flaws


def _catalogues(folder: Path, pool: list[dict], targets: dict[str, list[dict]], test: dict) -> RunDirectory:
    write_jsonl(folder / "pool.jsonl", pool)
    for split, tasks in (("target", targets), ("test", test)):
        for task, rows in tasks.items():
            write_jsonl(folder / split / f"{task}.jsonl", rows)
    config = parse_config(
        {
            "model": {"base": "none"},
            "data": {
                "root": str(folder),
                "pool": "pool.jsonl",
                "targets": {task: {"files": f"target/{task}.jsonl"} for task in targets},
            },
            "selectors": [{"name": "bids", "method": "bids", "budget": 2}],
        }
    )
    run = RunDirectory(folder / "run")
    run.path.mkdir()
    run.write_config(dump_config(config))
    encoder = ChatEncoder(byte_tokenizer(), "auto", config.data.max_tokens)
    for split, names in (("pool", {"": "pool.jsonl"}), ("target", targets), ("test", test)):
        files = []
        for task in names:
            name = "pool.jsonl" if split == "pool" else f"{split}/{task}.jsonl"
            files += [(task, file) for file in resolve_files((name,), config.data.root, "data")]
        build_catalogue(run.data(split), split, files, encoder, "k", config.data, quarantine=run.quarantine_path)
    return run


def test_planted_flaws_are_found_and_ranked_first(planted):
    run, flaws = planted
    found = look_over(run.path)
    assert {one["id"] for one in found["harmful"][:2]} == {"harm-a", "harm-b"}
    assert all(one["below"] > 0.5 for one in found["harmful"])

    score = {one["id"]: one["score"] for one in found["mislabelled"]}
    wrong = np.array([score[i] for i in flaws["wrong"]])
    right = np.array([value for i, value in score.items() if i not in flaws["wrong"]])
    assert auc(wrong, right) > 0.95
    top = [one["id"] for one in found["mislabelled"][: len(wrong)]]
    assert np.mean([i in flaws["wrong"] for i in top]) > 0.65

    grouped = {i for group in found["duplicates"] for i in group["ids"]}
    assert flaws["duplicate"], "the world plants some"
    assert set(flaws["duplicate"]) <= grouped
    sizes = [len(group["rows"]) for group in found["duplicates"] if group["kind"] == "same text"]
    assert sizes == sorted(sizes, reverse=True)

    assert [one["id"] for one in found["unhelped"]] == ["target-" + str(_lost_row(run))]
    assert found["unhelped"][0]["reason"] == "nothing helps"
    kinds = {(one["id"], one["kind"], one["split"]) for one in found["contaminated"]}
    assert ("copy", "copy", "target") in kinds
    assert ("test-copy", "copy", "test") in kinds
    assert ("leak", "same prompt", "target") in kinds
    assert [one["kind"] for one in found["contaminated"]][:2] == ["copy", "copy"]
    assert found["notes"] == []


def test_a_pool_too_large_to_compare_with_itself_is_searched_and_sampled_and_says_so(planted, monkeypatch):
    run, flaws = planted
    whole = look_over(run.path)
    rows, width = whole["rows"], max(2 * D, neighbours.LEAST_WIDTH)
    monkeypatch.setattr(neighbours, "LEAST_SAMPLE", 1)
    monkeypatch.setattr(neighbours, "MOST_PRODUCTS", rows * width * 120)
    found = look_over(run.path)
    near, all_near = (
        [set(group["ids"]) for group in one["duplicates"] if group["kind"] == "near"] for one in (found, whole)
    )
    assert near == all_near
    assert found["notes"][0].startswith(f"near-duplicates: {rows} rows are too many")
    assert "a row among 120 drawn ones" in found["notes"][0]
    assert "the nearest of 120 drawn rows" in found["notes"][1]
    score = {one["id"]: one["score"] for one in found["mislabelled"]}
    wrong = np.array([score[i] for i in flaws["wrong"]])
    assert auc(wrong, np.array([value for i, value in score.items() if i not in flaws["wrong"]])) > 0.95


def _lost_row(run: RunDirectory) -> int:
    from influray.data.catalogue import Catalogue

    return Catalogue(run.data("target")).find("lost-0")


def test_the_command_prints_tables_writes_json_and_the_page_shows_it_escaped(planted, tmp_path, monkeypatch):
    run, _ = planted
    monkeypatch.setattr(printing.out, "width", 200)
    result = CliRunner().invoke(app, ["audit", str(run.path), "--json", str(tmp_path / "audit.json")])
    assert result.exit_code == 0, result.output
    assert "Rows harmful to most tasks" in result.output
    assert "[bold]" in result.output, "markup of the pool is text"
    assert "\u202e" not in result.output
    written = json.loads((tmp_path / "audit.json").read_text())
    assert written == read_audit(run)
    page = write_report(run.path).read_text()
    assert 'id="audit"' in page
    assert "<img src=x" not in page
    assert "&lt;img src=x" in page


def test_the_ids_that_it_writes_are_taken_by_a_constraint_and_id_stands_beside_text_at_80_columns(
    planted, tmp_path, monkeypatch
):
    run, _ = planted
    path = tmp_path / "bad.txt"
    monkeypatch.setattr(printing.out, "width", 80)
    result = CliRunner().invoke(app, ["audit", str(run.path), "--exclude", str(path)])
    assert result.exit_code == 0, result.output
    assert str(path) in result.output
    assert "continued" not in result.output, "each table is whole at 80 columns"
    assert max(map(len, result.output.splitlines()[: result.output.splitlines().index("")])) <= 80
    ids = path.read_text().splitlines()
    assert len(ids) == len(set(ids))
    assert {"harm-a", "harm-b", "copy", "test-copy", "leak"} <= set(ids)
    found = look_over(run.path)
    for group in found["duplicates"]:
        assert sum(identity not in ids for identity in group["ids"]) <= 1, "one of each group stays at most"
    assert not set(ids) >= {one["id"] for one in found["mislabelled"]}
    _, limits = resolve_limits(5, parse_constraints({"exclude": str(path)}), 100)
    assert limits.exclude == tuple(ids)
    for table in audit_tables(found, 80)[:-1]:
        parts, _ = fit([table], 80, ())
        assert parts[0].columns[1] == "text", "in one table with the id"
        assert all(cell_len(row[0][:40]) + 2 + cell_len(row[1]) <= 80 for row in parts[0].rows)
    assert "ranked by how mislabelled" in result.output


def test_narrow_vectors_are_compared_in_blocks_of_few_rows():
    class Narrow:
        dimension = 2
        largest = 0
        row_ND = np.random.default_rng(0).standard_normal((9000, 2)).astype(np.float32)

        def __len__(self):
            return len(self.row_ND)

        def blocks(self, size):
            self.largest = max(self.largest, size)
            return ((start, self.row_ND[start : start + size].copy()) for start in range(0, len(self), size))

    rows = Narrow()
    neighbours.compared(rows, rows.blocks, np.arange(len(rows)), 1.1)
    assert rows.largest == neighbours.BLOCK_ROWS


def test_texts_are_compared_by_words_and_long_prompts_by_their_ngrams():
    assert copies.normalised("  What IS\u00a0ﬁve,\nplus  2? ") == "what is five plus 2"
    assert copies.normalised("??") == "??"
    assert copies.normalised("3 + 4?") != copies.normalised("3 - 4?")
    long = " ".join(f"word{i}" for i in range(30))
    target = copies.Text(0, long, "yes")
    pool = [
        copies.Text(0, f"please tell me {long} now", "no"),
        copies.Text(1, " ".join(f"word{i}" for i in range(15)), "no"),
        copies.Text(2, long, "no"),
        copies.Text(3, long, "yes"),
    ]
    found = copies.contaminated(pool, {"target": [target]})
    assert [(one.row, one.kind) for one in found] == [(3, "copy"), (2, "same prompt"), (0, "n-grams")]
    assert found[2].share == 1.0


def test_near_pairs_join_into_groups_whatever_their_order():
    wanted = [copies.Group((1, 2, 5, 9), "near"), copies.Group((3, 4), "near")]
    pairs = np.array([(5, 9), (4, 3), (1, 2), (9, 2)])
    for order in (pairs, pairs[::-1]):
        assert copies.near_groups(order) == wanted
    assert copies.near_groups(pairs[:0]) == []
    rows = copies.near_pairs(np.array([7, 8]), np.array([[7, 8], [8, 3]]), np.array([[1, 0.99], [1, 0.5]]), 0.98)
    assert rows.tolist() == [[7, 8]]


@settings(max_examples=60, deadline=None, derandomize=True)
@given(count=st.integers(1, 60), pairs=st.integers(0, 80), seed=st.integers(0, 999))
def test_joined_rows_are_those_that_can_be_reached(count, pairs, seed):
    pair_E2 = np.random.default_rng(seed).integers(0, count, (pairs, 2))
    assert copies.joined(pair_E2, count).tolist() == reachable(pair_E2.tolist(), count)


def test_ranks_and_agreement_are_what_their_definitions_say():
    assert audit.ranks(np.array([3.0, 1.0, 3.0])).tolist() == [0.75, 0.0, 0.75]
    best, worst = np.array([[0.9, 0.2, np.nan]]), np.array([[-0.8, -0.1, np.nan]])
    assert audit.agreement(best, worst, 3)[0] == pytest.approx((0.9 - 0.8 + 0.2) / 3)
    assert audit.self_influence([np.array([2.0]), np.array([1.0])], [0.75, 0.25])[0] == 0.75 * 4 + 0.25


def test_a_row_is_harmful_where_it_is_below_minus_one_on_more_than_half_of_the_tasks():
    score_NG = np.array([[-2, -2, 0.0], [-2, 0, 0], [-2, -2, -2], [np.nan] * 3])[:3]
    found = audit.harmful_rows(np.array([10, 11, 12]), np.c_[score_NG, np.full(3, np.nan)])
    assert [one.row for one in found] == [12, 10]
    assert found[1].below == pytest.approx(2 / 3)
    assert found[0].negative == 1.0
