"""Shots: the methods against slow references, and what of a pool becomes a prompt."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from influray.ask.shot_methods import METHODS, by_coverage, by_dpp, by_influence
from influray.cli import main
from influray.data.catalogue import Catalogue
from influray.protocols import ConfigError, DataError
from influray.runs import Run, open_run
from tests.reference import shots as reference
from tests.reference.coverage import facility_location
from tests.tiny import chat
from tests.unit import asked_run
from tests.unit.asked_run import build_asked_run

seeds = st.integers(0, 2**32 - 1)


TOOL = {"type": "function", "function": {"name": "add", "parameters": {"type": "object", "properties": {}}}}
SYSTEM = {"role": "system", "content": "Sums only."}
ROWS = 31  # of the pool


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Run:
    """A run whose pool has a row with tools and one with a system turn besides."""
    plain = asked_run.pool_rows
    with_system = chat("system", "s", "What is 90+9?", "99")
    with_system["messages"].insert(0, SYSTEM)
    odd = [{**chat("tools", "s", "What is 9+8?", "17"), "tools": [TOOL]}, with_system]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(asked_run, "pool_rows", lambda count: [*plain(count), *odd])
        return build_asked_run(tmp_path_factory.mktemp("asked"))


@settings(deadline=None, max_examples=40)
@given(seeds, st.integers(1, 12), st.integers(2, 20), st.floats(0.2, 5))
def test_dpp_takes_at_each_step_what_the_determinant_grows_by_most(seed, M, F, diversity):
    generator = np.random.default_rng(seed)
    relevance_M, vector_MF = generator.standard_normal(M), generator.standard_normal((M, F))
    k = min(M, F)  # beyond the rank of the kernel all determinants are 0
    order = by_dpp(relevance_M, vector_MF, diversity).tolist()
    assert sorted(order) == list(range(M))
    assert order[:k] == reference.dpp(relevance_M, vector_MF, diversity, k)


def test_dpp_takes_copies_last_and_relevance_decides_where_diversity_is_little():
    generator = np.random.default_rng(0)
    vector_MF = generator.standard_normal((6, 8))
    vector_MF[[3, 5]] = vector_MF[[0, 1]]
    relevance_M = np.array([5.0, 4.0, 1.0, 4.9, 0.0, 3.9])
    order = by_dpp(relevance_M, vector_MF, 1.0).tolist()
    assert order[-2:] == [3, 5]
    distinct = np.array([0, 1, 2, 4])
    assert by_dpp(relevance_M[distinct], vector_MF[distinct], 0.01).tolist() == [0, 1, 2, 3]
    assert by_dpp(relevance_M, np.zeros((6, 8)), 1.0).tolist() == by_influence(relevance_M).tolist()
    assert by_dpp(relevance_M + 1e6, vector_MF, 1.0).tolist() == order


@settings(deadline=None, max_examples=40)
@given(seeds, st.integers(1, 12), st.integers(1, 6))
def test_coverage_is_greedy_facility_location_over_the_parts(seed, M, P):
    part_MP = np.random.default_rng(seed).standard_normal((M, P))
    assert by_coverage(part_MP).tolist() == facility_location(part_MP, M)[0]
    assert by_coverage(np.zeros((M, P))).tolist() == list(range(M))


def test_by_influence_are_the_rows_that_a_query_finds(run):
    found = run.shots(like="t-sum-50", k=4)
    hits = {hit.row: hit for hit in run.query(like="t-sum-50", k=ROWS).helpful}
    influences = [shot.influence for shot in found.shots]
    assert influences == sorted(influences)  # the most influential stands next to the question
    assert [shot.rank for shot in found.shots] == [4, 3, 2, 1]
    assert influences == [hits[shot.row].influence for shot in found.shots]
    assert [shot.z for shot in found.shots] == pytest.approx([hits[shot.row].z for shot in found.shots])
    turned = run.shots(like="t-sum-50", k=4, reverse=True)
    assert turned.shots == found.shots[::-1]


@pytest.mark.parametrize("method", METHODS)
def test_the_prompt_is_the_shots_and_the_question_in_the_runs_own_form(run, method):
    found = run.shots("What is 7+8?", "15", k=3, method=method, system="Be short.")
    assert found.messages[0] == {"role": "system", "content": "Be short."}
    assert found.messages[-1] == {"role": "user", "content": "What is 7+8?"}
    pool = Catalogue(run.directory.data("pool"))
    turns = [turn for shot in found.shots for turn in pool.parsed(shot.row).turns]
    assert list(found.messages[1:-1]) == [{"role": turn.role, "content": turn.content} for turn in turns]
    tokenizer = run.engine.tokenizer
    messages = list(found.messages)
    assert found.text == tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert found.tokens == len(tokenizer(found.text, add_special_tokens=False).input_ids)
    assert json.loads(json.dumps(found.as_plain()))["shots"][0]["id"] == pool.ids[found.shots[0].row]


def test_a_prefix_of_the_order_of_choice_is_what_fewer_shots_are(run):
    for method in METHODS:
        many = {s.rank: s.row for s in run.shots("What is 7+8?", "15", k=6, method=method).shots}
        few = {s.rank: s.row for s in run.shots("What is 7+8?", "15", k=3, method=method).shots}
        assert few == {rank: many[rank] for rank in (1, 2, 3)}


def test_coverage_of_a_question_is_over_the_tokens_of_its_answer_and_of_a_task_over_its_targets(run):
    engine = run.engine
    rows = [shot.row for shot in run.shots(like="t-sum-50", k=ROWS).shots]
    (example,) = engine.catalogues["target"].tokenized(0, 1)
    assert engine.find("t-sum-50") == ("target", 0)
    _, part_PM = engine.token_influences(example, engine.vectors.positions_of(np.array(rows)))
    found = run.shots(like="t-sum-50", k=3, method="coverage")
    order = facility_location(part_PM.T, 3)[0]
    assert [shot.row for shot in sorted(found.shots, key=lambda shot: shot.rank)] == [rows[m] for m in order]
    attribution = run.attribution()
    columns = [j for j, task in enumerate(attribution.groups) if task == "sums"]
    part_NP = attribution.gather(attribution.rows)[:, columns]
    covered = run.shots("What is 7+8?", task="sums", k=1, method="coverage")
    assert covered.shots[0].row == attribution.rows[np.maximum(part_NP, 0).sum(axis=1).argmax()]
    by_mean = run.shots("What is 7+8?", task="sums", k=1).shots[0]
    assert by_mean.row == attribution.rows[part_NP.mean(axis=1).argmax()]
    assert by_mean.influence == pytest.approx(part_NP.mean(axis=1).max(), rel=1e-4)
    assert covered.asked == "task sums"
    assert covered.messages[-1]["content"] == "What is 7+8?"


def test_copies_of_the_question_and_near_duplicates_are_left_out(run):
    pool = Catalogue(run.directory.data("pool"))
    found = run.shots(like=f"pool/{pool.ids[3]}", k=30)
    texts = [pool.record(shot.row) for shot in found.shots]
    assert 3 not in [shot.row for shot in found.shots]
    unit_nF = run.engine.vectors.gather(np.array([shot.row for shot in found.shots]))
    assert (unit_nF @ unit_nF.T - np.eye(len(unit_nF))).max() < 0.99
    assert len(set(texts)) == len(texts) < 30
    assert "1 copies of the question" in found.notes[0]
    assert "near-duplicates of a better one" in found.notes[0]
    assert found.notes[-1] == f"{len(texts)} shots of 30: no other candidate can be one"
    prompt = pool.parsed(3).turns[0].content
    assert 3 not in [shot.row for shot in run.shots(f"  {prompt.upper()} ", "another answer", k=20).shots]


def test_the_shots_of_a_selection_are_its_rows(run):
    rows = set(run.selection("random").rows.tolist())
    found = run.shots("What is 7+8?", "15", k=6, selection="random")
    assert {shot.row for shot in found.shots} <= rows
    best = run.query("What is 7+8?", "15", k=ROWS).helpful
    assert found.shots[-1].row == next(hit.row for hit in best if hit.row in rows)


def test_a_prompt_keeps_its_limit_and_says_what_did_not_fit(run):
    whole = run.shots("What is 7+8?", "15", k=4)
    found = run.shots("What is 7+8?", "15", k=4, max_tokens=whole.tokens - 1)
    assert found.tokens < whole.tokens
    assert "too long for --max-tokens" in found.notes[0]
    alone = run.shots("What is 7+8?", "15", k=1, max_tokens=40)
    assert not alone.shots
    assert alone.messages == ({"role": "user", "content": "What is 7+8?"},)


def test_rows_with_tools_are_no_shots_and_system_turns_are_left_out_and_both_is_said(run):
    found = run.shots("What is 5+5?", "10", k=ROWS)
    chosen = {shot.id for shot in found.shots}
    assert "system" in chosen
    assert "tools" not in chosen
    assert "1 with tools" in found.notes[0]
    assert found.notes[1] == "system turns of their own that the prompt leaves out: in 1 shots"
    assert all(message["role"] != "system" for message in found.messages)
    alike = run.shots("What is 5+5?", "10", k=ROWS, system=SYSTEM["content"])
    assert alike.messages[0] == SYSTEM
    assert "system" in {shot.id for shot in alike.shots}
    assert not any("system" in note for note in alike.notes)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"like": "t-sum-50", "k": 0}, "-k: found 0, expected 1 to 31, the rows of the pool"),
        ({"like": "t-sum-50", "k": 32}, "-k: found 32, expected 1 to 31, the rows of the pool"),
        ({"like": "t-sum-50", "k": 7, "selection": "bids"}, "-k: found 7, expected 1 to 6, the rows of the selection"),
        ({"like": "t-sum-50", "selection": "bid"}, "did you mean 'bids'"),
        ({"like": "t-sum-50", "method": "dp"}, "--method: found 'dp'; did you mean 'dpp'"),
        ({"like": "t-sum-50", "prompt": "What?"}, "--like: the row brings its question"),
        ({"like": "t-sum-50", "task": "sums"}, "--like: the row brings its question"),
        ({}, "--question: there is none"),
        ({"prompt": "What?"}, "--answer: influence is that on an answer"),
        ({"prompt": "What?", "answer": "x", "task": "sums"}, "found both"),
        ({"prompt": "What?", "task": "sum"}, "--task: found 'sum'; did you mean 'sums'"),
        ({"like": "t-sum-50", "diversity": 0.0}, "--diversity: found 0.0"),
        ({"like": "t-sum-50", "candidates": 0}, "--candidates: found 0"),
        ({"like": "t-sum-50", "max_tokens": 3}, "--max-tokens: found 3, and the question alone takes"),
    ],
)
def test_what_cannot_be_asked_is_said(run, asked, message):
    with pytest.raises(ConfigError, match=message.replace("(", r"\(").replace("?", r"\?")):
        run.shots(**asked)


def test_an_id_that_is_not_there_and_an_answer_that_is_blank_are_said(run):
    with pytest.raises(DataError, match="no row of pool or targets has the id 'nobody'"):
        run.shots(like="nobody")
    with pytest.raises(DataError, match="answer"):
        run.shots("What?", "  ")


def test_representations_have_targets_as_parts_and_no_tokens(tmp_path):
    run = build_asked_run(tmp_path, featurizer="representation")
    with pytest.raises(ConfigError, match="--method coverage: the parts of one question are the tokens"):
        run.shots("What is 7+8?", "15", method="coverage")
    for asked in ({"task": "sums", "method": "coverage"}, {"answer": "15", "method": "dpp"}):
        assert len(run.shots("What is 7+8?", k=3, **asked).shots) == 3


def test_the_verb_writes_the_prompt_and_the_numbers(run, tmp_path, monkeypatch, capsys):
    places = [tmp_path / "prompt.json", tmp_path / "prompt.txt", tmp_path / "all.json"]
    for prompt in places[:2]:
        argv = ["shots", str(run.directory.path), "--like", "t-sum-50", "-k", "2", "--method", "coverage"]
        monkeypatch.setattr("sys.argv", ["influray", *argv, "--output", str(prompt), "--json", str(places[2])])
        with pytest.raises(SystemExit) as stop:
            main()
        assert not stop.value.code
    found = open_run(run.directory.path).shots(like="t-sum-50", k=2, method="coverage")
    assert json.loads(places[0].read_text()) == {"messages": list(found.messages)}
    assert places[1].read_text() == found.text
    assert json.loads(places[2].read_text()) == json.loads(json.dumps(found.as_plain()))
    assert found.text.splitlines()[-2] in capsys.readouterr().out
