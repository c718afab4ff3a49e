"""One retraining: the adapter that a tune would leave, on a base that stays; what it commits; what it depends on."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from peft import get_peft_model_state_dict
from safetensors.torch import load_file

from influray.config import parse_config
from influray.config_model import FinetuneConfig
from influray.data.catalogue import Catalogue, build_catalogue
from influray.data.chat import ChatEncoder
from influray.data.files import resolve_files
from influray.evaluation.answer_loss import score_answers
from influray.model.loading import attach_adapter, load_base
from influray.model.step_plan import StepPlan
from influray.protocols import DataError
from influray.runtime.retraining_worker import Retrainer, Retraining, make_bench
from influray.runtime.training_worker import TrainingJob, carry_out
from influray.store.run_directory import RunDirectory
from tests.tiny import byte_tokenizer, pool_rows, target_rows, write_jsonl, write_tiny_model

LOOP = {"epochs": 2, "learning_rate": 5e-3, "batch_size": 8, "device_batch_size": 4}


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> SimpleNamespace:
    """A tiny model, and the catalogues of a run directory with dropout in its adapter."""
    root = tmp_path_factory.mktemp("world")
    write_tiny_model(root / "model")
    write_jsonl(root / "pool.jsonl", pool_rows(24))
    for task in ("sums", "reversals"):
        write_jsonl(root / f"{task}.jsonl", target_rows(task, 4))
    tree = {
        "run_dir": str(root / "run"),
        "model": {
            "base": str(root / "model"),
            "lora": {"r": 2, "alpha": 8, "dropout": 0.1, "targets": ["q_proj", "v_proj"]},
        },
        "data": {
            "root": str(root),
            "pool": "pool.jsonl",
            "max_tokens": 128,
            "targets": {t: {"files": f"{t}.jsonl", "test": f"{t}.jsonl"} for t in ("sums", "reversals")},
        },
        "tune": LOOP,
        "evaluation": {"token_budget": 2000},
        "selectors": [{"name": "bids", "method": "bids", "budget": 4}],
    }
    config, run = parse_config(tree), RunDirectory(root / "run")
    encoder = ChatEncoder(byte_tokenizer(), "auto", 128)
    splits: dict[Any, Any] = {"pool": [("", f) for f in resolve_files(("pool.jsonl",), root, "data.pool")]}
    splits["target"] = [(t, f) for t in config.data.targets for f in resolve_files((f"{t}.jsonl",), root, "data")]
    splits["test"] = splits["target"]
    for split, files in splits.items():
        build_catalogue(run.data(split), split, files, encoder, "key", config.data, quarantine=run.quarantine_path)
    return SimpleNamespace(run=run, config=config, bench=make_bench(run, config, {"base": "digest"}))


def retraining(world, rows=(1, 2, 3, 7, 8, 9, 15, 20, 21), seed: int = 0, without=(), **changes) -> Retraining:
    fields = {name: getattr(world.config.retraining, name) for name in FinetuneConfig.model_fields}
    return Retraining(tuple(rows), FinetuneConfig(**{**fields, **changes, "seed": seed}), tuple(without))


def tuned(world, one: Retraining, out: Path) -> dict[str, Any]:
    job = TrainingJob(
        "tune",
        world.config.model_dump(mode="json"),
        str(world.run.data("pool")),
        list(one.rows),
        str(out),
        one.section.seed,
    )
    carry_out(job, "cpu", None, 1)
    return load_file(out / "adapter" / "adapter_model.safetensors")


def test_the_adapter_is_that_of_a_tune_bit_for_bit_whatever_was_trained_before(world, tmp_path):
    retrainer = Retrainer(world.bench, "cpu", 1)
    others = [retraining(world, range(24), seed=5), retraining(world, seed=1), retraining(world, (4, 5), seed=0)]
    for one in others:  # another seed's adapter takes the place of the first, and comes back
        retrainer.train(one)
    for seed in (1, 0):
        one = retraining(world, seed=seed)
        model, _ = retrainer.train(one)
        found = {name: weight.clone() for name, weight in get_peft_model_state_dict(model).items()}
        expected = tuned(world, one, tmp_path / f"seed-{seed}")
        assert found.keys() == expected.keys()
        for name, weight in expected.items():
            assert found[name].equal(weight), name
        assert any(bool(weight.any()) for name, weight in expected.items() if "lora_B" in name), "nothing was trained"


def test_it_commits_the_losses_of_every_target_and_test_record(world, tmp_path):
    one = retraining(world, seed=3)
    found = Retrainer(world.bench, "cpu", 1).carry_out(one)
    tuned(world, one, tmp_path / "tuned")
    model = attach_adapter(load_base(world.config.model, "cpu", None), tmp_path / "tuned" / "adapter")
    for split in ("target", "test"):
        catalogue = Catalogue(world.run.data(split))
        losses, _ = score_answers(model, catalogue.tokenized(0, len(catalogue)), 2000)
        assert found["losses"][split] == losses.tolist()
    assert (found["rows"], found["steps"]) == (9, 4)
    committed = world.bench.committed(one)
    assert committed is not None
    assert committed["losses"] == found["losses"]


def test_what_is_committed_is_not_repeated_and_what_is_damaged_is_made_again(world):
    retrainer, one = Retrainer(world.bench, "cpu", 1), retraining(world, seed=4)
    retrainer.carry_out(one)
    path = Path(world.bench.place(one))
    before, stamp = path.read_bytes(), path.stat().st_mtime_ns
    retrainer.carry_out(one)
    assert path.stat().st_mtime_ns == stamp
    for damage in (before[:-20], b"", before.replace(b'"rows": 9', b'"rows": 8')):
        path.write_bytes(damage)
        assert world.bench.committed(one) is None
        retrainer.carry_out(one)
        assert path.read_bytes() == before


def test_everything_that_changes_a_result_changes_its_name(world):
    one = retraining(world)
    others = [
        retraining(world, (1, 2, 3)),
        retraining(world, seed=1),
        retraining(world, steps=3),
        retraining(world, learning_rate=1e-3),
        retraining(world, without=(2,)),
    ]
    names = {world.bench.fingerprint(each) for each in (one, *others)}
    assert len(names) == 6
    assert make_bench(world.run, world.config, {"base": "another"}).fingerprint(one) not in names
    changed = world.config.model_copy(
        update={"evaluation": world.config.evaluation.model_copy(update={"token_budget": 9})}
    )
    assert make_bench(world.run, changed, {"base": "digest"}).fingerprint(one) not in names
    assert make_bench(world.run, world.config, {"base": "digest"}).fingerprint(retraining(world)) in names


def test_rows_left_out_keep_their_places_and_weigh_nothing():
    whole = StepPlan(20, 8, 3, 1, seed=2)
    without = StepPlan(20, 8, 3, 1, seed=2, without=frozenset({4, 11}))
    for one, other in zip(whole.passes(0, 0), without.passes(0, 0), strict=True):
        assert [i for i, _ in one] == [i for i, _ in other]
        assert [0.0 if i in (4, 11) else weight for i, weight in one] == [weight for _, weight in other]


def test_a_row_left_out_has_no_say(world, tmp_path):
    retrainer = Retrainer(world.bench, "cpu", 1)
    rows = (1, 2, 3, 7)  # a step of all four, so that order and rounding are those of the three beside it

    def weights(**changes) -> dict[str, Any]:
        model, _ = retrainer.train(retraining(world, rows, **changes))
        return {name: weight.clone() for name, weight in get_peft_model_state_dict(model).items()}

    whole, without = weights(), weights(without=(3,))
    assert any(not whole[name].equal(without[name]) for name in whole)
    none = weights(without=rows)
    fresh, _ = Retrainer(world.bench, "cpu", 1).train(retraining(world, rows, without=rows, steps=1, warmup_ratio=0.0))
    assert all(none[name].equal(weight) for name, weight in get_peft_model_state_dict(fresh).items())


def test_a_training_that_breaks_says_which_it_was(world):
    one = retraining(world, seed=6, learning_rate=1e30, max_grad_norm=0.0, warmup_ratio=0.0, epochs=4)
    with pytest.raises(DataError, match=r"a retraining on 9 rows with seed 6: the loss is not finite"):
        Retrainer(world.bench, "cpu", 1).carry_out(one)
    assert world.bench.committed(one) is None


def test_losses_are_numbers_to_the_last_bit(world):
    one = retraining(world, seed=3)
    Retrainer(world.bench, "cpu", 1).carry_out(one)
    again = Retrainer(world.bench, "cpu", 1)
    model, _ = again.train(one)
    catalogue = Catalogue(world.run.data("target"))
    losses, _ = score_answers(model, catalogue.tokenized(0, len(catalogue)), 2000)
    committed = world.bench.committed(one)
    assert committed is not None
    assert np.array_equal(np.array(committed["losses"]["target"]), losses)
