"""Trainings and evaluations on a local Ray: what they leave, what is skipped, what is resumed, how errors arrive."""

from __future__ import annotations

import threading
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import psutil
import pytest
import torch

from influray.config import parse_config
from influray.data.catalogue import build_catalogue
from influray.data.chat import ChatEncoder
from influray.data.files import resolve_files
from influray.model.checkpoints import load_checkpoint
from influray.model.finetune import finetune
from influray.model.loading import attach_adapter, attach_new_adapter, load_base, load_tokenizer
from influray.protocols import ArtifactMismatch, ConfigError, DataError
from influray.runtime import job_progress
from influray.runtime.cluster import ResolvedResources
from influray.runtime.job_progress import JobBoard, telling
from influray.runtime.training import Layout, plan_layout, run_jobs
from influray.runtime.training_worker import EvaluationJob, TrainingJob, carry_out, committed
from influray.store.artifact import read_manifest, read_sealed
from tests.tiny import CHATML, byte_tokenizer, pool_rows, target_rows, tiny_llama, write_jsonl, write_tiny_model

LORA = {"r": 2, "alpha": 8, "dropout": 0.1, "targets": ["q_proj", "v_proj"]}
LOOP = {"epochs": 2, "learning_rate": 5e-3, "batch_size": 8, "device_batch_size": 4}


@dataclass(frozen=True)
class Resources(ResolvedResources):
    workers: int = 2
    cpus_per_worker: float = 1
    gpus_per_worker: float = 0.0
    threads_per_worker: int = 1
    training_workers: int = 1
    max_attempts: int = 3


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> SimpleNamespace:
    """A tiny model on disk, 24 pool rows and 12 held-out rows of two tasks as catalogues, and a config."""
    root = tmp_path_factory.mktemp("world")
    write_tiny_model(root / "model")
    write_jsonl(root / "pool.jsonl", pool_rows(24))
    for task in ("sums", "reversals"):
        write_jsonl(root / f"{task}.jsonl", target_rows(task, 6))
    tree = {
        "model": {"base": str(root / "model"), "lora": LORA},
        "data": {
            "root": str(root),
            "pool": "pool.jsonl",
            "max_tokens": 128,
            "targets": {t: {"files": f"{t}.jsonl", "test": f"{t}.jsonl"} for t in ("sums", "reversals")},
        },
        "warmup": LOOP,
        "tune": LOOP,
        "evaluation": {"max_new_tokens": 6, "token_budget": 2000},
        "selectors": [{"name": "bids", "method": "bids", "budget": 4}],
    }
    config = parse_config(tree)
    encoder = ChatEncoder(byte_tokenizer(), "auto", 128)
    splits: dict[Any, Any] = {
        "pool": [("", f) for f in resolve_files(config.data.pool, root, "data.pool")],
        "test": [(t, f) for t in config.data.targets for f in resolve_files((f"{t}.jsonl",), root, "data.targets")],
    }
    for split, files in splits.items():
        build_catalogue(root / split, split, files, encoder, "key", config.data, quarantine=root / "quarantine.jsonl")
    return SimpleNamespace(root=root, config=config, tree=config.model_dump(mode="json"))


def training(world, kind: Any, out: Path, rows: Any = range(24), seed: Any = 0, **sections: Any) -> TrainingJob:
    tree = {**world.tree, **{name: {**world.tree[name], **values} for name, values in sections.items()}}
    return TrainingJob(kind, tree, str(world.root / "pool"), list(rows), str(out), seed)


def here(job: TrainingJob) -> dict[str, Any]:
    """Carry out a training in this process, which is what a worker of one rank does."""
    return carry_out(job, "cpu", None, threads=1)


def weights(folder: Path) -> bytes:
    return (folder / "adapter" / "adapter_model.safetensors").read_bytes()


@pytest.fixture(scope="module")
def warmup(world, ray_cluster, tmp_path_factory) -> tuple[TrainingJob, dict[str, Any]]:
    """A warmup on every second row in a worker, and its manifest."""
    job = training(world, "warmup", tmp_path_factory.mktemp("through") / "warmup", rows=range(0, 24, 2))
    (manifest,) = run_jobs([job], Resources())
    return job, manifest


