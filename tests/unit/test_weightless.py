"""A checkpoint that was trained at learning rate 0 weighs nothing, and bars no question."""

from __future__ import annotations

import numpy as np
import pytest

from influray import pipeline
from influray.config_model import WarmupConfig
from influray.model.schedule import mean_rates
from tests.unit import asked_run


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(asked_run.WEIGHTS, "gradient", (0.0, 1.0))
        yield asked_run.build_asked_run(tmp_path_factory.mktemp("weightless"))


def test_a_question_is_answered_and_gives_the_line_of_its_target(run):
    score_NT = np.concatenate([block for _, block in run.attribution().blocks()])
    texts = {"What is 50+50?": "100"}
    for prompt, answer in texts.items():
        found = run.query(prompt, answer, k=len(score_NT), tokens=True)
        order = np.argsort(-score_NT[:, 0], kind="stable")
        assert [hit.row for hit in found.helpful][:5] == order[:5].tolist()
        assert [hit.influence for hit in found.helpful][:5] == pytest.approx(score_NT[order[:5], 0], abs=1e-3)
    assert run.query(like="t-sum-50").helpful


def test_it_can_be_indexed_and_audited(run):
    assert pipeline.audit(run.directory.path)[1]["rows"] == len(run.engine)


@pytest.mark.parametrize(
    ("examples", "changes", "zeros"),
    [
        (20, {"batch_size": 128, "epochs": 4}, [1, 0, 0, 0]),
        (20, {"batch_size": 10, "epochs": 2}, [0, 0]),
        (20, {"batch_size": 128, "epochs": 1}, [1]),
        (20, {"batch_size": 128, "epochs": 4, "warmup_ratio": 0.0}, [0, 0, 0, 0]),
        (20, {"batch_size": 8, "steps": 4, "warmup_ratio": 0.0}, [0, 0]),
    ],
)
def test_mean_rates_are_those_of_the_steps_of_an_epoch(examples, changes, zeros):
    rates = mean_rates(WarmupConfig(**changes), examples)
    assert [int(rate == 0) for rate in rates] == zeros
    assert max(rates) <= WarmupConfig().learning_rate
