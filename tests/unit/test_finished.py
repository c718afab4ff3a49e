"""A run is finished as long as nothing that it read or left has changed, and any change is one too many."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from influray.config import Config, parse_config
from influray.steps import STEPS, steps_until
from influray.steps import finished as module
from influray.steps.finished import is_finished, read_digest, record_finished
from influray.store import checks
from influray.store.artifact import write_manifest
from influray.store.run_directory import RunDirectory


def config_of(world: Path, **changes) -> Config:
    tree = {
        "run_dir": str(world / "run"),
        "model": {"base": str(world / "model"), "chat_template": str(world / "template.jinja")},
        "data": {
            "root": str(world),
            "pool": [{"files": "pool", "weight_of_ids": "weights.jsonl"}],
            "targets": {"sums": {"files": "targets.jsonl", "test": "test.jsonl"}},
        },
        "warmup": {
            "checkpoints": [
                {"adapter": f"{world}/adapter", "optimizer": f"{world}/optimizer.pt", "mean_learning_rate": 1.0}
            ],
        },
        "selectors": [{"name": "bids", "method": "bids", "budget": 6, "constraints": {"exclude": "ids.txt"}}],
        "tune": {"epochs": 1},
    }
    return parse_config({**tree, **changes})


READ = (
    *("model/config.json", "model/tokenizer.json", "model/model.safetensors", "template.jinja"),
    *("pool/a.jsonl", "targets.jsonl", "test.jsonl", "weights.jsonl", "ids.txt"),
    *("adapter/adapter_config.json", "adapter/adapter_model.safetensors", "optimizer.pt"),
)
LEFT = (
    *("run/config.yaml", "run/quarantine.jsonl", "run/data/pool/manifest.json", "run/data/pool/part-0.arrow"),
    *("run/warmup/checkpoint-1/state.json", "run/features/pool/checkpoint-1/_receipts/a.json"),
    *("run/fit/part-0.arrow", "run/attribution/targets.arrow", "run/selection/bids/selected.jsonl"),
    *("run/tune/bids/seed-0/adapter/adapter_model.safetensors", "run/evaluation/bids/seed-0.json"),
    *("run/index/shard-0.faiss", "run/report/index.html"),
)


@pytest.fixture
def world(tmp_path) -> Path:
    for name in (*READ, *LEFT):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(f'{{"id": "{name}", "weight": 1}}\n')
    sha256 = checks.hash_file(tmp_path / "run/data/pool/part-0.arrow")
    size = (tmp_path / "run/data/pool/part-0.arrow").stat().st_size
    part = {"file": "part-0.arrow", "sha256": sha256, "bytes": size}
    write_manifest(tmp_path / "run/data/pool", {"parts": [part]})
    directory, config = RunDirectory(tmp_path / "run"), config_of(tmp_path)
    directory.begin()
    record_finished(directory, STEPS, read_digest(config, directory))
    return tmp_path


def finished(world: Path, until: str = "report", **changes) -> bool:
    config = config_of(world, **changes)
    checks._hashed.clear()  # as a process of its own finds it
    return is_finished(config, RunDirectory(config.run_dir), steps_until(until, config))


def test_nothing_is_to_do_for_any_of_the_steps_that_were_run(world):
    assert finished(world)
    assert finished(world, until="select")
    assert finished(world, until="report-only")


@pytest.mark.parametrize("name", [*READ, *LEFT])
@pytest.mark.parametrize("how", ["another byte, size and time as before", "gone", "a folder"])
def test_a_file_that_is_not_what_it_was_is_for_the_steps_to_judge(world, name, how):
    path = world / name
    times = path.stat()
    text = path.read_bytes()
    path.unlink()
    if how == "a folder":
        path.mkdir()
    elif how != "gone":
        path.write_bytes(text[:3] + bytes([text[3] ^ 1]) + text[4:])
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert not finished(world)


@pytest.mark.parametrize(
    "name", ["pool/b.jsonl", "model/new.json", "run/attribution/part-9.arrow", "adapter/x.json", "run/selection/.x"]
)
def test_a_file_that_has_come_is_for_the_steps_to_judge(world, name):
    (world / name).write_text("{}\n")
    assert not finished(world)


def test_another_config_other_packages_and_steps_that_were_never_run_are_to_do(world, monkeypatch):
    assert not finished(world, resources={"workers": 3})
    assert not finished(world, warmup={"epochs": 2})
    directory, config = RunDirectory(world / "run"), config_of(world)
    record_finished(directory, steps_until("select", config), read_digest(config, directory))
    assert finished(world, until="select")
    assert not finished(world)
    monkeypatch.setattr(module, "versions", lambda: {"torch": "another"})
    assert not finished(world, until="select")


def test_what_of_a_run_lies_elsewhere_is_not_known_here(world):
    config = config_of(world, model={"base": "nobody/no-such-model"})
    assert read_digest(config, RunDirectory(config.run_dir)) is None
    config = config_of(world, data={"root": str(world), "pool": "hf://nobody/rows", "targets": {"a": "targets.jsonl"}})
    assert read_digest(config, RunDirectory(config.run_dir)) is None


def test_a_record_that_is_damaged_is_none(world):
    (world / "run" / "run.json").write_text("{}")
    assert not finished(world)


def test_nothing_is_finished_where_a_manifest_is_damaged_that_no_step_of_the_run_makes(world):
    config, directory = config_of(world), RunDirectory(world / "run")
    (world / "run" / "index" / "manifest.json").write_text("")
    record_finished(directory, STEPS, read_digest(config, directory))
    assert not finished(world)


def test_a_run_that_another_driver_holds_is_not_told_to_be_finished(world):
    with RunDirectory(world / "run").hold():
        assert not finished(world)
