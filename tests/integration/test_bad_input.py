"""Wrong input ends with status 2 and one message that names place, finding and mend, before anything expensive."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from influray.cli import main
from tests.integration.test_pipeline import tree
from tests.tiny import chat, pool_rows, target_rows, write_jsonl, write_tiny_model


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    write_tiny_model(folder / "model")
    write_jsonl(folder / "pool" / "a.jsonl", pool_rows(12))
    write_jsonl(folder / "none.jsonl", [{"id": str(i), "messages": []} for i in range(3)])
    write_jsonl(folder / "silent.jsonl", [{"id": "s", "messages": [{"role": "user", "content": "Hi"}]}])
    # A prompt so long that a quarter of max_tokens of it is kept and no answer token is left.
    write_jsonl(folder / "long.jsonl", [chat("l", "s", "x" * 500, "")])
    (folder / "empty.jsonl").write_text("")
    for task in ("sums", "reversals"):
        write_jsonl(folder / "targets" / f"{task}.jsonl", target_rows(task))
    return folder


def refused(capsys, monkeypatch, tmp_path: Path, config: dict[str, Any], *arguments: str, verb: str = "select") -> str:
    path = tmp_path / "c.yaml"
    path.write_text(yaml.safe_dump(config))
    monkeypatch.setattr(sys, "argv", ["influray", verb, str(path), *arguments])
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        main()
    captured = capsys.readouterr()
    assert stop.value.code == 2, captured.err
    assert "Traceback" not in captured.err
    assert captured.err.count("influray: ") == 1, "one message"
    return captured.err


WRONG_DATA = [
    ({"pool": "absent.jsonl"}, ["data.pool", "absent.jsonl"]),
    ({"pool": "none.jsonl"}, ["data.pool", "no usable row", "none.jsonl:1"]),
    ({"pool": "empty.jsonl"}, ["data.pool", "no usable row"]),
    ({"targets": {"sums": "targets/absent.jsonl"}}, ["data.targets.sums.files", "absent.jsonl"]),
    ({"targets": {"sums": "targets/sums.jsonl", "none": "empty.jsonl"}}, ["data.targets.none.files", "no usable row"]),
    ({"targets": {"silent": "silent.jsonl"}}, ["data.targets.silent.files", "no usable row", "silent.jsonl:1"]),
    ({"targets": {"long": "long.jsonl"}}, ["data.targets.long.files", "no usable row", "long.jsonl:1"]),
    ({"root": "no/such/folder"}, ["data.pool", "no/such/folder"]),
]


@pytest.mark.parametrize(("changes", "said"), WRONG_DATA, ids=lambda v: "-".join(v) if isinstance(v, dict) else None)
def test_wrong_data_is_refused(world, tmp_path, capsys, monkeypatch, changes, said):
    config = tree(world, tmp_path / "run")
    config["data"] = {**config["data"], **changes}
    message = refused(capsys, monkeypatch, tmp_path, config)
    for text in said:
        assert text in message
    assert not list((tmp_path / "run").rglob("manifest.json")) or "targets" in changes, "nothing half-written"
    assert not (tmp_path / "run" / "data" / "target" / "manifest.json").exists()


WRONG_CONFIG = [
    (["--set", "selectors.0.budget=0"], ["selectors.0.budget", "found 0"]),
    (["--set", "selectors.0.budget=13"], ["selectors.0.budget", "13 examples", "12 usable rows"]),
    (["--set", "selectors.0.budget=0.05"], ["selectors.0.budget", "less than one example"]),
    (["--set", "selectors.0.method=bidz"], ["selectors.0.method", "bidz"]),
    (["--set", "model.base=no/such/model"], ["model.base", "no/such/model"]),
    (["--set", "model.lora.targets=[nothing_proj]"], ["model.lora.targets", "nothing_proj", "q_proj"]),
    (["--set", "model.lora.rank=4"], ["model.lora.rank", "unknown key"]),
    (["--set", "warmup.epochs=x"], ["warmup.epochs", "'x'"]),
    (["--set", "features.projector.name=dense"], ["features.projector.name", "rademacher"]),
    (["--set", "novalue"], ["novalue", "key=value"]),
    (["--address", "127.0.0.1:1"], ["--address", "127.0.0.1:1"]),
]


@pytest.mark.ray
@pytest.mark.parametrize(("arguments", "said"), WRONG_CONFIG, ids=lambda v: v[-1] if isinstance(v, list) else None)
def test_a_wrong_config_is_refused(world, tmp_path, capsys, monkeypatch, arguments, said):
    message = refused(capsys, monkeypatch, tmp_path, tree(world, tmp_path / "run"), *arguments)
    for text in said:
        assert text in message
    assert not (tmp_path / "run" / "features").exists()


@pytest.mark.ray
@pytest.mark.parametrize("options", [{"nope": 1}, {"normaliser": "zzz"}])
def test_wrong_options_of_a_selector_are_refused_before_the_work(world, tmp_path, capsys, monkeypatch, options):
    config = tree(world, tmp_path / "run")
    config["selectors"][0]["options"] = options
    message = refused(capsys, monkeypatch, tmp_path, config)
    assert "selectors.0.options" in message
    assert not (tmp_path / "run" / "data").exists()


def test_every_corrupt_file_ends_in_a_message_or_a_catalogue(real_data, world, tmp_path, capsys, monkeypatch):
    manifest = json.loads((real_data / "corrupt" / "MANIFEST.json").read_text())
    for name in sorted(manifest):
        config = tree(world, tmp_path / f"run-{name}")
        config["data"] = {**config["data"], "pool": str(real_data / "corrupt" / name)}
        message = refused(capsys, monkeypatch, tmp_path, config, "--set", "selectors.0.budget=1000000", verb="select")
        assert "selectors.0.budget" in message or name in message, "either rows were read, or the file is named"


def test_a_plugin_of_a_run_directory_is_not_imported(world, tmp_path, capsys, monkeypatch):
    run_dir = tmp_path / "run"
    config = tree(world, run_dir)
    config["selectors"][0]["method"] = "evil_module:Evil"
    run_dir.mkdir()
    (run_dir / "run.json").write_text('{"schema": 1, "steps": {}}')
    path = run_dir / "config.yaml"
    path.write_text(yaml.safe_dump(config))
    monkeypatch.setattr(sys, "argv", ["influray", "select", str(path)])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 2
    assert "--allow-plugins" in capsys.readouterr().err


def test_compare_of_nothing_says_what_it_wants(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["influray", "compare", str(tmp_path)])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 2
    assert "neither a run directory" in capsys.readouterr().err