@pytest.mark.ray
def test_warmup_leaves_a_checkpoint_per_epoch_equal_to_the_loop_without_ray(world, warmup, tmp_path):
    job, manifest = warmup
    out = Path(job.out)
    assert manifest["checkpoints"] == 2
    assert manifest["steps"] == 4
    assert manifest["rows"] == 12
    assert committed(job) is not None

    torch.set_num_threads(1)
    model = attach_new_adapter(load_base(world.config.model, "cpu"), world.config.model.lora, seed=0)
    from influray.data.catalogue import Catalogue

    catalogue = Catalogue(world.root / "pool")
    examples = [example for row in range(0, 24, 2) for example in catalogue.tokenized(row, row + 1)]
    expected = finetune(model, examples, world.config.warmup, tmp_path / "plain")
    assert list(expected.losses) == manifest["losses"]
    for number, checkpoint in enumerate(expected.checkpoints, start=1):
        found = load_checkpoint(out / f"checkpoint-{number}")
        assert found.digest == checkpoint.digest == manifest["digests"][number - 1]
    assert [p.name for p in out.parent.iterdir()] == ["warmup"], "nothing hidden is left"


def test_a_tune_in_tokens_is_the_tune_of_as_many_steps(world, tmp_path):
    each = here(training(world, "tune", tmp_path / "epochs"))["tokens"]
    by_tokens = training(world, "tune", tmp_path / "tokens", tune={"tokens": each + 1})
    by_steps = training(world, "tune", tmp_path / "steps", tune={"steps": 24 // LOOP["batch_size"] + 1})
    assert here(by_tokens)["steps"] == here(by_steps)["steps"]
    assert weights(tmp_path / "tokens") == weights(tmp_path / "steps")
    assert committed(by_tokens) is not None
    assert committed(training(world, "tune", tmp_path / "tokens", tune={"tokens": each})) is None


def test_a_tune_of_another_model_reads_the_records_with_its_own_tokenizer(world, tmp_path):
    """Chosen with one model, tuned and judged with another whose tokens are others: as if that had been `model`."""
    other = tmp_path / "other"
    tiny_llama(seed=5, hidden_size=48, num_attention_heads=4).save_pretrained(other)
    byte_tokenizer(CHATML.replace("m['role']", "m['role'][0]")).save_pretrained(other)
    lora = {"r": 3, "alpha": 6.0, "targets": ["q_proj"]}
    model = {"base": str(other), "lora": lora}
    swapped = {**world.tree, "model": parse_config({**world.tree, "model": model}).model.model_dump(mode="json")}
    swapped["tune"] = {**swapped["tune"], "model": model}
    rows = list(range(0, 24, 2))
    job = TrainingJob("tune", swapped, str(world.root / "pool"), rows, str(tmp_path / "proxy"), 0)
    manifest = here(job)

    config = parse_config({**world.tree, "model": model})
    encoder = ChatEncoder(load_tokenizer(config.model), "auto", 128)
    files = [("", f) for f in resolve_files(config.data.pool, world.root, "data.pool")]
    place = tmp_path / "its-own"
    build_catalogue(place / "pool", "pool", files, encoder, "key", config.data, quarantine=place / "quarantine.jsonl")
    alone = TrainingJob("tune", config.model_dump(mode="json"), str(place / "pool"), rows, str(tmp_path / "alone"), 0)
    assert here(alone)["losses"] == manifest["losses"]
    assert weights(tmp_path / "alone") == weights(tmp_path / "proxy")
    assert job.fingerprint != alone.fingerprint, "of other files"
    assert manifest["tokens"] < here(training(world, "tune", tmp_path / "first", rows=rows))["tokens"]

    judged = EvaluationJob(
        swapped, str(world.root / "test"), str(tmp_path / "proxy" / "adapter"), str(tmp_path / "e.json")
    )
    found = carry_out(judged, "cpu", None, threads=1)
    files = [(t, f) for t in config.data.targets for f in resolve_files((f"{t}.jsonl",), world.root, "data.targets")]
    build_catalogue(place / "test", "test", files, encoder, "key", config.data, quarantine=place / "quarantine.jsonl")
    own = EvaluationJob(
        config.model_dump(mode="json"),
        str(place / "test"),
        str(tmp_path / "alone" / "adapter"),
        str(tmp_path / "o.json"),
    )
    assert carry_out(own, "cpu", None, threads=1)["tasks"] == found["tasks"]


def test_a_record_that_the_tuned_model_cannot_write_is_named(world, tmp_path):
    other = tmp_path / "other"
    tiny_llama(seed=5).save_pretrained(other)
    refused = "{% if m['content'] == 'Hello.' %}{{ raise_exception('no talk') }}{% endif %}"
    loop = "{% for m in messages %}"
    byte_tokenizer(CHATML.replace(loop, loop + refused)).save_pretrained(other)
    model = {"base": str(other), "lora": LORA}
    tree = {**world.tree, "model": {**world.tree["model"], "base": str(other)}}
    tree["tune"] = {**tree["tune"], "model": model}
    job = TrainingJob("tune", tree, str(world.root / "pool"), [0, 1, 2], str(tmp_path / "out"), 0)
    with pytest.raises(DataError, match=r"tune\.model: 1 of 3 records cannot be written .*'talk-2'.*no talk.*exclude"):
        here(job)


@pytest.mark.ray
def test_tunes_in_parallel_equal_each_alone_and_are_not_repeated(world, ray_cluster, tmp_path):
    selections = {"a": [3, 5, 8, 13], "b": list(range(10, 24))}
    jobs = [
        training(world, "tune", tmp_path / "run" / "tune" / name / f"seed-{seed}", rows, seed)
        for name, rows in selections.items()
        for seed in (0, 1)
    ]
    manifests = run_jobs(jobs, Resources())
    assert [m["seed"] for m in manifests] == [0, 1, 0, 1]
    assert [m["rows"] for m in manifests] == [4, 4, 14, 14]
    for job in jobs:
        assert sorted(p.name for p in Path(job.out).iterdir()) == ["adapter", "manifest.json"]
    assert len({weights(Path(job.out)) for job in jobs}) == 4

    alone = replace(jobs[2], out=str(tmp_path / "alone"), rows=list(reversed(jobs[2].rows)))
    here(alone)
    assert weights(Path(alone.out)) == weights(Path(jobs[2].out))

    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "run").rglob("*")}
    assert run_jobs(jobs, Resources()) == manifests
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "run").rglob("*")} == before

    changed = training(world, "tune", Path(jobs[0].out), rows=[3, 5, 8, 14])
    assert committed(changed) is None
    run_jobs([changed, *jobs[1:]], Resources())
    assert committed(changed) is not None


