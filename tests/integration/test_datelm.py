"""The job for the DATE-LM benchmark, on a tiny imitation of its published layout."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import yaml

from influray.data.catalogue import Catalogue
from influray.protocols import ConfigError, DataError
from influray.store.attribution import Attribution
from influray.store.run_directory import RunDirectory
from jobs.datelm import TEMPLATE, arguments, attribute, finetune_order, trapezoids
from tests.tiny import byte_tokenizer, write_jsonl, write_tiny_model
from tests.unit.test_imported_adapters import saved

pytestmark = pytest.mark.ray
CITIES = ("Oslo", "Lima", "Cairo")


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    """Base, adapter, and two data sets of a subset each, as the benchmark lays them out."""
    folder = tmp_path_factory.mktemp("datelm")
    write_tiny_model(folder / "base")
    saved(folder / "adapter")
    train = [
        {"prompt": f" Where is {i}? ", "response": CITIES[i % 3], "type": "Unsafe" if i % 5 == 0 else "Benign"}
        for i in range(12)
    ]
    train[4]["response"] = " "  # nothing to train on
    facts = [{"counterfactual_entity": city, "true_entity": "Rome"} for city in CITIES]
    train = [{**row, **facts[i % 3]} for i, row in enumerate(train)]
    ref = [{"prompt": f"Where is {i}?", "response": CITIES[i], **facts[i]} for i in range(3)]
    write_jsonl(folder / "data" / "Tiny" / "train.jsonl", train)
    write_jsonl(folder / "data" / "Tiny" / "ref.jsonl", ref)
    return folder


def options(world: Path, task: str, out: Path, *more: str, **changes):
    tree = {
        "method": "LESS",
        "task": task,
        "subset": "Tiny",
        "base_model_path": str(world / "base"),
        "checkpoint": str(world / "adapter"),
        **changes,
    }
    out.mkdir(exist_ok=True)
    (out / "benchmark.yaml").write_text(yaml.safe_dump(tree))
    small = ["--dimension", "32", "--max-tokens", "128", "--dtype", "float32", "--workers", "1"]
    return arguments([str(out / "benchmark.yaml"), "--out", str(out), "--data", str(world / "data"), *small, *more])


def by_hand(out: Path, features: str) -> list[list[float]]:
    """The matrix of the run that was scored last, by lines of the two files; None where a row has no score."""
    directory = RunDirectory(next((out / "runs").glob(f"{features}-*")))
    matrix = Attribution(directory.attribution)
    pool, target = (Catalogue(directory.data(split)).ids for split in ("pool", "target"))
    found = {}
    for row, line in zip(matrix.rows, np.asarray(matrix), strict=True):
        for column, value in zip(matrix.target_ids, line.tolist(), strict=True):
            found[pool[row], column] = value
    assert set(target) == {f"ref-{j}" for j in range(3)}
    lowest = [min(v for (_, column), v in found.items() if column == f"ref-{j}") for j in range(3)]
    return [[found.get((f"train-{i}", f"ref-{j}"), lowest[j]) for j in range(3)] for i in range(12)]


@pytest.mark.endurance
def test_scores_have_the_form_and_the_order_that_the_evaluation_reads(world, tmp_path, ray_cluster):
    results = attribute(options(world, "Counterfact", tmp_path / "facts", "--scorers", "cosine,dot"))
    written = json.loads((tmp_path / "facts" / "dot.json").read_text())
    assert written == np.array(by_hand(tmp_path / "facts", "gradient")).T.tolist(), "one list a reference"
    recall = ranks = 0.0
    for j, scores in enumerate(written):
        right = [i for i in range(12) if i % 3 == j]
        places = sorted(1 + sum(other > scores[i] for other in scores) for i in right)
        recall, ranks = recall + 1 / 3, ranks + 1 / places[0] / 3
    assert results["dot"] == pytest.approx({"without_score": 1, "Recall@50": recall, "MRR": ranks})
    assert np.array(json.loads((tmp_path / "facts" / "cosine.json").read_text())).shape == (3, 12)

    results = attribute(options(world, "Toxicity/Bias", tmp_path / "toxic", "--scorers", "bm25"))
    written = json.loads((tmp_path / "toxic" / "bm25.json").read_text())
    assert written == pytest.approx([sum(line) / 3 for line in by_hand(tmp_path / "toxic", "ngram")], rel=1e-5)
    assert json.loads((tmp_path / "toxic" / "results.json").read_text()) == results
    assert 0 < results["bm25"]["AUPRC"] <= 1


def test_the_area_is_that_of_trapezoids_over_thresholds():
    score, unsafe = np.array([3.0, 1.0, 3.0, 2.0, 1.0]), np.array([True, True, False, False, False])
    points, area = [(0.0, 1.0)], 0.0
    for threshold in sorted(set(score), reverse=True):
        taken = score >= threshold
        points.append(((taken & unsafe).sum() / 2, (taken & unsafe).sum() / taken.sum()))
    for (x0, y0), (x1, y1) in pairwise(points):
        area += (x1 - x0) * (y0 + y1) / 2
    assert trapezoids(score, unsafe) == pytest.approx(area)


def test_the_order_of_a_fine_tuning_set_holds_a_share_out():
    order = finetune_order(40)
    assert len(order) == 36
    assert len(set(order.tolist())) == 36
    assert order.tolist() != sorted(order.tolist())
    assert finetune_order(40, subset=18).tolist() == finetune_order(40, subset=18).tolist()
    assert len(finetune_order(40, subset=18)) == 18


def test_a_conversation_is_written_as_the_adapters_were_trained():
    tokenizer = byte_tokenizer(TEMPLATE.replace("{bos}", ""))
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes"}]
    text = tokenizer.apply_chat_template(turns, tokenize=False)
    assert text == f"<|user|>\nHi\n<|assistant|>\nYes{tokenizer.eos_token}\n"


@pytest.mark.parametrize(
    ("what", "error", "named"),
    [
        ("subset", DataError, "train.jsonl"),
        ("line", DataError, "train.jsonl:3"),
        ("fact", DataError, "ref.jsonl:1"),
        ("task", ConfigError, "benchmark.yaml"),
        ("key", ConfigError, "benchmark.yaml"),
        ("adapter", ConfigError, "adapter_config.json"),
        ("scorer", ConfigError, "--scorers"),
    ],
)
def test_a_wrong_layout_is_refused(what, error, named, world, tmp_path):
    rows = [json.loads(line) for line in (world / "data" / "Tiny" / "train.jsonl").read_text().splitlines()]
    ref = [json.loads(line) for line in (world / "data" / "Tiny" / "ref.jsonl").read_text().splitlines()]
    if what == "line":
        del rows[2]["response"]
    if what == "fact":
        ref[0]["true_entity"] = "Paris"
    write_jsonl(tmp_path / "data" / "Tiny" / "train.jsonl", rows)
    write_jsonl(tmp_path / "data" / "Tiny" / "ref.jsonl", ref)
    changes = {
        "subset": {"subset": "None"},
        "key": {"subset": None},
        "adapter": {"checkpoint": str(world / "base")},
    }.get(what, {})
    task = "Poetry" if what == "task" else "Counterfact"
    scorers = "nothing" if what == "scorer" else "cosine"
    given = options(world, task, tmp_path / "out", "--scorers", scorers, **changes)
    given.data = str(tmp_path / "data")
    with pytest.raises(error, match=named):
        attribute(given)
