"""The drop of a row's loss from the base to adapters of the tasks: the scorer, its losses, and what it refuses."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from influray.config import dump_config, parse_config
from influray.config_model import LoraConfig
from influray.features.loss import CheckpointLossFeaturizer, LossFeaturizer
from influray.model.loading import attach_adapter, attach_new_adapter
from influray.plugins import permit
from influray.protocols import ArtifactMismatch, Columns, ConfigError, FeatureRows
from influray.runtime.training_worker import TrainingJob, carry_out, committed
from influray.scorers.loss_drop import LossDrop
from influray.scorers.options import expected_stores, make_scorer
from influray.steps.states import basis
from influray.steps.train import WARMUP
from influray.store.artifact import fingerprint
from influray.validation.scorers import KNOWN, Judged, config_of
from tests.features import made_for, make_rows
from tests.tiny import target_rows, tiny_llama, write_jsonl, write_tiny_model
from tests.unit.test_example_gradients import ATTENTION, mixed_batch, with_lora

TASKS_K = ((), ("sums",), ("reversals",))
TARGETS = Columns((0, 1, 2), ("x", "y", "z"), ("sums", "sums", "reversals"))


def stores(**changes: Any):
    return made_for(
        len(changes.get("tasks_K", TASKS_K)), featurizer="checkpoint_loss", **{"tasks_K": TASKS_K, **changes}
    )


def rows_of(*losses: list[float]) -> FeatureRows:
    """Rows of these losses, a list for each checkpoint."""
    facts = [{"loss": np.array(one, np.float32)} for one in losses]
    return FeatureRows(np.arange(len(losses[0])), ["s"] * len(losses[0]), (), facts)


def config(**changes: Any):
    tree = {
        "model": {"base": "m"},
        "data": {"pool": "p", "targets": {"sums": "t", "reversals": "u"}},
        "selectors": [{"name": "bids", "method": "bids", "budget": 1}],
    }
    return parse_config({**tree, **changes})


FORWARD = {
    "warmup": {"train_on": "targets"},
    "features": {"featurizer": "checkpoint_loss"},
    "attribution": {"scorer": "loss_drop"},
}


def test_a_row_scores_by_what_its_loss_lost_and_normalised_by_which_share():
    pool = rows_of([4.0, 1.0, 2.0], [1.0, 2.0, 2.0], [3.0, 0.5, 0.0])
    plain = LossDrop(stores()).score(pool, pool, {})
    np.testing.assert_array_equal(plain, [[3, 1], [-1, 0.5], [0, 2]])
    assert plain.dtype == np.float32
    share = LossDrop(stores(), normalised=True).score(pool, pool, {})
    np.testing.assert_array_equal(share, [[0.75, 0.25], [-1, 0.5], [0, 1]])


def test_a_row_that_the_base_is_sure_of_has_a_finite_share():
    pool = rows_of([0.0, 0.0], [0.0, 0.5], [1e-7, 0.0])
    found = LossDrop(stores(), normalised=True).score(pool, pool, {})
    assert np.isfinite(found).all()
    assert found[0, 0] == 0
    assert found[1, 0] < 0


def test_there_is_a_column_for_each_adapter_and_one_of_no_task_where_they_are_pooled():
    names = "sums", "reversals"
    assert LossDrop(stores()).columns(TARGETS) == Columns((-1, -1), names, names)
    pooled = LossDrop(stores(tasks_K=((), names))).columns(TARGETS)
    assert pooled == Columns((-1,), ("loss_drop",), ("loss_drop",))
    alone = LossDrop(stores(tasks_K=((), ("sums",)))).columns(TARGETS)
    assert alone.tasks == ("sums",)


def test_targets_and_weights_play_no_part():
    pool, scorer = make_rows(20, 8, 3, seed=0), LossDrop(stores())
    found = scorer.score(pool, make_rows(3, 8, 3, seed=1), {})
    other = LossDrop(stores(weights=(0.0, 0.5, 0.5))).score(pool, make_rows(5, 8, 3, seed=2), {})
    np.testing.assert_array_equal(found, other)


@pytest.mark.parametrize("featurizer", ["loss", "gradient", "ngram", "checkpoint_loss"])
def test_stores_without_adapters_of_the_tasks_are_refused_with_the_settings_that_make_them(featurizer):
    said = rf"'loss_drop' compares .*'{featurizer}' features without such adapters; set features\.featurizer: checkp"
    with pytest.raises(ArtifactMismatch, match=said):
        LossDrop(made_for(3, featurizer=featurizer))
    with pytest.raises(ArtifactMismatch, match=r"'loss_drop' needs the column 'loss'"):
        LossDrop(made_for(3, featurizer="p:C", makes="facts", columns=("el2n",), tasks_K=TASKS_K))
    with pytest.raises(ConfigError, match=r"attribution\.options\.normalised: found 'yes please'"):
        make_scorer("loss_drop", stores(), {"normalised": "yes please"})


def test_a_config_says_which_adapters_there_will_be():
    assert expected_stores(config(**FORWARD)).tasks_K == TASKS_K
    assert len(expected_stores(config(**FORWARD)).weights) == 3
    pooled = config(**{**FORWARD, "warmup": {"train_on": "targets", "pooled": True}})
    assert expected_stores(pooled).tasks_K == ((), ("sums", "reversals"))
    base = config(warmup={"train_on": "targets"}, features={"featurizer": "loss"}, attribution={"scorer": "loss"})
    assert expected_stores(base).tasks_K == ()


def test_gradients_that_validation_would_take_at_fitted_adapters_are_refused():
    """And so are those of a plug-in that is given what a gradient takes."""
    for featurizer in ("gradient", "influray.features.gradient:GradientFeaturizer"):
        permit(["influray.features.gradient:GradientFeaturizer"])
        one = Judged("mine", "inner_product", {}, {"featurizer": featurizer})
        with pytest.raises(ConfigError, match=r"^validate\.scorers: mine: warmup\.train_on: targets trains"):
            config_of(config(**FORWARD), one)
        config_of(config(), one)
    assert config_of(config(**FORWARD), KNOWN["representation"]).features.featurizer == "representation"


@pytest.mark.parametrize(
    ("warmup", "said"),
    [
        ({"train_on": "test"}, r"warmup\.train_on: .*'pool' or 'targets' \(found 'test'\)"),
        (
            {"pooled": True},
            r"warmup: pooled: true joins the adapters of the tasks, and there are none; set train_on: t",
        ),
        (
            {"train_on": "targets", "checkpoints": [{"adapter": "a", "mean_learning_rate": 1.0}]},
            r"warmup: train_on: targets trains adapters and checkpoints are trained; leave one of them out",
        ),
    ],
)
def test_settings_that_contradict_each_other_are_refused(warmup, said):
    with pytest.raises(ConfigError, match=said):
        config(warmup=warmup)


def test_what_was_made_before_there_were_such_keys_keeps_its_name():
    """The section of a warmup on the pool is written as it was, and step states and fingerprints with it."""
    before = {"epochs": 2, "seed": 3}
    plain, spelled = config(warmup=before), config(warmup={**before, "train_on": "pool", "pooled": False})
    assert dump_config(plain) == dump_config(spelled)
    assert not {"train_on", "pooled"} & set(plain.warmup.model_dump())
    assert basis(WARMUP, plain, {})["warmup"] == fingerprint(
        {name: value for name, value in plain.warmup if name not in ("train_on", "pooled")}
    )
    assert basis(WARMUP, config(warmup={**before, "train_on": "targets"}), {}) != basis(WARMUP, plain, {})
    assert parse_config(config(**FORWARD).model_dump(mode="json")) == config(**FORWARD)


def test_the_adapter_before_its_first_step_is_the_base_bit_for_bit():
    model = tiny_llama()
    base = LossFeaturizer(model).compute(mixed_batch())
    model = attach_new_adapter(model, LoraConfig(r=3, targets=("q_proj", "up_proj")), seed=5)
    found = CheckpointLossFeaturizer(model).compute(mixed_batch())
    for name, column in base.columns.items():
        np.testing.assert_array_equal(found.columns[name], column)
    tuned = CheckpointLossFeaturizer(with_lora(tiny_llama(), ATTENTION)).compute(mixed_batch())
    assert (tuned.loss_B != base.loss_B).all(), "an adapter shows"


LORA = {"r": 2, "alpha": 8, "dropout": 0.1, "targets": ["q_proj", "v_proj"]}
LOOP = {"epochs": 3, "learning_rate": 5e-3, "batch_size": 2, "device_batch_size": 2}


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> SimpleNamespace:
    """A model, and the catalogue of five targets of two tasks."""
    from influray.data.catalogue import build_catalogue
    from influray.data.chat import ChatEncoder
    from influray.data.files import resolve_files
    from tests.tiny import byte_tokenizer

    root = tmp_path_factory.mktemp("world")
    write_tiny_model(root / "model")
    write_jsonl(root / "sums.jsonl", target_rows("sums", 3))
    write_jsonl(root / "reversals.jsonl", target_rows("reversals", 2))
    targets = {task: f"{task}.jsonl" for task in ("sums", "reversals")}
    made = config(
        model={"base": str(root / "model"), "lora": LORA},
        data={"root": str(root), "pool": "sums.jsonl", "max_tokens": 128, "targets": targets},
        **{**FORWARD, "warmup": {**LOOP, "train_on": "targets"}},
    )
    files = [(task, file) for task in targets for file in resolve_files((targets[task],), root, "data.targets")]
    encoder = ChatEncoder(byte_tokenizer(), "auto", 128)
    catalogue = build_catalogue(
        root / "target", "target", files, encoder, "key", made.data, quarantine=root / "quarantine.jsonl"
    )
    return SimpleNamespace(root=root, tree=made.model_dump(mode="json"), catalogue=catalogue)


def job(world, out: Path, rows: Any = range(5), **warmup: Any) -> TrainingJob:
    tree = {**world.tree, "warmup": {**world.tree["warmup"], **warmup}}
    return TrainingJob("warmup", tree, str(world.root / "target"), list(rows), str(out), seed=1)


def weights(folder: Path) -> bytes:
    return (folder / "adapter" / "adapter_model.safetensors").read_bytes()


@pytest.fixture(scope="module")
def trained(world, tmp_path_factory) -> tuple[Path, dict[str, Any]]:
    out = tmp_path_factory.mktemp("out") / "warmup"
    return out, carry_out(job(world, out), "cpu", None, threads=1)


def test_a_warmup_on_targets_leaves_the_base_and_an_adapter_for_each_task(world, trained):
    out, manifest = trained
    assert manifest["tasks"] == [[], ["sums"], ["reversals"]]
    assert (manifest["checkpoints"], manifest["rows"], manifest["steps"]) == (3, 5, 3 * 2 + 3)
    assert manifest["mean_learning_rates"][0] == 0 < min(manifest["mean_learning_rates"][1:])
    assert committed(job(world, out)) == manifest
    assert sorted(one.name for one in out.iterdir()) == [*(f"checkpoint-{k}" for k in (1, 2, 3)), "manifest.json"]
    assert [one.name for one in out.parent.iterdir()] == ["warmup"], "nothing hidden is left"
    files = [weights(out / f"checkpoint-{k}") for k in (1, 2, 3)]
    assert len(set(files)) == 3, "adapters of two tasks are two"


def test_each_adapter_is_that_of_a_training_on_its_own_targets_alone(world, trained, tmp_path):
    """No task sees another's rows, whatever was trained before it."""
    from influray.model.finetune import finetune
    from influray.model.loading import load_base

    out, manifest = trained
    settings = parse_config(world.tree)
    for k, (start, stop) in ((2, (0, 3)), (3, (3, 5))):
        assert set(world.catalogue.groups[start:stop]) == set(manifest["tasks"][k - 1])
        torch.set_num_threads(1)
        model = attach_new_adapter(load_base(settings.model, "cpu"), settings.model.lora, seed=1)
        section = settings.warmup.model_copy(update={"seed": 1})
        done = finetune(model, world.catalogue.tokenized(start, stop), section, tmp_path / str(k), keep="last")
        assert done.checkpoints[-1].digest == manifest["digests"][k - 1]
        assert list(done.losses) == manifest["losses"][k - 2]
    fresh = attach_adapter(load_base(settings.model, "cpu"), out / "checkpoint-1" / "adapter")
    assert all(not weight.any() for name, weight in fresh.named_parameters() if ".lora_B." in name)