@pytest.mark.ray
def test_the_driver_hears_how_far_jobs_are(ray_cluster, monkeypatch):
    monkeypatch.setattr(job_progress, "SECONDS", 0.02)
    heard: list[Any] = []
    news = {10: threading.Event(), 30: threading.Event()}

    def on_jobs(finished: int, running: Any) -> None:
        heard.append((finished, list(running)))
        for job in running:
            news[job.done].set()

    with JobBoard(on_jobs) as board:
        with telling(board.address(0), "bids/seed-0") as tell:
            for done, event in news.items():  # at 10 when it is first heard of: what was there before
                tell(done, 40, "steps", 0.5)
                assert event.wait(30)
        assert board.look() == (1, [])
        with pytest.raises(DataError), telling(board.address(1), "less/seed-0"):
            raise DataError("not finished")
        assert board.look() == (1, [])
        with telling(board.address(0), "bids/seed-0"):  # its process was lost before it answered: it is told again
            pass
        assert board.look() == (1, [])
    jobs = [job for _, running in heard for job in running]
    assert {(job.name, job.total, job.unit, job.loss, job.before) for job in jobs} == {
        ("bids/seed-0", 40, "steps", 0.5, 0.25)
    }
    assert [job.done for job in jobs] == sorted(job.done for job in jobs)
    assert {job.done: job.share for job in jobs} == {10: 0.25, 30: 0.75}


