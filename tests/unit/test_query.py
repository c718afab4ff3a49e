"""Queries: a target that asks gets its own column of the matrix, tokens add up, wrong questions say what is wrong."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest

from influray.ask.index_build import build_index
from influray.ask.query import Asked, QueryEngine, UnknownId
from influray.cli import main
from influray.config import dump_config, parse_config
from influray.data.catalogue import Catalogue
from influray.data.question import Question
from influray.data.records import parse_record
from influray.model.checkpoints import load_checkpoint
from influray.plugins import allow_plugins
from influray.protocols import ArtifactMismatch, ConfigError, DataError
from influray.runs import Run, open_run
from tests.tiny import write_tiny_model
from tests.unit.asked_run import build_asked_run
from tests.unit.synthetic_run import HOSTILE


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Run:
    return build_asked_run(tmp_path_factory.mktemp("asked"))


def column(run: Run, answer) -> np.ndarray:
    """What an answer over all rows says of every row, in the order of rows."""
    found = {hit.row: hit.influence for hit in answer.helpful}
    return np.array([found[row] for row in run.attribution().rows.tolist()], np.float32)


def text_of(run: Run, row: int) -> dict[str, str]:
    user, assistant = parse_record(Catalogue(run.directory.data("target")).record(row)).turns
    return {"prompt": user.content, "answer": assistant.content}


@pytest.mark.parametrize(
    ("featurizer", "similarity"), [("gradient", "cosine"), ("gradient", "dot"), ("representation", "cosine")]
)
def test_a_target_that_asks_gets_its_own_column_of_the_matrix(tmp_path, featurizer, similarity):
    run = build_asked_run(tmp_path, featurizer=featurizer, similarity=similarity)
    attribution = run.attribution()
    A_NT = attribution.gather(attribution.rows)
    for j, row in enumerate(attribution.target_rows.tolist()):
        asked = run.query(**text_of(run, row), k=len(A_NT))
        stored = run.query(like=attribution.target_ids[j], k=len(A_NT))
        scale = float(np.abs(A_NT[:, j]).max())
        # Of another batch than the stored row, a feature may round otherwise: a step of float16 is 5e-4 of it.
        assert np.abs(column(run, asked) - A_NT[:, j]).max() <= 2e-3 * scale
        assert np.abs(column(run, stored) - A_NT[:, j]).max() <= 2e-6 * scale
        order = np.lexsort((attribution.rows, -column(run, stored)))
        assert [hit.row for hit in stored.helpful] == attribution.rows[order].tolist()
        harmful = np.lexsort((attribution.rows, column(run, stored)))
        harmful = [row for row in harmful if column(run, stored)[row] < min(0, stored.mean)]
        assert [hit.row for hit in stored.harmful] == attribution.rows[harmful].tolist()
        assert all(hit.influence < 0 and hit.z < 0 for hit in stored.harmful)
        ranked = A_NT[np.searchsorted(attribution.rows, [hit.row for hit in asked.helpful]), j]
        assert np.diff(ranked).max() <= 2e-3 * scale  # in the order of the matrix, but for what lies closer than that
        assert stored.mean == pytest.approx(attribution.stats.mean_T[j], rel=1e-4, abs=1e-6 * scale)
        assert stored.std == pytest.approx(attribution.stats.std_T[j], rel=1e-4)


def test_a_z_is_the_influence_in_the_moments_of_the_pool(run):
    answer = run.query("What is 7+8?", "15", k=29)
    influence = np.array([hit.influence for hit in answer.helpful], np.float64)
    assert [hit.z for hit in answer.helpful] == pytest.approx(
        (influence - influence.mean()) / influence.std(), abs=1e-4
    )
    assert answer.loss is not None
    assert answer.loss > 0


def test_a_row_says_which_selections_hold_it(run):
    answer = run.query("What is 7+8?", "15", k=29)
    for name in ("bids", "random"):
        holding = {hit.row for hit in answer.helpful if name in hit.selections}
        assert holding == set(run.selection(name).rows.tolist())


def test_questions_asked_together_are_answered_as_alone(run):
    asked = [
        Asked(Question("What is 7+8?", "15"), k=3),
        Asked(Question("Reverse abc.", "cba"), k=5),
        Asked(like="t-sum-50", k=2),
        Asked(Question("", "x")),
        Asked(like="nobody"),
    ]
    together = run.engine.ask_many(asked)
    assert [type(one) for one in together[3:]] == [DataError, UnknownId]
    for one, found in zip(asked[:3], together[:3], strict=True):
        alone = run.engine.ask(one)
        assert len(found.helpful) == one.k
        assert [hit.row for hit in found.helpful] == [hit.row for hit in alone.helpful]
        assert [hit.influence for hit in found.helpful] == pytest.approx([h.influence for h in alone.helpful], abs=1e-3)


@pytest.mark.parametrize("similarity", ["cosine", "dot"])
def test_the_influences_of_the_tokens_add_up_to_that_of_the_answer(tmp_path, run, similarity):
    if similarity == "dot":
        run = build_asked_run(tmp_path, similarity=similarity)
    answer = run.query("What is 7+8?", "15, of course", k=4, tokens=True)
    assert answer.tokens is not None
    assert "".join(token.text for token in answer.tokens) == "15, of course"
    mean = np.mean([hit.influence for hit in answer.helpful])
    assert sum(token.influence for token in answer.tokens) == pytest.approx(mean, rel=2e-3)
    assert sum(token.share for token in answer.tokens) == pytest.approx(1)
    (example,) = Catalogue(run.directory.data("target")).tokenized(0, 1)
    texts, influence_nk = run.engine.token_influences(example, np.arange(29))
    whole = column(run, run.query(like="t-sum-50", k=29))
    assert influence_nk.shape == (len(texts), 29)
    assert np.abs(influence_nk.sum(axis=0) - whole).max() <= 2e-3 * np.abs(whole).max()


def test_a_pool_row_asks_with_its_stored_direction(run):
    answer = run.query(like="sum-3", k=29)
    assert answer.asked == "pool sum-3"
    assert answer.helpful[0].id == "sum-3"
    assert answer.helpful[0].influence == pytest.approx(1, abs=2e-3)
    assert run.query(like="pool/sum-3", k=29).helpful == answer.helpful
    with pytest.raises(DataError, match="tokens: the stored direction of pool sum-3"):
        run.query(like="sum-3", k=2, tokens=True)


def test_a_target_that_was_cut_is_cut_likewise(run):
    answer = run.query("x" * 500, "yes " * 100, k=1)
    assert answer.truncated


@pytest.mark.parametrize(
    ("asked", "error", "says"),
    [
        ({"prompt": "", "answer": "b"}, DataError, "question: it is empty"),
        ({"prompt": "a", "answer": ""}, DataError, "answer: there is none"),
        ({}, DataError, "question: it is empty"),
        ({"prompt": "a", "answer": "b", "like": "sum-3"}, DataError, "one of them"),
        ({"like": "nobody"}, UnknownId, "no row of pool or targets has the id 'nobody'"),
        ({"prompt": "a", "answer": "b", "k": 0}, DataError, "k: found 0, expected 1 to 29"),
        ({"prompt": "a", "answer": "b", "k": 30}, DataError, "k: found 30, expected 1 to 29"),
        ({"messages": b'{"messages": 3}'}, DataError, "messages: messages must be a list"),
    ],
)
def test_a_wrong_query_says_what_is_wrong(run, asked, error, says):
    with pytest.raises(error, match=says):
        run.query(**asked)


def copied(run: Run, folder) -> Run:
    shutil.copytree(run.directory.path, folder / "run")
    return open_run(folder / "run")


def test_a_model_that_is_not_that_of_the_run_is_refused(run, tmp_path):
    write_tiny_model(tmp_path / "model", seed=1)
    other = copied(run, tmp_path)
    changed = other.config.model_copy(
        update={"model": other.config.model.model_copy(update={"base": str(tmp_path / "model")})}
    )
    with pytest.raises(ArtifactMismatch, match=r"not what the model makes of it now \(cosine"):
        Run(other.directory, changed).query("a", "b")


def test_a_checkpoint_or_projector_that_is_not_that_of_the_run_is_refused(run, tmp_path):
    other = copied(run, tmp_path)
    shutil.rmtree(other.directory.checkpoint(2))
    shutil.copytree(other.directory.checkpoint(1), other.directory.checkpoint(2))
    assert load_checkpoint(other.directory.checkpoint(2))
    with pytest.raises(ArtifactMismatch, match="target/checkpoint-2: the stored row of target 't-sum-50'"):
        other.query("a", "b")
    assert len(other.query(like="t-sum-50", k=3).helpful) == 3  # which needs no model
    tree = run.config.model_dump(mode="json")
    tree["features"]["projector"]["dimension"] = 32
    with pytest.raises(ArtifactMismatch, match="rows of 128 numbers over the checkpoints, and the config makes 64"):
        Run(run.directory, parse_config(tree)).query("a", "b")


def test_another_template_is_refused(run):
    tree = run.config.model_dump(mode="json")
    tree["data"]["max_tokens"] = 16
    with pytest.raises(ArtifactMismatch, match="has other tokens now"):
        Run(run.directory, parse_config(tree)).query("a", "b")


def test_a_run_without_features_and_a_folder_without_a_run_are_named(run, tmp_path):
    with pytest.raises(ConfigError, match="no run lies here"):
        open_run(tmp_path)
    other = copied(run, tmp_path)
    shutil.rmtree(other.directory.path / "features")
    with pytest.raises(ArtifactMismatch, match="run `influray featurize` first"):
        other.query("a", "b")
    shutil.rmtree(other.directory.attribution)
    with pytest.raises(ArtifactMismatch, match="run `influray score` first"):
        QueryEngine(other.directory, other.config)


@pytest.mark.parametrize("kind", ["flat", "SQ8"])
def test_a_run_with_an_index_answers_by_it(run, tmp_path, kind):
    other = copied(run, tmp_path)
    build_index(other.directory, kind)
    found, expected = (one.query("What is 7+8?", "15", k=29) for one in (other, run))
    assert found.exact == (kind == "flat")
    assert [hit.row for hit in found.helpful] == [hit.row for hit in expected.helpful]  # exact scores rank them again
    assert found.mean == pytest.approx(expected.mean, abs=1e-5)
    assert found.std == pytest.approx(expected.std, rel=1e-3)


def test_an_index_of_other_features_is_refused(run, tmp_path):
    other, stranger = copied(run, tmp_path), build_asked_run(tmp_path / "other", similarity="dot")
    build_index(stranger.directory, "flat")
    shutil.copytree(stranger.directory.index, other.directory.index)
    with pytest.raises(ArtifactMismatch, match="was built of other features or weights than the run has"):
        other.query(like="t-sum-50")


def test_a_run_from_elsewhere_may_not_bring_code(run, tmp_path):
    other = copied(run, tmp_path)
    (other.directory.path / "run.json").unlink()  # which does not make it any safer
    for section, key, value in (("attribution", "scorer", "evil:Scorer"), ("model", "trust_remote_code", True)):
        tree = run.config.model_dump(mode="json")
        tree[section][key] = value
        other.directory.write_config(dump_config(parse_config(tree)))
        with pytest.raises(ConfigError, match="add --allow-plugins"):
            open_run(other.directory.path)
        with allow_plugins():
            trusted = open_run(other.directory.path).config.model_dump(mode="json")
        assert trusted == {**tree, "run_dir": str(other.directory.path)}


def said(monkeypatch, capsys, *arguments: str) -> tuple[int, str]:
    monkeypatch.setattr("sys.argv", ["influray", "query", *arguments])
    try:
        main()
        status = 0
    except SystemExit as stop:
        status = int(stop.code or 0)
    captured = capsys.readouterr()
    return status, captured.out + captured.err


def test_the_command_prints_tables_and_writes_files(run, tmp_path, monkeypatch, capsys):
    place = str(run.directory.path)
    wrote = {name: tmp_path / name for name in ("a.json", "a.parquet")}
    files = ("--json", str(wrote["a.json"]), "--parquet", str(wrote["a.parquet"]))
    status, text = said(
        monkeypatch, capsys, place, "What is 7+8?", "--answer", "15", "-k", "29", "--tokens", "--system", "Hi.", *files
    )
    assert status == 0
    assert "rows that help most" in text
    assert "tokens of the answer" in text
    assert "\x1b" not in text
    assert "\u202e" not in text  # text that steers the terminal is written out
    answer = json.loads(wrote["a.json"].read_text())
    assert {hit["text"] for hit in answer["helpful"]} >= {f"user: {one}\n\nassistant: {one} too" for one in HOSTILE}
    table = pq.read_table(wrote["a.parquet"]).to_pylist()
    assert [line["row"] for line in table if line["side"] == "harmful"] == [hit["row"] for hit in answer["harmful"]]
    status, text = said(monkeypatch, capsys, place, "--like", "t-sum-50", "-k", "2", "--json", "-")
    assert status == 0
    assert len(json.loads(text)["helpful"]) == 2


def test_the_command_exits_with_2_and_one_message(run, tmp_path, monkeypatch, capsys):
    place = str(run.directory.path)
    for arguments, says in (
        ((place, "a"), "answer: there is none"),
        ((place, "--like", "x"), "no row of pool or targets has the id 'x'"),
        ((str(tmp_path), "a", "--answer", "b"), "no run lies here"),
        ((place, "a", "--answer", "b", "--json", str(tmp_path / "no" / "a.json")), "--json:"),
        ((place, "--messages", str(tmp_path / "none.json")), "--messages:"),
    ):
        status, text = said(monkeypatch, capsys, *arguments)
        assert status == 2, text
        assert says in text
