"""A hundred wrong inputs: each ends with status 2 and one message that names the dotted key, from `plan` and from `run`.

Neither starts Ray, trains or reads a row: what is wrong here can be known before.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import peft
import pytest
import yaml
from transformers import AutoModelForCausalLM

from influray.cli import main
from influray.config import parse_config
from influray.config_yaml import set_dotted
from influray.steps.preflight import Subject, check_data
from influray.store.run_directory import RunDirectory
from tests.tiny import pool_rows, target_rows, write_jsonl, write_tiny_model


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    write_tiny_model(folder / "model")
    write_jsonl(folder / "pool" / "a.jsonl", pool_rows(24))
    for task in ("sums", "reversals"):
        write_jsonl(folder / "targets" / f"{task}.jsonl", target_rows(task))
    (folder / "file").write_text("x")
    (folder / "empty").mkdir()
    (folder / "torn").mkdir()
    (folder / "torn" / "config.json").write_text("{")
    (folder / "listed").mkdir()
    (folder / "listed" / "config.json").write_text("[]")
    (folder / "strange").mkdir()
    (folder / "strange" / "config.json").write_text('{"model_type": "no_such_type"}')
    base = AutoModelForCausalLM.from_pretrained(folder / "model")
    lora = peft.LoraConfig(r=2, lora_alpha=4, target_modules=["q_proj", "v_proj"])
    peft.get_peft_model(base, lora).save_pretrained(folder / "adapter")
    return folder


def tree(world: Path, run_dir: Path) -> dict[str, Any]:
    return {
        "run_dir": str(run_dir),
        "model": {"base": str(world / "model"), "lora": {"r": 2, "alpha": 4, "targets": ["q_proj", "v_proj"]}},
        "data": {
            "root": str(world),
            "pool": ["pool"],
            "max_tokens": 128,
            "targets": {"sums": {"files": ["targets/sums.jsonl"]}, "reversals": {"files": ["targets/reversals.jsonl"]}},
        },
        "warmup": {"fraction": 0.5, "epochs": 2, "batch_size": 4, "device_batch_size": 2},
        "features": {"projector": {"name": "rademacher", "dimension": 64}},
        "selectors": [{"name": "bids", "method": "bids", "budget": 6}],
    }


def refused(capsys, monkeypatch, *arguments: str) -> str:
    monkeypatch.setattr("sys.argv", ["influray", *arguments])
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        main()
    captured = capsys.readouterr()
    assert stop.value.code == 2, captured.err
    assert "Traceback" not in captured.err
    assert captured.err.count("influray: ") == 1, "one message"
    return " ".join(captured.err.split())


ONE = [{"name": "a", "method": "bids", "budget": 6}]
CHECKPOINT = {"adapter": "W/adapter", "mean_learning_rate": 1e-5}
TABLE: list[tuple[str, Any, str]] = [  # key, value (W/ = the world's folder), what the message says
    ("modle", {}, "modle: unknown key; did you mean 'model'"),
    ("model.base", "W/nowhere", "model.base: there is no folder"),
    ("model.base", "W/file", "model.base"),
    ("model.base", "W/empty", "no config.json"),
    ("model.base", "W/torn", "model.base"),
    ("model.base", "W/listed", "model.base"),
    ("model.base", "W/strange", "model.base"),
    ("model.base", "./here", "model.base"),
    ("model.base", "~/model", "model.base"),
    ("model.base", 7, "model.base"),
    ("model.base", True, "model.base: YAML reads"),
    ("model.base", None, "model.base"),
    ("model.dtype", "fp8", "model.dtype"),
    ("model.dtype", "float16", "model.dtype: float16 cannot be trained"),
    ("model.attention", "flash", "model.attention"),
    ("model.attention", "flash_attention_2", "flash_attention_2"),
    ("model.quantization", "int8", "model.quantization"),
    ("model.quantization", "nf4", "pip install"),
    ("model.trust_remote_code", "perhaps", "model.trust_remote_code"),
    ("model.lora.r", 0, "model.lora.r"),
    ("model.lora.r", True, "model.lora.r: YAML reads"),
    ("model.lora.rank", 4, "model.lora.rank: unknown key"),
    ("model.lora.alpha", 0, "model.lora.alpha"),
    ("model.lora.alpha", float("inf"), "model.lora.alpha"),
    ("model.lora.alpha", float("nan"), "model.lora.alpha"),
    ("model.lora.dropout", 1, "model.lora.dropout"),
    ("model.lora.targets", [], "model.lora.targets"),
    ("model.lora.targets", ["nothing_proj"], "model.lora.targets: no linear layer"),
    ("tune.model.base", "W/empty", "tune.model.base: the folder"),
    ("tune.model", {"base": "W/model", "dtype": "float16"}, "tune.model.dtype: float16 cannot be trained"),
    ("tune.model", {"base": "W/model", "lora": {"targets": ["x"]}}, "tune.model.lora.targets: no linear layer"),
    ("data.pool", [], "data.pool"),
    ("data.pool", ["absent.jsonl"], "data.pool.0"),
    ("data.pool", [False], "data.pool"),
    ("data.pool", ["pool", "pool"], "data.pool.1"),
    ("data.pool", ["hf://"], "data.pool.0"),
    ("data.pool", ["hf://a/b/c/d"], "data.pool.0"),
    ("data.pool", ["s3://k:s@bucket/x"], "data.pool.0"),
    ("data.root", "W/nowhere", "data.pool.0"),
    ("data.targets", {}, "data.targets"),
    ("data.targets", {"../up": "t"}, "data.targets.../up"),
    ("data.targets", {"sums": "absent.jsonl"}, "data.targets.sums.files.0"),
    ("data.targets.sums.tests", "x", "data.targets.sums.tests: unknown key; did you mean 'test'"),
    ("data.targets.sums.test", "absent.jsonl", "data.targets.sums.test.0"),
    ("data.targets.sums.limit", 0, "data.targets.sums.limit"),
    ("data.max_tokens", 4, "data.max_tokens"),
    ("data.max_tokens", 4096, "data.max_tokens: 4096"),
    ("data.max_tokens", "many", "data.max_tokens"),
    ("data.max_tokens", True, "data.max_tokens: YAML reads"),
    ("data.max_bad_fraction", 2, "data.max_bad_fraction"),
    ("warmup.epochs", 0, "warmup.epochs"),
    ("warmup.epochs", "x", "warmup.epochs"),
    ("warmup.epochs", True, "warmup.epochs: YAML reads"),
    ("warmup.fraction", 0, "warmup.fraction"),
    ("warmup.learning_rate", 0, "warmup.learning_rate"),
    ("warmup.learning_rate", float("inf"), "warmup.learning_rate"),
    ("warmup.warmup_ratio", 1, "warmup.warmup_ratio"),
    ("warmup.schedule", "step", "warmup.schedule"),
    ("warmup.seed", -1, "warmup.seed"),
    ("warmup.checkpoints", [{**CHECKPOINT, "adapter": "W/empty"}], "warmup.checkpoints.0.adapter"),
    ("warmup.checkpoints", [{**CHECKPOINT, "optimizer": "W/none.pt"}], "warmup.checkpoints.0.optimizer"),
    ("warmup.checkpoints", [CHECKPOINT], "warmup.checkpoints.0.optimizer: not given, and features.direction: adam"),
    ("warmup.checkpoints", [{"adapter": "W/adapter"}], "warmup.checkpoints.0.mean_learning_rate"),
    ("features.featurizer", "gradients", "features.featurizer"),
    ("features.featurizer", "no.such:Class", "features.featurizer"),
    ("features.featurizer", "subprocess:Popen", "features.featurizer"),
    ("features.options", {"n": 3}, "features.options.n"),
    ("features.direction", "up", "features.direction"),
    ("features.packing", "always", "features.packing"),
    ("features.projector.name", "dense", "features.projector.name"),
    ("features.projector.dimension", 0, "features.projector.dimension"),
    ("features.projector.options", {"nonzeros": 2}, "features.projector.options.nonzeros"),
    ("features.projector", {"name": "sparse_jl", "dimension": 8, "options": {"nonzeros": 9}}, "features.projector"),
    ("features.projector", {"name": "factored", "dimension": 64}, "features.direction: 'adam'"),
    ("features.projector.seed", -1, "features.projector.seed"),
    ("features.layers", 0, "features.layers"),
    ("features.layers", 1.5, "features.layers"),
    ("features.layers", "last", "features.layers"),
    ("features.layers", 3, "features.layers: 3, and the base has 2"),
    ("attribution.scorer", "cosine", "attribution.scorer"),
    ("attribution.scorer", "functools:partial", "attribution.scorer"),
    ("attribution.scorer", "influray.selectors.top_k:TopK", "attribution.scorer"),
    ("attribution.scorer", "datainf", "attribution.scorer"),
    ("attribution.options", {"similarity": "euclid"}, "attribution.options.similarity"),
    ("attribution.weights", [1.0], "attribution.weights: 1 weights for 2 checkpoints"),
    ("attribution.weights", [1.0, -1.0], "attribution.weights.1"),
    ("attribution.weights", "rates", "attribution.weights"),
    ("selectors", [], "selectors"),
    ("selectors", ONE * 2, "the name 'a' is used more than once"),
    ("selectors.0.name", "full", "selectors.0.name"),
    ("selectors.0.name", "base", "selectors.0.name"),
    ("selectors.0.name", "a/b", "selectors.0.name"),
    ("selectors.0.name", False, "selectors.0.name: YAML reads"),
    ("selectors.0.method", "bidz", "selectors.0.method"),
    ("selectors.0.method", "os:system", "selectors.0.method"),
    ("selectors.0.method", "../evil:X", "selectors.0.method"),
    ("selectors.0.method", "influray.selectors.options:near", "selectors.0.method"),
    ("selectors.0.budget", 0, "selectors.0.budget"),
    ("selectors.0.budget", 1.5, "selectors.0.budget"),
    ("selectors.0.budget", {"tokens": 0}, "selectors.0.budget"),
    ("selectors.0.budget", {"token": 5}, "selectors.0.budget"),
    ("selectors.0.budget", {"auto": "knee"}, "selectors.0.budget.auto: must be otm; the budget that tuned loss asks"),
    ("selectors.0.budget", {"auto": "otm", "fold": 3}, "selectors.0.budget.fold: unknown key"),
    ("selectors.0.budget", {"auto": "otm", "most": 0}, "selectors.0.budget.most: must be a number of examples"),
    ("selectors.0.seed", -1, "selectors.0.seed"),
    ("selectors.0.options", {"nope": 1}, "selectors.0.options.nope"),
    ("selectors.0.options", {"normaliser": "zzz"}, "selectors.0.options"),
    ("selectors.0.options", {"task_weights": {"sum": 2}}, "selectors.0.options.task_weights.sum"),
    ("selectors.0.options", {"task_weights": {"sums": -1}}, "data.targets.sums.role: avoid, or protect"),
    ("data.targets.sums.role", "shun", "data.targets.sums.role"),
    ("selectors.0.constraints", {"exclude": "absent.txt"}, "selectors.0.constraints.exclude"),
    ("selectors.0.constraints", {"include": ["a"], "exclude": ["a"]}, "selectors.0.constraints.exclude: the id 'a'"),
    ("selectors.0.constraints", {"include": [True]}, "selectors.0.constraints.include"),
    ("selectors.0.constraints", {"sources": {"a": {"min": 4, "max": 2}}}, "selectors.0.constraints.sources.a.max"),
    ("selectors.0.constraints", {"sources": {"a": {"max": -1}}}, "selectors.0.constraints.sources.a.max"),
    ("selectors.0.constraints", {"tasks": {"sum": {"max": 2}}}, "selectors.0.constraints.tasks.sum"),
    ("selectors.0.constraints", {"near_duplicates": 1.5}, "selectors.0.constraints.near_duplicates"),
    ("tune.selections", ["nobody"], "tune.selections"),
    ("tune.selections", [], "tune.selections"),
    ("tune.seeds", [0, 0], "tune.seeds"),
    ("tune.seeds", [], "tune.seeds"),
    ("tune.seeds", [-1], "tune.seeds"),
    ("tune.batch_size", 0, "tune.batch_size"),
    ("resources.workers", 0, "resources.workers"),
    ("resources.gpus_per_worker", 1.5, "resources.gpus_per_worker"),
    ("resources.gpus_per_worker", -1, "resources.gpus_per_worker"),
    ("run_dir", "W/file", "run_dir: "),
    ("run_dir", "W/file/below", "run_dir: "),
    ("run_dir", "W", "run_dir: "),
    ("run_dir", "W/pool/run", "run_dir: "),
    ("run_dir", "/", "run_dir: / is the root"),
    ("run_dir", "s3://key:secret@bucket/x", "run_dir: "),
    ("run_dir", "ftp://host/x", "run_dir: "),
]


def in_world(value: Any, world: Path) -> Any:
    if isinstance(value, str):
        return str(world) if value == "W" else value.replace("W/", f"{world}/")
    if isinstance(value, list):
        return [in_world(one, world) for one in value]
    return {k: in_world(v, world) for k, v in value.items()} if isinstance(value, dict) else value


@pytest.mark.parametrize(("key", "value", "said"), TABLE, ids=[f"{k}={str(v)[:40]}" for k, v, _ in TABLE])
def test_a_wrong_value_is_refused_with_its_key_by_plan_and_by_run(
    world, tmp_path, capsys, monkeypatch, key, value, said
):
    config = tree(world, tmp_path / "run")
    set_dotted(config, key, in_world(value, world))
    path = tmp_path / "c.yaml"
    path.write_text(yaml.safe_dump(config))
    before = sorted(world.rglob("*"))
    assert said in refused(capsys, monkeypatch, "plan", str(path))
    assert said in refused(capsys, monkeypatch, "run", str(path))
    assert sorted(world.rglob("*")) == before, "nothing is written or deleted in what is not the run's"
    assert not (tmp_path / "run" / "data" / "pool" / "manifest.json").exists()


ROLES = [
    ("selectors.0.options", {"task_weights": {"sums": 2}}, "options.task_weights.sums: the task's role is avoid"),
    ("selectors.0.constraints", {"tasks": {"sums": {"max": 2}}}, "constraints.tasks.sums: the task's role is avoid"),
    ("data.targets.reversals.role", "protect", "no task is sought"),
    # One column, whatever the targets: nothing says what helps a task.
    (
        "features.featurizer",
        "loss",
        "data.targets.sums.role: avoid, but attribution.scorer 'el2n' makes no column of the task",
    ),
]


@pytest.mark.parametrize(("key", "value", "said"), ROLES, ids=[key for key, *_ in ROLES])
def test_what_contradicts_the_role_of_a_task_is_refused(world, tmp_path, capsys, monkeypatch, key, value, said):
    config = tree(world, tmp_path / "run")
    config["data"]["targets"]["sums"]["role"] = "avoid"
    config |= {"attribution": {"scorer": "el2n"}} if value == "loss" else {}
    set_dotted(config, key, value)
    path = tmp_path / "c.yaml"
    path.write_text(yaml.safe_dump(config))
    assert said in refused(capsys, monkeypatch, "plan", str(path))
    assert said in refused(capsys, monkeypatch, "run", str(path))


TEXTS = [
    ("a: [", "not YAML: line 1"),
    ("model:\n\tbase: x\n", "not YAML: line 2, column 1"),
    ("- 1", "a config is a mapping"),
    ("", "a config is a mapping"),
    ("--- {}\n--- {}", "not YAML"),
    ("model: {base: x}\nmodel: {base: y}", "line 2: the key 'model' is given twice, first in line 1"),
    ("model:\n  base: x\n  dtype: float32\n  base: y", "line 4: the key 'base' is given twice, first in line 2"),
    ("data:\n  targets:\n    no: t.jsonl", "line 3: the key no is read by YAML as bool"),
    ("data:\n  targets:\n    1: t.jsonl", "line 3: the key 1 is read by YAML as int"),
    ("? [a, b]\n: 1", "line 1: the key a list or mapping"),
    ("warmup: {seed: 010}", "line 1: YAML reads 010 as an octal number, 8"),
    ("warmup: {seed: 1:30}", "line 1: YAML reads 1:30 as a number to the base of 60"),
    ("a: &x [*x]", "not a config: an alias"),
    ("a: !!python/object/apply:os.system [id]", "not YAML: line 1"),
    ("x: 2024-13-45", "not YAML"),
]


@pytest.mark.parametrize(("text", "said"), TEXTS, ids=[text[:30] for text, _ in TEXTS])
def test_yaml_that_does_not_mean_what_it_looks_like_is_refused_with_its_line(tmp_path, capsys, monkeypatch, text, said):
    path = tmp_path / "c.yaml"
    path.write_text(text)
    assert said in refused(capsys, monkeypatch, "plan", str(path))


def test_anchors_are_read_and_bombs_of_them_are_not(world, tmp_path, capsys, monkeypatch):
    path = tmp_path / "c.yaml"
    text = yaml.safe_dump(tree(world, tmp_path / "run"))
    path.write_text(text.replace("warmup:", "warmup: &train") + "tune: {<<: *train}\n")
    assert "fraction: unknown key" in refused(capsys, monkeypatch, "plan", str(path)), "the anchor was read"
    doubled = "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]\n" for i in range(1, 40))
    path.write_text(doubled)
    assert "more than 1000000 values" in refused(capsys, monkeypatch, "plan", str(path))


ARGUMENTS = [
    (["plan", "C", "--set", "novalue"], "expected key=value"),
    (["plan", "C", "--set", "selectors.3.budget=1"], "selectors.3"),
    (
        ["run", "C", "--set", "selectors.0.budget=auto", "--set", "attribution.options={similarity: dot}"],
        "selectors.0.budget.auto: otm compares rows by cosines, and those of attribution.scorer inner_product with",
    ),
    (["plan", "C", "--set", "run_dir=[1"], "--set run_dir"),
    (["plan", "C", "--device", "tpu"], "--device"),
    (["plan", "C", "--workers", "0"], "--workers"),
    (["plan", "absent.yaml"], "absent.yaml"),
    (["inspect", "C"], "--row or --id"),
    (["inspect", "C", "--row", "0", "--split", "all"], "--split"),
    (["tune", "C"], "tune: required"),
    (["evaluate", "C", "--set", "tune={}"], "data.targets: no task has a `test`"),
    (["warmup", "C", "--set", "features.featurizer=ngram", "--set", "attribution.scorer=dsir"], "nothing to warm up"),
    (["query", "absent"], "no run lies here"),
    (["serve", "absent"], "no run lies here"),
    (["audit", "absent"], "no run lies here"),
    (["index", "absent"], "no run lies here"),
    (["targets", "absent", "--keep", "3"], "no run lies here"),
    (["targets", "absent", "--keep", "many"], "--keep: found 'many'"),
    (["compare", "absent"], "neither a run directory"),
    (["demo", "--size", "huge", "--run-dir", "D"], "--size"),
    (["demo", "--size", "small", "--run-dir", "F"], "run_dir: "),
]


@pytest.mark.parametrize(("arguments", "said"), ARGUMENTS, ids=[" ".join(a) for a, _ in ARGUMENTS])
def test_wrong_arguments_are_refused(world, tmp_path, capsys, monkeypatch, arguments, said):
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(tree(world, tmp_path / "run")))
    places = {"C": str(tmp_path / "c.yaml"), "D": str(tmp_path / "new"), "F": str(world / "file")}
    monkeypatch.chdir(tmp_path)
    assert said in refused(capsys, monkeypatch, *(places.get(one, one) for one in arguments))


POOL = [
    ({"selectors.0.budget": 25}, "selectors.0.budget: 25 examples of a pool of 24 usable rows"),
    ({"selectors.0.budget": 0.01}, "less than one example"),
    ({"selectors.0.budget": {"tokens": 10**6}}, "selectors.0.budget.tokens: 1000000 tokens, and the pool has"),
    ({"selectors.0.budget": {"tokens": 2}}, "selectors.0.budget.tokens: no row fits"),
    (
        {"selectors.0.budget": "auto", "selectors.0.constraints": {"include": ["sum-00"]}},
        "the id 'sum-00' is not among",
    ),
    ({"selectors.0.budget": "auto", "selectors.0.constraints": {"sources": {"sum": {"max": 3}}}}, "sources.sum"),
    ({"selectors.0.constraints": {"include": ["sum-00"]}}, "selectors.0.constraints.include: the id 'sum-00'"),
    ({"selectors.0.constraints": {"sources": {"sum": {"max": 3}}}}, "selectors.0.constraints.sources.sum"),
    ({"selectors.0.constraints": {"sources": {"sums": {"min": 20}}}}, "selectors.0.constraints.sources"),
    ({"selectors.0.constraints": {"sources": {s: {"max": 1} for s in ("sums", "talk", "reversals")}}}, "maximums"),
    ({"warmup.batch_size": 64, "warmup.epochs": 1}, "warmup.warmup_ratio: nothing is trained"),
    ({"tune": {"epochs": 1}}, "tune.warmup_ratio: 0.03 of the optimizer steps on 'bids' (6 rows"),
]


@pytest.fixture(scope="module")
def catalogued(world, tmp_path_factory) -> Path:
    """A run whose catalogues are there."""
    from influray import pipeline

    run_dir = tmp_path_factory.mktemp("runs") / "run"
    pipeline.run(tree(world, run_dir), until="data")
    return run_dir


@pytest.mark.parametrize(("changes", "said"), POOL, ids=[said[:50] for _, said in POOL])
def test_what_the_pool_cannot_give_is_refused_by_plan_and_before_features(
    catalogued, world, tmp_path, capsys, monkeypatch, changes, said
):
    path = tmp_path / "c.yaml"
    path.write_text(yaml.safe_dump(tree(world, catalogued)))
    sets = [part for key, value in changes.items() for part in ("--set", f"{key}={json.dumps(value)}")]
    for verb in ("plan", "run"):
        assert said in refused(capsys, monkeypatch, verb, str(path), *sets)
    assert not (catalogued / "warmup").exists()


def test_what_a_run_will_waste_is_said_before_it(catalogued, world):
    config = tree(world, catalogued)
    config["warmup"]["batch_size"] = 64
    config["tune"] = {"epochs": 3}
    subject = Subject(parse_config(config), RunDirectory(catalogued), ("data", "warmup", "select", "tune"))
    rates, batch = check_data(subject)
    assert "checkpoint 1 of 2 is trained at 0 and weighs nothing" in rates
    assert "tune.batch_size: 128 is more than the rows of bids (6)" in batch