@pytest.mark.ray
def test_trainings_tell_their_steps_and_evaluations_their_records(world, ray_cluster, tmp_path):
    """What carry_out tells, and that workers of run_jobs get it to the driver."""
    told: list[tuple[Any, ...]] = []

    def tell(done: int, total: int, unit: str, loss: Any = None, share: Any = None) -> None:
        told.append((done, total, unit, loss, share))

    manifest = carry_out(training(world, "tune", tmp_path / "tune"), "cpu", None, 1, tell)
    assert [one[:3] for one in told] == [(n, 6, "steps") for n in range(1, 7)]
    assert told[0][3] == manifest["losses"][0]
    assert told[-1][3] == pytest.approx(np.mean(manifest["losses"]))  # of the last ten, which are all
    told.clear()
    base = EvaluationJob(world.tree, str(world.root / "test"), None, str(tmp_path / "base.json"), {})
    carry_out(base, "cpu", None, 1, tell)
    assert {one[2] for one in told} == {"records", "answers"}
    for unit in ("records", "answers"):
        assert [one[:2] for one in told if one[2] == unit][-1] == (12, 12)
    shares = [one[4] for one in told]
    assert shares == sorted(shares)
    assert shares[-1] == 1.0

    heard: list[Any] = []
    long = {"tune": {"epochs": 60, "batch_size": 4, "device_batch_size": 4}}
    job = training(world, "tune", tmp_path / "long" / "seed-0", **long)
    run_jobs([job], Resources(), on_jobs=lambda finished, running: heard.append((finished, list(running))))
    assert heard[-1] == (1, [])
    at_work = [job for _, running in heard for job in running]
    assert {(job.name, job.total, job.unit) for job in at_work} == {("long/seed-0", 360, "steps")}
    assert all(0 < job.done <= 360 for job in at_work)


@pytest.mark.ray
@pytest.mark.endurance
def test_two_ranks_train_the_objective_of_one(world, ray_cluster, tmp_path):
    # float64 and no dropout: what is left is the order of sums. 24 rows in steps of 7, so ranks are uneven.
    sections = {
        "model": {"dtype": "float64", "lora": {**LORA, "dropout": 0.0}},
        "warmup": {"batch_size": 7, "device_batch_size": 2, "epochs": 1},
    }
    one = here(training(world, "warmup", tmp_path / "one", **sections))
    (two,) = run_jobs([training(world, "warmup", tmp_path / "two", **sections)], Resources(training_workers=2))
    assert (one["ranks"], two["ranks"]) == (1, 2)
    np.testing.assert_allclose(two["losses"], one["losses"], rtol=1e-9)
    first, second = (load_checkpoint(tmp_path / name / "checkpoint-1").moments() for name in ("one", "two"))
    for name, value in first.exp_avg.items():
        torch.testing.assert_close(second.exp_avg[name], value, rtol=1e-6, atol=1e-12)


@pytest.mark.ray
@pytest.mark.endurance
def test_errors_of_the_user_arrive_as_such_from_ray_train_and_from_plain_tasks(world, ray_cluster, tmp_path):
    missing = {"model": {"base": str(tmp_path / "nowhere")}}
    with pytest.raises(ConfigError, match=r"^model\.base"):
        run_jobs([training(world, "warmup", tmp_path / "x", **missing)], Resources(training_workers=2))
    diverging = {"tune": {"learning_rate": 1e30, "warmup_ratio": 0.0}}
    with pytest.raises(DataError, match=r"seed-0: the loss is not finite at optimizer step"):
        run_jobs(
            [training(world, "tune", tmp_path / name / "seed-0", **diverging) for name in ("y", "z")],
            Resources(),
        )
    with pytest.raises(DataError, match="rows 0 to 99 are asked for, of 24"):
        here(training(world, "tune", tmp_path / "w", rows=[0, 99]))
    assert not list(tmp_path.rglob("manifest.json"))


@pytest.mark.ray
@pytest.mark.endurance
def test_a_worker_that_is_killed_is_replaced_and_its_job_ends_in_the_same_bytes(world, ray_cluster, tmp_path):
    slow = {"tune": {"epochs": 40, "batch_size": 2, "device_batch_size": 2}}
    jobs = [training(world, "tune", tmp_path / name, rows=range(8 + i), **slow) for i, name in enumerate("ab")]
    killed: list[int] = []
    ended = threading.Event()

    def kill_one() -> None:
        while not ended.wait(0.02):
            if list(tmp_path.glob(".a.*.work")):  # training has begun
                for process in psutil.Process().children(recursive=True):
                    if " ".join(process.cmdline()).startswith("ray::train_one"):
                        process.kill()
                        killed.append(process.pid)
                        return

    thread = threading.Thread(target=kill_one)
    thread.start()
    run_jobs(jobs, Resources())
    ended.set()
    thread.join()
    assert killed, "no worker was found to kill"
    for job in jobs:
        here(replace(job, out=job.out + "-undisturbed"))
        assert weights(Path(job.out)) == weights(Path(job.out + "-undisturbed"))