def test_a_training_that_was_stopped_goes_on_and_ends_in_the_same_bytes(world, trained, tmp_path):
    told: list[tuple[int, float]] = []

    def stop(done: int, total: int, unit: str, loss: float | None = None, share: float | None = None) -> None:
        told.append((done, share or 0.0))
        if len(told) == 8:  # in the second epoch of the second task
            raise KeyboardInterrupt

    again = job(world, tmp_path / "warmup")
    with pytest.raises(KeyboardInterrupt):
        carry_out(again, "cpu", None, threads=1, tell=stop)
    assert [done for done, _ in told] == [1, 2, 3, 4, 5, 6, 1, 2]
    assert [share for _, share in told] == sorted(share for _, share in told)
    assert committed(again) is None
    told.clear()
    manifest = carry_out(again, "cpu", None, threads=1, tell=lambda done, *_: told.append((done, 0.0)))
    assert len(told) < 9, "what was trained is not trained again"
    assert manifest == trained[1]
    for k in (1, 2, 3):
        assert weights(tmp_path / "warmup" / f"checkpoint-{k}") == weights(trained[0] / f"checkpoint-{k}")


def test_what_the_adapters_were_trained_on_is_part_of_what_they_are(world, trained, tmp_path):
    first = job(world, tmp_path)
    prints = {
        "all": first.fingerprint,
        "pooled": job(world, tmp_path, pooled=True).fingerprint,
        "fewer": job(world, tmp_path, rows=[0, 1, 3, 4]).fingerprint,
        "pool": job(world, tmp_path, train_on="pool").fingerprint,
    }
    assert len(set(prints.values())) == 4
    assert first.fingerprint == trained[1]["fingerprint"]
    assert [part.rows.tolist() for part in job(world, tmp_path, pooled=True).parts] == [[0, 1, 2, 3, 4]]
    assert [part.rows.tolist() for part in job(world, tmp_path, rows=[0, 1, 4]).parts] == [[0, 1], [4]]
