"""The arithmetic of a plan against what can be counted: operations by torch, bytes by the file system, tokens by rows."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from torch.profiler import ProfilerActivity, profile

from influray import pipeline
from influray.cli import main
from influray.config import parse_config
from influray.config_model import ModelConfig
from influray.features.gradient import GradientFeaturizer
from influray.features.token_budget import made_up_batch
from influray.formatting import seconds
from influray.miniature import BASE
from influray.model.loading import attach_new_adapter, load_base
from influray.model.shape import ModelShape, model_shape
from influray.planning import arithmetic, estimate
from influray.planning.arithmetic import Rates, StepCost, Workload
from influray.planning.estimate import costs, find_machine, find_split
from influray.planning.plan import make_plan
from influray.planning.price import worker_seconds
from influray.protocols import ConfigError, FeatureBlock, TokenizedExample
from influray.steps.featurize import FEATURIZE
from influray.steps.states import basis, step_states
from influray.steps.train import WARMUP
from influray.store.artifact import ShardStore
from influray.store.attribution import attribution_table, commit_attribution
from influray.store.datastore import feature_table
from influray.store.run_directory import RunDirectory
from jobs.benchmark_gradients import packed_flops
from tests.exact_runs import write_exact
from tests.tiny import pool_rows, target_rows, write_jsonl, write_tiny_model

TASKS = ("sums", "reversals")
SHAPE = ModelShape(
    hidden=4096,
    parameters=8_000_000_000,
    body=7_000_000_000,
    head=500_000_000,
    attention=131072,
    layers=32,
    lora=10**7,
    outputs=10**6,
)


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("planned")
    write_tiny_model(folder / "model")
    write_jsonl(folder / "pool" / "a.jsonl", pool_rows(30))
    for task in TASKS:
        write_jsonl(folder / "targets" / f"{task}.jsonl", target_rows(task))
    return folder


def tree(world: Path, run_dir: Path, **changes) -> dict:
    base = {
        "run_dir": str(run_dir),
        "model": {"base": str(world / "model"), "lora": {"r": 4}, "attention": "eager"},
        "data": {
            "root": str(world),
            "pool": "pool",
            "max_tokens": 128,
            "targets": {task: f"targets/{task}.jsonl" for task in TASKS},
        },
        "warmup": {"epochs": 2},
        "features": {"direction": "sgd", "projector": {"name": "sparse_jl", "dimension": 64}, "rows_per_shard": 8},
        "selectors": [{"name": "bids", "method": "bids", "budget": 6}],
        "tune": {"epochs": 1, "seeds": [0, 1]},
    }
    return {**base, **changes}


def test_operations_are_those_that_torch_counts(world):
    from torch.utils.flop_counter import FlopCounterMode

    config = parse_config(tree(world, world))
    shape = model_shape(config.model)
    assert shape is not None
    base = load_base(config.model)
    assert shape.parameters == sum(p.numel() for p in base.parameters())
    model = attach_new_adapter(base, config.model.lora, 0)
    assert shape.lora == sum(p.numel() for name, p in model.named_parameters() if ".lora_" in name)
    B, S, trained = 4, 64, 16
    mask_S = np.arange(S) >= S - trained
    work = Workload(B, B * S, B * trained, B * S * S)
    with FlopCounterMode(display=False) as counter:
        base(input_ids=torch.zeros(B, S, dtype=int), logits_to_keep=trained)
    # LoRA layers stand beside their bases here, 2 operations for each of their numbers and tokens.
    assert counter.get_total_flops() == pytest.approx(
        arithmetic.forward(shape, work) + 2 * shape.lora * B * S, rel=1e-6
    )
    packed = {torch.ops.mkldnn._linear_pointwise: packed_flops}  # private, so torch has no count of its own for it
    featurizer = GradientFeaturizer(model, config.features, None, "sgd")
    examples = [TokenizedExample(i, np.arange(5, 5 + S, dtype=np.int32), mask_S) for i in range(B)]
    with FlopCounterMode(display=False, custom_mapping=packed) as counter:
        featurizer.compute(examples)
    # The lowest layer's inputs need no gradient: that much the model has less of, of its two layers.
    estimated = arithmetic.gradient_rows(shape, work, projection=0.0)
    assert 0.9 < counter.get_total_flops() / estimated < 1.001
    featurizer.close()
    last = config.features.model_copy(update={"layers": 1})
    featurizer = GradientFeaturizer(model, last, None, "sgd")
    with FlopCounterMode(display=False, custom_mapping=packed) as counter:
        featurizer.compute(examples)
    # Below them LoRA layers stand beside their bases again.
    estimated = arithmetic.gradient_rows(shape, work, projection=0.0, share=last.layers_of(2) / 2) + shape.lora * B * S
    assert 0.85 < counter.get_total_flops() / estimated < 1.001


@pytest.mark.parametrize("encoding", ["float16", "int8", "sign1"])
def test_bytes_of_a_datastore_are_those_of_its_files(encoding, tmp_path):
    rows, shards, D = 600, 5, 96
    store, each = ShardStore(tmp_path), rows // shards
    for shard in range(shards):
        ones_B = np.ones(each, np.float32)
        unit_BD = np.full((each, D), D**-0.5, np.float16)
        block = FeatureBlock(np.arange(each) + shard * each, unit_BD, ones_B, ones_B, ones_B, np.ones(each, np.int32))
        details = {
            "failures": {},
            "seconds": 1.2345,
            "rows": each,
            "tokens": 9999,
            "dimension": D,
            "worker": "node-1-12345",
        }
        store.commit(f"{shard:064d}", feature_table([block], D, encoding), details)
    store.freeze([f"{shard:064d}" for shard in range(shards)], {"fingerprint": "f" * 64})
    found = sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file())
    assert arithmetic.datastore_bytes(rows, shards, D, encoding) == pytest.approx(found, rel=0.05)


def test_bytes_of_the_matrix_are_those_of_its_files(tmp_path):
    N, shards, T = 600, 6, 20
    store, generator = ShardStore(tmp_path), np.random.default_rng(0)
    keys = [f"{shard:064d}" for shard in range(shards)]
    for shard, key in enumerate(keys):
        rows = np.arange(N // shards) + shard * (N // shards)
        store.commit(key, attribution_table(rows, generator.normal(size=(len(rows), T))), {"seconds": 1.0, "rows": 100})
    commit_attribution(
        store, keys, {"fingerprint": "f" * 64}, range(T), [f"target-{j}" for j in range(T)], ["task"] * T
    )
    found = sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file())
    assert arithmetic.matrix_bytes(N, shards, T) == pytest.approx(found, rel=0.05)


def test_tokens_are_estimated_from_rows_and_exact_once_they_are_counted(world, tmp_path):
    config = parse_config(tree(world, tmp_path / "run"))
    directory = RunDirectory(config.run_dir)
    before = find_split(config, directory, "pool", current=False)
    pipeline.run(config, until="data")
    counted = find_split(config, directory, "pool", current=True)
    assert counted.exact
    assert not before.exact
    assert before.work.tokens == pytest.approx(counted.work.tokens, rel=0.05)
    from influray.data.catalogue import Catalogue

    lengths = [example.tokens for example in Catalogue(directory.data("pool")).tokenized(0, 30)]
    assert counted.work.tokens == sum(lengths)
    assert counted.work.squares == sum(length**2 for length in lengths)


def test_a_step_is_done_until_its_part_of_the_config_or_a_file_changes(world, tmp_path):
    config = parse_config(tree(world, tmp_path / "run", tune=None))
    directory = RunDirectory(config.run_dir)
    assert set(step_states(config, directory).values()) == {"to do", "not asked for"}
    pipeline.run(config, until="data")
    for step in (WARMUP, FEATURIZE):
        made_from = basis(step, config, directory.read()["steps"])
        directory.record_step(step.name, status="done", seconds=1.0, made_from=made_from)
    directory.record_step("score", status="failed", seconds=1.0)
    states = step_states(config, directory)
    assert states["data"] == states["warmup"] == states["featurize"] == "done"
    assert states["score"] == "to do: failed"
    changed = parse_config(tree(world, tmp_path / "run", tune=None, warmup={"epochs": 3}))
    states = step_states(changed, directory)
    assert states["data"] == "done"
    assert states["warmup"] == states["featurize"] == "to do: warmup has changed"
    pool = world / "pool" / "a.jsonl"
    text = pool.read_text()
    try:
        os.utime(pool, (4e9, 4e9))
        assert step_states(config, directory)["data"] == "done", "it holds what it held"
        pool.write_text(text + text.splitlines()[0].replace("pool-0", "other") + "\n")
        os.utime(pool, (4e9, 4e9))
        assert step_states(config, directory)["data"] == "to do: pool/a.jsonl has been written since"
    finally:
        pool.write_text(text)
        os.utime(pool, (1e9, 1e9))


def test_a_step_is_judged_by_what_it_was_made_from_and_not_by_the_last_config_of_the_run(world, tmp_path):
    config = parse_config(tree(world, tmp_path / "run", tune=None))
    directory = RunDirectory(config.run_dir)
    pipeline.run(config, until="data")
    made_from = basis(WARMUP, config, directory.read()["steps"])
    directory.record_step("warmup", status="done", seconds=1.0, made_from=made_from, fingerprint="of warmup")
    other = parse_config(tree(world, tmp_path / "run", tune=None, warmup={"epochs": 5}))
    pipeline.run(other, until="data")  # writes its config over the one that warmup was made from
    assert step_states(other, directory)["warmup"] == "to do: warmup has changed"
    assert step_states(config, directory)["warmup"] == "done"
    shorter = tree(world, tmp_path / "run", tune=None)
    shorter["data"]["max_tokens"] = 20
    pipeline.run(shorter, until="data")
    states = step_states(parse_config(shorter), directory)
    assert states["data"] == "done"
    assert states["warmup"] == "to do: data has changed"


def test_a_plan_starts_neither_ray_nor_weights_and_writes_nothing(world, tmp_path):
    for weights in (world / "model").glob("*.safetensors"):
        weights.rename(weights.with_suffix(".away"))
    code = (
        "import json, sys, influray.pipeline as p; plan = p.plan(json.loads(sys.argv[1]), device='h100', workers=64);"
        "print(json.dumps([plan.as_plain(), 'ray' in sys.modules]))"
    )
    try:
        command = [sys.executable, "-c", code, json.dumps(tree(world, tmp_path / "run"))]
        answer = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    finally:
        for weights in (world / "model").glob("*.away"):
            weights.rename(weights.with_suffix(".safetensors"))
    plan, ray_there = json.loads(answer)
    assert not ray_there
    assert not (tmp_path / "run").exists()
    assert (plan["device"], plan["workers"], plan["shards"]) == ("H100", 64, 2 * (4 + 2))
    steps = {step["name"]: step for step in plan["steps"]}
    assert steps["featurize"]["rows"] == 2 * 36
    assert steps["featurize"]["operations"] > steps["warmup"]["operations"] / 2 > 0
    assert steps["tune"]["operations"] > 0


def test_what_was_measured_stands_beside_the_estimate(world, tmp_path):
    config = parse_config(tree(world, tmp_path / "run", tune=None))
    pipeline.run(config, until="data")
    plan = pipeline.plan(config, device="h100", workers=1)
    step = plan.steps[0]
    assert step.state == "done"
    assert step.actual_seconds == RunDirectory(config.run_dir).read()["steps"]["data"]["seconds"]
    assert step.ratio == pytest.approx(step.actual_seconds / step.wall_seconds)
    assert plan.steps[1].actual_seconds is None


def test_a_base_that_is_not_on_this_machine_leaves_its_passes_unknown(world, tmp_path):
    plan = pipeline.plan(tree(world, tmp_path, model={"base": "nobody/no-such-model"}), device="a100", workers=8)
    steps = {step.name: step for step in plan.steps}
    assert steps["featurize"].operations is steps["featurize"].wall_seconds is plan.memory_per_worker is None
    assert steps["featurize"].bytes > 0
    assert plan.limit == "unknown"
    assert any("nobody/no-such-model is not on this machine" in note for note in plan.notes)


def test_more_workers_never_take_longer_and_pay_off_up_to_the_shards(world, tmp_path):
    cost = StepCost(worker_seconds=1000.0, driver_seconds=3.0, units=64)
    times = [cost.seconds(workers) for workers in (1, 2, 3, 7, 64, 1000)]
    assert times == sorted(times, reverse=True)
    assert times[0] == 1000.0
    assert times[-1] == times[-2] == 1000.0 / 64
    assert arithmetic.worth_workers(1000.0, 10.0, 64) == 64
    assert arithmetic.worth_workers(100.0, 10.0, 64) == 10
    assert arithmetic.worth_workers(1.0, 10.0, 64) == 1
    assert arithmetic.saturating_workers(1000.0, 10.0) == 100
    assert StepCost(worker_seconds=1.0, driver_seconds=9.0).seconds(4) == 9.0


def test_twice_the_pool_is_twice_the_work(world):
    config = parse_config(tree(world, world))
    machine = find_machine(config, "h100", 8)
    found = {
        split: find_split(config, RunDirectory(world), split, current=False) for split in ("pool", "target", "test")
    }
    one = costs(config, SHAPE, machine, found, 2)
    twice = {
        split: type(one_)(one_.work.times(2), one_.bytes * 2, one_.file_rows * 2, False)
        for split, one_ in found.items()
    }
    two = costs(config, SHAPE, machine, twice, 2)
    for step in ("warmup", "featurize"):
        assert two[step].operations == pytest.approx(2 * one[step].operations)
    assert two["score"].operations == pytest.approx(4 * one["score"].operations)  # twice the targets, too


def test_the_price_of_choosing_is_that_of_its_steps_and_of_a_cascade_its_share_and_the_cheap_pass(world, tmp_path):
    config = parse_config(tree(world, world, cascade={"share": 0.25}))
    plain = config.model_copy(update={"cascade": None})
    by_representation = plain.model_copy(update={"features": config.cascade.features})
    machine, place = find_machine(config, "h100", 8), RunDirectory(tmp_path)
    splits = ("pool", "target", "test")
    found = {split: find_split(plain, place, split, current=False) for split in splits}
    found["pool"] = found["pool"].times(1e5)
    shape = model_shape(config.model)
    dear = costs(plain, shape, machine, found, 2)
    cheap = costs(by_representation, shape, machine, found, 1)

    def seconds(of, *steps):
        return sum(of[step].worker_seconds + of[step].driver_seconds for step in steps)

    assert worker_seconds(plain, machine, found) == pytest.approx(
        seconds(dear, "data", "warmup", "featurize", "score", "select")
    )
    whole = seconds(dear, "warmup") + seconds(cheap, "data", "featurize", "score", "select")
    passed = 0.25 * seconds(dear, "featurize", "score", "select")
    assert worker_seconds(config, machine, found) == pytest.approx(
        whole + passed, rel=0.05
    )  # and what passed is copied
    elsewhere = plain.model_copy(update={"model": config.model.model_copy(update={"base": "no-one/no-such-model"})})
    assert worker_seconds(elsewhere, machine, found) is None


def test_representations_are_as_wide_as_the_base_and_what_is_carried_over_costs_by_its_exact_rows(world, tmp_path):
    config = parse_config(tree(world, tmp_path))
    shape, machine = model_shape(config.model), find_machine(config, "h100", 8)
    assert shape.hidden == 32

    def costs_of(rows: int, **attribution):
        targets = [("v", "sums"), ("w", "reversals")]
        exact = str(write_exact(tmp_path / str(rows), [str(i) for i in range(rows)], targets, np.eye(rows, 2)).path)
        section = {**attribution, "options": {"exact": exact}} if attribution else {}
        plain = tree(world, tmp_path / "run", attribution=section)
        config = parse_config({**plain, "features": {**plain["features"], "featurizer": "representation"}})
        found = {
            s: find_split(config, RunDirectory(tmp_path / "run"), s, current=False) for s in ("pool", "target", "test")
        }
        found["pool"] = found["pool"].times(1e4)
        return costs(config, shape, machine, found, 1), found

    plain, found = costs_of(20)
    N, T = found["pool"].work.rows, found["target"].work.rows
    assert plain["score"].operations == 2 * N * T * 32
    shards = plain["featurize"].units
    around = shards * arithmetic.FEATURE_SHARD_BYTES + 2 * arithmetic.MANIFEST_BYTES
    assert plain["featurize"].bytes == (N + T) * arithmetic.feature_row_bytes(32) + around
    for scorer, each in (("landmarks", 2 * 20 * (32 + T)), ("influence_model", 2 * 32 * T)):
        few, many = (costs_of(rows, scorer=scorer)[0]["score"] for rows in (20, 40))
        assert few.operations == N * each
        assert (many.driver_seconds - few.driver_seconds) * 4e9 == pytest.approx(10 * (40**3 - 20**3))
    few, many = (costs_of(rows, scorer="surrogate")[0]["score"] for rows in (20, 40))
    assert few.driver_seconds < many.driver_seconds


def test_a_warmup_on_cpus_is_one_process_unless_it_is_given_more(world, tmp_path):
    place = RunDirectory(tmp_path)

    def warmup_seconds(device: str, workers: int, ranks="auto") -> float:
        config = parse_config(tree(world, tmp_path, tune=None, resources={"training_workers": ranks}))
        step = next(one for one in make_plan(config, place, device, workers).steps if one.name == "warmup")
        return step.wall_seconds - Rates().startup_training

    alone, beside = warmup_seconds("cpu", 1), warmup_seconds("cpu", 4)
    assert beside == pytest.approx(alone, rel=0.5)  # each measures the machine anew
    assert warmup_seconds("h100", 4) == pytest.approx(warmup_seconds("h100", 1) / 4)
    assert warmup_seconds("h100", 4, ranks=2) == pytest.approx(warmup_seconds("h100", 1) / 2)


def test_the_command_sums_up_what_is_to_do_with_validation_apart_and_tells_a_budget_above_the_pool(
    world, tmp_path, monkeypatch, capsys
):
    selectors = [{"name": "bids", "method": "bids", "budget": 31}, {"name": "less", "method": "less", "budget": 30}]
    selectors.append({"name": "own", "method": "layers", "budget": {"auto": "otm", "most": 0.25}})
    config = tree(world, tmp_path / "run", selectors=selectors)
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    monkeypatch.setattr("sys.argv", ["influray", "plan", str(path), "--device", "h100", "--workers", "4"])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code in (0, None)
    shown = " ".join(capsys.readouterr().out.split())
    plan = make_plan(parse_config(config), RunDirectory(tmp_path / "run"), "h100", 4)
    left = sum(step.wall_seconds or 0.0 for step in plan.steps)
    assert f"time of what is to do: {seconds(left)}" in shown
    assert f"`influray validate`, on its own, {seconds(plan.validation.wall_seconds)}" in shown
    assert "selectors.0.budget: 31 examples of a pool of some 30" in shown
    assert "selectors.1.budget" not in shown
    assert "selectors.2.budget: chooses itself once there are scores; reckoned at the most that it may be" in shown
    selectors[2]["budget"] = 0.25
    numbered = make_plan(
        parse_config(tree(world, tmp_path / "run", selectors=selectors)), RunDirectory(tmp_path / "run"), "h100", 4
    )
    taken = [next(step.bytes for step in one.steps if step.name == "select") for one in (plan, numbered)]
    assert taken[0] == taken[1]


def test_wrong_machines_are_refused(world):
    config = parse_config(tree(world, world))
    with pytest.raises(ConfigError, match="--device: found 'tpu', expected cpu, h100"):
        find_machine(config, "tpu", None)
    with pytest.raises(ConfigError, match="--workers: found 0"):
        find_machine(config, "cpu", 0)


def test_the_rate_is_of_cpu_time_and_of_no_clock_on_the_wall(monkeypatch):
    """A wall clock that runs wild, as on a busy machine, changes nothing; the best of the products counts."""
    cpu = itertools.accumulate(itertools.cycle([7.0, 4.0, 1.0, 2.0]))
    wild = np.random.default_rng(0)
    monkeypatch.setattr(estimate.time, "thread_time", lambda: next(cpu))
    for clock in ("perf_counter", "monotonic", "time"):
        monkeypatch.setattr(estimate.time, clock, lambda: float(wild.uniform(0, 1e6)))
    assert estimate._probe(3) == pytest.approx(3 * 2 * 512**3 / 2.0)


def test_on_a_cpu_the_process_counts_and_beside_a_gpu_it_does_not(world, tmp_path):
    plain = tree(world, tmp_path)
    config = parse_config({**plain, "features": {**plain["features"], "token_budget": 256}})
    here, there = (make_plan(config, RunDirectory(tmp_path), device).memory_per_worker for device in ("cpu", "h100"))
    assert here is not None
    assert there is not None
    shape = model_shape(config.model)
    copies = 2 * 4 * (shape.body + shape.head)  # packed weights, once for each direction
    assert here - there == pytest.approx(arithmetic.PROCESS_BYTES + copies)


def test_what_a_token_takes_is_what_the_backward_holds_and_some_room(world):
    """Peak of what PyTorch has allocated in a batch, by its memory events; glibc's own share is the room."""
    config = parse_config(tree(world, world, model={"base": str(BASE)}))
    shape = model_shape(config.model)
    model = attach_new_adapter(load_base(config.model), config.model.lora, 0)
    rows, length = 16, 32
    featurizer = GradientFeaturizer(model, config.features, None, "sgd")
    batch = made_up_batch(rows * length, length)
    featurizer.compute(batch)  # what is made once is there
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        featurizer.compute(batch)
    events = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
    held = np.cumsum([e.nbytes() for e in sorted(events, key=lambda e: e.start_ns())])
    assert 0.5 < held.max() / (rows * length) / arithmetic.token_bytes(shape, 4) < 1


def test_a_model_too_large_for_the_device_is_said_with_the_mend(world, monkeypatch):
    config = parse_config(tree(world, world))
    monkeypatch.setattr("influray.model.shape.model_shape", lambda _: SHAPE)
    plan = make_plan(config, RunDirectory(world), "l40s", 4)
    assert plan.memory_per_worker > 32e9
    large = ModelShape(**{**{f: getattr(SHAPE, f) for f in SHAPE.__slots__}, "parameters": 70 * 10**9})
    monkeypatch.setattr("influray.model.shape.model_shape", lambda _: large)
    plan = make_plan(config, RunDirectory(world), "l40s", 4)
    assert any("device_map" in note for note in plan.notes)


def test_the_table_is_for_the_shape_of_llama_3_8b(tmp_path):
    sys.path.insert(0, str(Path(__file__).parents[2] / "jobs"))
    try:
        import plan_table
    finally:
        sys.path.pop(0)
    from transformers import LlamaConfig

    sizes = {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32}
    LlamaConfig(**sizes, num_key_value_heads=8, vocab_size=128256).save_pretrained(tmp_path)
    assert model_shape(ModelConfig(base=str(tmp_path))) == plan_table.LLAMA_3_8B
