"""Which targets stand for the others: against the plain greedy loop, on planted groups, and what is written of them."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from typer.testing import CliRunner

from influray import pipeline
from influray.cli.app import app
from influray.data.catalogue import Catalogue
from influray.protocols import ConfigError
from influray.report.targets import column_likeness, cover_targets, write_targets
from influray.store.attribution import ArrayAttribution, Attribution
from tests.reference.target_cover import cover_loop
from tests.unit.asked_run import build_asked_run
from tests.unit.synthetic_run import build_run


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Four tasks of three targets; one column carries nothing."""
    return build_run(tmp_path_factory.mktemp("targets") / "run", evaluated=False)


def matrix(run) -> np.ndarray:
    return np.concatenate([block for _, block in Attribution(run.attribution).blocks()])


@pytest.mark.parametrize("keep", [1, 4, 11])
def test_it_is_the_greedy_loop(run, keep):
    A = matrix(run)
    used = np.flatnonzero(A.std(axis=0) > 0)
    assert len(used) == 11
    found = cover_targets(run.path, keep)
    assert found.kept_K.tolist() == used[cover_loop(A[:, used], keep)].tolist()
    likeness = np.corrcoef(A[:, used].astype(np.float64), rowvar=False)
    at = {t: i for i, t in enumerate(used.tolist())}
    for t, near, like in zip(found.used_U, found.nearest_U, found.likeness_U, strict=True):
        assert like == pytest.approx(max(likeness[at[t], at[k]] for k in found.kept_K.tolist()))
        assert like == pytest.approx(likeness[at[t], at[near]])
    assert found.gain_K.sum() == pytest.approx(np.maximum(found.likeness_U, 0).sum())
    assert set(found.left_out) == set(range(12)) - set(used.tolist())


def test_copies_of_a_few_columns_are_covered_by_one_of_each():
    rng = np.random.default_rng(0)
    kinds = rng.standard_normal((500, 4))
    of = rng.integers(0, 4, 30)
    A = (kinds[:, of] * rng.uniform(0.1, 9, 30) + 3).astype(np.float32)  # scale and offset of a column do not count
    source = ArrayAttribution(A)
    likeness = column_likeness(source, source.stats)
    np.testing.assert_allclose(likeness, np.corrcoef(A.astype(np.float64), rowvar=False), atol=1e-9)
    assert {int(of[t]) for t in cover_loop(A, len(set(of.tolist())))} == set(of.tolist())
    for block_rows in (7, 500):
        other = ArrayAttribution(A, block_rows=block_rows)
        np.testing.assert_allclose(column_likeness(other, other.stats), likeness, rtol=0, atol=1e-12)


def test_records_of_the_kept_are_written_as_they_were_read(tmp_path):
    run = build_asked_run(tmp_path / "asked").directory
    found, files = pipeline.targets(run.path, 0.5, tmp_path / "kept")
    catalogue = Catalogue(run.data("target"))
    assert len(found.kept_K) == 3  # of six
    lines = [line for path in files for line in path.read_bytes().splitlines()]
    assert sorted(lines) == sorted(catalogue.record(found.rows[t]).rstrip(b"\n") for t in found.kept_K.tolist())
    for path in files:
        ids = [json.loads(line)["id"] for line in path.read_bytes().splitlines()]
        assert {found.tasks[found.ids.index(one)] for one in ids} == {path.stem}
    with pytest.raises(ConfigError, match=r"--to: .* is there already"):
        pipeline.targets(run.path, 0.5, tmp_path / "kept")
    of_tasks = replace(found, rows=[-1] * len(found.rows))
    with pytest.raises(ConfigError, match="are tasks, not targets"):
        write_targets(run.path, of_tasks, tmp_path / "others")


@pytest.mark.parametrize("keep", [0, -1, 12, 1.5, 0.0, 0.01, float("nan")])
def test_a_number_that_cannot_be_is_refused(run, keep):
    with pytest.raises(ConfigError, match="--keep: .*1 to 11 targets"):
        cover_targets(run.path, keep)


def test_the_command_prints_tables_or_json(run, tmp_path):
    done = CliRunner().invoke(app, ["targets", str(run.path), "--keep", "4"])
    assert done.exit_code == 0, done.output
    assert "Poorest stand-ins" in done.output
    assert "1 targets whose columns carry nothing were left out" in done.output
    done = CliRunner().invoke(app, ["targets", str(run.path), "--keep", "4", "--json", "-"])
    plain = json.loads(done.stdout)
    assert [one["id"] for one in plain["kept"]] == [
        cover_targets(run.path, 4).ids[t] for t in cover_targets(run.path, 4).kept_K
    ]
    assert sum(one["stands_for"] for one in plain["kept"]) == 11
    assert plain["targets"] == 12