@pytest.mark.ray
def test_evaluation_of_the_base_and_of_a_tuned_adapter(world, ray_cluster, tmp_path):
    here(training(world, "tune", tmp_path / "tune", tune={"epochs": 10}))
    jobs = [
        EvaluationJob(world.tree, str(world.root / "test"), adapter, str(tmp_path / f"{name}.json"), {"of": name})
        for name, adapter in (("base", None), ("tuned", str(tmp_path / "tune" / "adapter")))
    ]
    base, tuned = run_jobs(jobs, Resources(workers=1))
    assert list(base["tasks"]) == ["sums", "reversals"]
    assert tuned["macro"]["loss"] < base["macro"]["loss"]
    for found in (base, tuned):
        assert {facts["answered"] for facts in found["tasks"].values()} == {6}
        assert found["macro"]["exact_match"] is not None
    assert read_sealed(tmp_path / "base.json") == base
    before = (tmp_path / "base.json").stat().st_mtime_ns
    assert run_jobs(jobs, Resources()) == [base, tuned]
    assert (tmp_path / "base.json").stat().st_mtime_ns == before


@pytest.mark.ray
def test_imported_checkpoints_take_the_place_of_a_warmup(world, warmup, tmp_path):
    trained = Path(warmup[0].out)
    imported = [
        {
            "adapter": str(trained / f"checkpoint-{k}" / "adapter"),
            "optimizer": str(trained / f"checkpoint-{k}" / "moments.safetensors"),
            "mean_learning_rate": 1e-4 / k,
        }
        for k in (1, 2)
    ]
    job = training(world, "warmup", tmp_path / "imported", warmup={"checkpoints": imported})
    (manifest,) = run_jobs([job], Resources())
    assert manifest["imported"]
    assert manifest["mean_learning_rates"] == [1e-4, 5e-5]
    for k in (1, 2):
        own, other = (load_checkpoint(folder / f"checkpoint-{k}") for folder in (trained, tmp_path / "imported"))
        for name, value in own.moments().exp_avg_sq.items():
            assert torch.equal(other.moments().exp_avg_sq[name], value)
    attach_adapter(load_base(world.config.model, "cpu"), tmp_path / "imported" / "checkpoint-2" / "adapter")

    swapped = [{**imported[0], "optimizer": str(tmp_path / "nowhere.pt")}]
    with pytest.raises(ConfigError, match=r"^warmup\.checkpoints\.0\.optimizer: .*no such file"):
        here(training(world, "warmup", tmp_path / "imported", warmup={"checkpoints": swapped}))
    assert read_manifest(tmp_path / "imported") == manifest, "an older result stands until a new one is whole"


def test_a_manifest_of_another_schema_is_refused(world, tmp_path):
    job = training(world, "tune", tmp_path / "out")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "manifest.json").write_text('{"schema": 0}')
    with pytest.raises(ArtifactMismatch, match="schema 0"):
        committed(job)


@pytest.mark.parametrize(
    ("jobs", "resources", "gpus", "expected"),
    [
        (1, Resources(), 0, Layout(1, 1, 0.0)),
        (5, Resources(), 0, Layout(1, 2, 0.0)),
        (1, Resources(training_workers=2), 0, Layout(2, 1, 0.0)),
        (1, Resources(gpus_per_worker=1, training_workers=8, workers=8), 8, Layout(8, 1, 1.0)),
        (12, Resources(gpus_per_worker=1, training_workers=8, workers=8), 8, Layout(1, 8, 1.0)),
        (3, Resources(gpus_per_worker=1, training_workers=8, workers=8), 8, Layout(8, 1, 1.0)),
        (12, Resources(gpus_per_worker=0.5, training_workers=8, workers=16), 8, Layout(1, 8, 1.0)),
        (12, Resources(gpus_per_worker=4, training_workers=8, workers=2), 8, Layout(1, 2, 4.0)),
        (1, Resources(gpus_per_worker=4, training_workers=8, workers=2), 8, Layout(1, 1, 4.0)),
    ],
)
def test_jobs_share_the_cluster_without_idle_gpus(jobs, resources, gpus, expected):
    assert plan_layout(jobs, resources, gpus) == expected
