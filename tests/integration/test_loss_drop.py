"""CoLoR-Filter through the whole pipeline: adapters of the tasks, losses, their drops, selections, and no gradient."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import influray
from influray.data.catalogue import Catalogue
from influray.evaluation.known_answer import known_answers
from influray.pipeline import plan
from influray.protocols import ArtifactMismatch, ConfigError, DataError
from tests.integration.test_pipeline import bytes_of, redone, stamps
from tests.reference.loss_drop import loss_drop, losses
from tests.tiny import byte_tokenizer, chat, tiny_llama, write_jsonl

pytestmark = [pytest.mark.ray, pytest.mark.endurance, pytest.mark.usefixtures("ray_cluster")]

TASKS = ("sums", "reversals")


def row(kind: str, number: int) -> dict[str, Any]:
    """A row of a kind. All answers have four characters: the end of a turn, which every adapter learns, counts alike."""
    if kind == "sums":
        return chat(f"sum-{number}", kind, f"What is {number}+1700?", str(number + 1700))
    letters = "abcdefgh" if kind == "reversals" else "qrstuvwx"
    word = "".join(letters[number // 8**place % 8] for place in range(4))
    return chat(f"{kind}-{number}", kind, f"Reverse {word}.", word[::-1])


KINDS = (*TASKS, "other letters")
POOL = [row(KINDS[i % 3], 700 + 37 * i) for i in range(36)]
TARGETS = {task: [row(task, 717 + 139 * i) for i in range(9)] for task in TASKS}


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("forward")
    tiny_llama(initializer_range=0.2).save_pretrained(folder / "model")  # at 0.02 its logits hardly move
    byte_tokenizer().save_pretrained(folder / "model")
    write_jsonl(folder / "pool.jsonl", POOL)
    for task in TASKS:
        write_jsonl(folder / f"{task}.jsonl", TARGETS[task][:6])
        write_jsonl(folder / f"{task}-test.jsonl", TARGETS[task][6:])
    return folder


def tree(world: Path, run_dir: Path, **changes: Any) -> dict[str, Any]:
    targets = {task: {"files": f"{task}.jsonl", "test": f"{task}-test.jsonl"} for task in TASKS}
    loop = {"learning_rate": 1e-2, "batch_size": 3, "device_batch_size": 3, "warmup_ratio": 0.0}
    base = {
        "run_dir": str(run_dir),
        "model": {
            "base": str(world / "model"),
            "lora": {"r": 4, "alpha": 32, "dropout": 0.0, "targets": ["q_proj", "v_proj", "up_proj", "down_proj"]},
        },
        "data": {"root": str(world), "pool": "pool.jsonl", "max_tokens": 128, "targets": targets},
        "warmup": {"train_on": "targets", "epochs": 6, **loop},
        "features": {"featurizer": "checkpoint_loss", "rows_per_shard": 8},
        "attribution": {"scorer": "loss_drop"},
        "selectors": [
            {"name": "bids", "method": "bids", "budget": 8},
            {"name": "rr", "method": "rr", "budget": 8},
            {"name": "top", "method": "sum", "budget": 8},
        ],
        "resources": {"workers": 1, "cpus_per_worker": 0.5},
    }
    return {**base, **changes}


@pytest.fixture(scope="module")
def first(world, tmp_path_factory) -> influray.pipeline.Run:
    return influray.run(tree(world, tmp_path_factory.mktemp("run") / "first"))


def copied(first: influray.pipeline.Run, folder: Path, world: Path, **changes: Any) -> dict[str, Any]:
    shutil.copytree(first.directory.path, folder)
    return tree(world, folder, **changes)


def matrix_of(run: influray.pipeline.Run) -> np.ndarray:
    return np.concatenate([block for _, block in run.attribution().blocks()])


def test_the_matrix_is_the_drop_of_plain_losses_in_float64(first, world):
    assert first.attribution().groups == TASKS
    assert first.attribution().target_rows.tolist() == [-1, -1]
    examples = Catalogue(first.directory.data("pool")).tokenized(0, 36)
    adapters = [first.directory.checkpoint(k) / "adapter" for k in (2, 3)]
    expected = loss_drop(world / "model", adapters, examples)
    np.testing.assert_allclose(matrix_of(first), expected, atol=2e-5)
    assert np.abs(expected).max() > 0.1, "the adapters moved"
    stored = [first.datastore("pool", k).column("loss") for k in (1, 2)]
    np.testing.assert_allclose(stored[0], losses(world / "model", None, examples), rtol=1e-5)
    np.testing.assert_array_equal(matrix_of(first)[:, 0], stored[0].astype(np.float64) - stored[1])


def test_rows_of_a_tasks_own_kind_rank_above_others_in_its_column(first):
    source_N = Catalogue(first.directory.data("pool")).facts("source")["source"]
    score_NG = matrix_of(first).astype(np.float64)
    expected = {task: (task,) for task in TASKS}
    for answer in known_answers(TASKS, score_NG, source_N, expected, dict.fromkeys(TASKS, 1)):
        assert answer.auc > 0.85, answer
    chosen = first.selection("bids").rows
    assert {source_N[row] for row in chosen} == set(TASKS), "none of the third kind, whose answers nobody asked for"
    assert np.corrcoef(score_NG.T)[0, 1] < 0.99, "adapters of two tasks are two"


def test_no_gradient_is_taken_and_the_report_tells_of_the_columns(first):
    steps = first.directory.read()["steps"]
    assert steps["warmup"]["checkpoints"] == 3
    assert steps["featurize"]["epsilon_share"] == [None] * 3
    columns = set(next(first.datastore("pool", 2).parts()).column_names)
    assert columns == {"row", "loss", "loss_tokens", "el2n", "tokens"}
    manifests = [first.datastore("pool", k).manifest for k in (1, 2, 3)]
    assert [manifest["tasks"] for manifest in manifests] == [[], ["sums"], ["reversals"]]
    assert not {"direction", "projector", "blocks"} & set(manifests[0])
    assert all(task in first.directory.report.read_text() for task in TASKS)


def test_two_workers_other_shards_and_another_order_of_rows_give_the_same(first, world, tmp_path):
    config = tree(world, tmp_path / "two", resources={"workers": 2, "cpus_per_worker": 0.5})
    assert bytes_of(influray.run(config, until="select").directory.path) == bytes_of(first.directory.path)
    write_jsonl(tmp_path / "turned.jsonl", POOL[::-1])
    config = tree(world, tmp_path / "turned")
    config["data"] = {**config["data"], "pool": str(tmp_path / "turned.jsonl")}
    config["features"] = {**config["features"], "rows_per_shard": 5, "token_budget": 200}
    again = influray.run(config, until="score")
    np.testing.assert_allclose(matrix_of(again)[::-1], matrix_of(first), atol=1e-5)


def test_a_change_redoes_what_depends_on_it_and_nothing_else(first, world, tmp_path):
    config = copied(first, tmp_path / "copy", world)
    before = stamps(first)
    unread = {"features.direction": "sgd", "features.projector.dimension": 16, "attribution.weights": "uniform"}
    assert redone(before, influray.run(config, unread)) <= {"score", "select", "report"}
    share = influray.run(config, {"attribution.options": {"normalised": True}}, until="select")
    assert redone(before, share) >= {"score"}
    assert not {"warmup", "featurize"} & redone(before, share)
    examples = Catalogue(first.directory.data("pool")).tokenized(0, 36)
    adapters = [first.directory.checkpoint(k) / "adapter" for k in (2, 3)]
    np.testing.assert_allclose(matrix_of(share), loss_drop(world / "model", adapters, examples, True), atol=2e-5)
    grown = tmp_path / "grown.jsonl"
    config["data"] = {**config["data"], "pool": [config["data"]["pool"], str(grown)]}
    write_jsonl(grown, [chat("new", "new", "Add 1 and 1.", "2")])
    more = influray.run(config, until="score")
    assert more.directory.read()["steps"]["featurize"]["rows"] == 3, "one new row under three models"
    assert "warmup" not in redone(stamps(share), more), "no row of the pool is trained on"


def test_pooled_is_one_adapter_and_one_column(first, world, tmp_path):
    config = tree(world, tmp_path / "pooled", selectors=[{"name": "color", "method": "sum", "budget": 8}])
    config["warmup"] = {**config["warmup"], "pooled": True}
    run = influray.run(config, until="select")
    assert (run.attribution().shape, run.attribution().groups) == ((36, 1), ("loss_drop",))
    assert run.datastore("pool", 2).manifest["tasks"] == list(TASKS)
    best = np.argsort(-matrix_of(run)[:, 0], kind="stable")[:8]
    assert run.selection("color").rows.tolist() == best.tolist()
    base = bytes_of(run.directory.path)["features/pool/checkpoint-1"]
    assert base == bytes_of(first.directory.path)["features/pool/checkpoint-1"], "the base is the base"


def test_losses_at_the_epochs_of_a_warmup_on_the_pool_are_el2n_some_epochs_in(world, tmp_path):
    loop = {"fraction": 0.5, "epochs": 2, "learning_rate": 1e-2, "batch_size": 6, "device_batch_size": 6}
    run = influray.run(tree(world, tmp_path / "el2n", warmup=loop, attribution={"scorer": "el2n"}), until="select")
    weights = run.attribution().manifest["weights"]
    columns = [run.datastore("pool", k).column("el2n").astype(np.float64) for k in (1, 2)]
    np.testing.assert_allclose(matrix_of(run)[:, 0], np.array(weights) @ columns, rtol=1e-6)
    assert "tasks" not in run.datastore("pool", 1).manifest


def test_the_plan_prices_a_forward_pass_under_every_model(first, world, tmp_path):
    forward = {step.name: step for step in plan(tree(world, tmp_path / "none")).steps}
    one = {step.name: step for step in plan(tree(world, tmp_path / "none"), BASE).steps}
    assert forward["featurize"].rows == 3 * one["featurize"].rows == 3 * (36 + 12)
    assert 3 < forward["featurize"].operations / one["featurize"].operations < 3.5
    pool = {"warmup.train_on": "pool", **BASE, "features.featurizer": "checkpoint_loss"}
    dear = {step.name: step for step in plan(tree(world, tmp_path / "none"), pool).steps}
    assert forward["warmup"].operations < dear["warmup"].operations / 2, "12 targets, not 36 rows"
    assert forward["warmup"].what == "an adapter a task, 100.0% of the targets, 6 epochs"
    assert all(step.state == "done" for step in plan(first.config, run_dir=first.directory.path).steps[1:5])


BASE = {"features.featurizer": "loss", "attribution.scorer": "loss"}


@pytest.mark.parametrize(
    ("changes", "kind", "said"),
    [
        (
            {"features.featurizer": "gradient", "attribution.scorer": "inner_product"},
            ConfigError,
            r"^warmup\.train_on: targets trains the adapters on the targets, and features\.featurizer 'gradient' would",
        ),
        ({"warmup.train_on": "pool"}, ArtifactMismatch, r"set features\.featurizer: checkpoint_loss and warmup\.train"),
        (BASE | {"attribution.scorer": "loss_drop"}, ArtifactMismatch, r"'loss_drop' compares .*hold 'loss' features"),
        (
            {"warmup.warmup_ratio": 0.9, "warmup.epochs": 1, "warmup.batch_size": 6},
            ConfigError,
            r"^warmup\.warmup_ratio: 0\.9 .* 'sums' \(6 rows",
        ),
        ({"selectors.0.constraints": {"near_duplicates": 0.9}}, ConfigError, "'checkpoint_loss' makes none; take gra"),
        ({"attribution.weights": [1, 2]}, ConfigError, r"attribution\.weights: 2 weights for 3 checkpoints"),
        (
            {"cascade": {"features": {"featurizer": "gradient"}}},
            ConfigError,
            r"^warmup\.train_on: targets .*'gradient' would",
        ),
        (
            {"cascade": {"features": {"featurizer": "gradient"}, "warmup": {"train_on": "targets"}}},
            ConfigError,
            r"^cascade\.warmup\.train_on: targets",
        ),
    ],
)
def test_wrong_configs_are_refused_before_anything_is_trained(world, tmp_path, changes, kind, said):
    with pytest.raises(kind, match=said):
        influray.run(tree(world, tmp_path / "run"), changes)
    assert not (tmp_path / "run" / "warmup").exists()


@pytest.mark.parametrize("where", ["warmup", "cascade"])
def test_a_test_record_is_never_trained_on(world, tmp_path, where):
    """Wherever it stands, in whatever form and under whatever id."""
    leaked = TARGETS["reversals"][7]
    question, answer = (turn["content"] for turn in leaked["messages"])
    write_jsonl(tmp_path / "sums.jsonl", [*TARGETS["sums"][:6], {"instruction": question, "output": answer}])
    config = tree(world, tmp_path / "run")
    config["data"]["targets"]["sums"]["files"] = str(tmp_path / "sums.jsonl")
    if where == "cascade":
        cheap = {"featurizer": "checkpoint_loss", "rows_per_shard": 8}
        config["cascade"] = {"share": 0.5, "features": cheap, "attribution": config["attribution"]}
        config["cascade"]["warmup"] = {**config["warmup"], "epochs": 1}
        config |= {"features": {"featurizer": "loss"}, "attribution": {"scorer": "loss"}}
    said = (
        rf"train on a test record: the target .* of data\.targets\.sums\.files .*'{leaked['id']}' of data\.targets\.rev"
    )
    with pytest.raises(DataError, match=said):
        influray.run(config, until="select")
    assert not (tmp_path / "run" / "warmup").exists()
    assert not (tmp_path / "run" / "selection").exists()


def test_every_selector_that_compares_no_features_runs_on_columns_of_tasks(first):
    from influray.registry import METHODS, SELECTORS, resolve_method
    from influray.selectors.api import make_selector

    ran = 0
    for method in [*SELECTORS, *METHODS]:
        name, options = resolve_method(method)
        if make_selector(name, options).needs_features:
            with pytest.raises(ArtifactMismatch, match="holds no feature vectors"):
                influray.select(first.directory.attribution, None, 8, method=method)
            continue
        ran += 1
        found = influray.select(first.directory.attribution, None, 8, method=method)
        assert len(set(found.rows.tolist())) == 8, method
    assert ran > 20
