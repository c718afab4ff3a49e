"""Trainings are reported by transformers' own ways: what arrives, what it changes (nothing), and what is refused."""

from __future__ import annotations

import importlib.util
import struct
from pathlib import Path

import pytest

from influray.config import parse_config
from influray.model.finetune import finetune
from influray.model.history import Report
from influray.protocols import ConfigError
from influray.runtime.training_worker import TrainingJob
from influray.steps import checks_of_config
from influray.steps.subject import Subject
from influray.store.run_directory import RunDirectory
from tests.unit.synthetic_run import config_tree
from tests.unit.test_finetune import adapted, random_examples, settings

FACTS = {"selection/rows": 6.0, "selection/aid_macro": 0.25}


def scalars(folder: Path) -> list[tuple[int, str, float]]:
    """Return (step, name, value) of every scalar in the event files below a folder, in their order."""
    event_pb2 = pytest.importorskip("tensorboardX.proto.event_pb2")
    found = []
    for path in sorted(folder.rglob("events.out.tfevents.*")):
        data, at = path.read_bytes(), 0
        while at < len(data):  # length, its checksum, the event, its checksum
            (length,) = struct.unpack_from("<Q", data, at)
            event = event_pb2.Event.FromString(data[at + 12 : at + 12 + length])
            at += 16 + length
            values = [
                (value.tag, value.simple_value) for value in event.summary.value if value.HasField("simple_value")
            ]
            found += [(event.step, tag, number) for tag, number in values]
    return found


def test_each_step_and_the_facts_reach_tensorboard_and_the_weights_are_the_same(tmp_path):
    examples, config = random_examples(10), settings()
    silent = finetune(adapted(), examples, config, tmp_path / "silent")
    told = finetune(adapted(), examples, config, tmp_path / "told", report=Report(("tensorboard",), "a/b", FACTS))
    assert told.losses == silent.losses
    assert [one.digest for one in told.checkpoints] == [one.digest for one in silent.checkpoints]
    found = scalars(tmp_path / "told")
    assert not scalars(tmp_path / "silent")
    losses = {step: value for step, name, value in found if name == "train/loss"}
    assert list(losses) == list(range(1, told.steps + 1))
    assert list(losses.values()) == pytest.approx(list(told.losses), abs=1e-4)  # Trainer rounds them
    assert {name: value for step, name, value in found if step == 0 and "selection" in name} == {
        "train/selection/rows": 6.0,
        "train/selection/aid_macro": 0.25,
    }


def test_where_a_training_is_reported_makes_no_difference_to_what_it_is(tmp_path):
    tree = config_tree(tmp_path)
    reported = parse_config({**tree, "tune": {**tree["tune"], "report_to": ["tensorboard"]}})
    jobs = [
        TrainingJob("tune", one.model_dump(mode="json"), "pool", [], str(tmp_path / "run/tune/bids/seed-1"), 1, facts=f)
        for one, f in ((parse_config(tree), {}), (reported, FACTS))
    ]
    assert jobs[0].section == jobs[1].section
    assert jobs[0].report == Report((), "run/tune/bids/seed-1", {})
    assert jobs[1].report == Report(("tensorboard",), "run/tune/bids/seed-1", FACTS)


@pytest.mark.parametrize("section", ["warmup", "tune"])
@pytest.mark.parametrize("name", ["wandb", "mlflow", "tensorboard"])
def test_a_missing_package_is_named_with_its_command_before_anything_starts(tmp_path, monkeypatch, section, name):
    tree = {**config_tree(tmp_path), section: {"report_to": [name]}}
    subject = Subject(parse_config(tree), RunDirectory(tmp_path / "run"), ("warmup", "tune"), "tune")
    there: set[str] = set()
    monkeypatch.setattr(importlib.util, "find_spec", lambda module: module if module in there else None)
    with pytest.raises(ConfigError, match=rf"^{section}\.report_to: '{name}' needs the package .*: pip install {name}"):
        checks_of_config.packages(subject)
    there.add("tensorboardX" if name == "tensorboard" else name)
    checks_of_config.packages(subject)


def test_a_name_that_transformers_would_take_and_we_do_not_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"tune\.report_to"):
        parse_config({**config_tree(tmp_path), "tune": {"report_to": ["clearml"]}})
