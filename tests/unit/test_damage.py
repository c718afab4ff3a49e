"""Every kind of file of a run, damaged in every way, asked by a reader: refused by name, or the very same answer.

The short form of jobs/damage.py: each damage of each kind of file meets one of the readers, in turn.
"""

from __future__ import annotations

import itertools
import random
import shutil

import pytest

from influray import pipeline
from influray.config import dump_config, parse_config
from influray.protocols import USER_ERRORS, ArtifactMismatch, DamagedArtifact
from influray.runs import open_run
from influray.store.artifact import write_sealed
from influray.store.run_directory import RunDirectory
from jobs.damage import DAMAGES, KINDS, content, flip, names, of_reader
from jobs.damage_readers import READERS
from tests.unit.asked_run import build_asked_run

VERBS = ("query --like", "audit", "compare", "report (what it says)", "serve", "Python", "query")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """(run directory, config, verb -> answer) of a run with everything but tuned adapters."""
    folder = tmp_path_factory.mktemp("whole")
    run = build_asked_run(folder)
    directory = run.directory
    directory.write_config(dump_config(parse_config({**run.config.model_dump(mode="json"), "tune": {}})))
    tasks = {task: {"loss": 1.0, "exact_match": 0.5, "n": 3} for task in run.config.data.targets}
    for name in ("base", "bids"):
        write_sealed(directory.evaluation(name, 0), {"tasks": tasks})
    checkpoints = [f"features/{s}/checkpoint-{k}/manifest.json" for s in ("pool", "target") for k in (1, 2)]
    for step, artifacts in {
        "warmup": ["warmup/checkpoint-1/state.json", "warmup/checkpoint-2/state.json"],
        "featurize": checkpoints,
        "score": ["attribution/manifest.json"],
        "select": [f"selection/{name}/manifest.json" for name in ("bids", "random")],
        "evaluate": [f"evaluation/{name}/seed-0.json" for name in ("base", "bids")],
    }.items():
        directory.record_step(step, status="done", artifacts=artifacts)
    pipeline.index(directory.path, "flat")
    config = shutil.copy(directory.config_path, folder / "config.yaml")
    READERS["audit"](directory.path, config)
    answers = {verb: READERS[verb](directory.path, config) for verb in VERBS}
    return directory.path, config, answers


def copied(whole, tmp_path):
    return shutil.copytree(whole[0], tmp_path / "run")


def present_kinds(run_dir):
    return {kind: min(run_dir.glob(kind)).relative_to(run_dir).as_posix() for kind in KINDS if any(run_dir.glob(kind))}


@pytest.mark.parametrize("damage", DAMAGES)
def test_no_reader_believes_a_damaged_file(whole, tmp_path, damage):
    outcomes = {}
    for number, (kind, name) in enumerate(present_kinds(whole[0]).items()):
        verb = VERBS[(number + list(DAMAGES).index(damage)) % len(VERBS)]
        run_dir = copied(whole, tmp_path / str(number))
        DAMAGES[damage](run_dir / name, number)
        outcomes[kind, verb] = of_reader(verb, run_dir, whole[1], name, whole[2][verb])
    wrong = {case: outcome for case, outcome in outcomes.items() if outcome not in ("refused", "without effect")}
    assert not wrong
    assert list(outcomes.values()).count("refused") >= 5


@pytest.mark.parametrize(
    ("kind", "verb"),
    [
        ("features/pool/checkpoint-1/part-*", "audit"),
        ("index/shard-*", "query --like"),
        ("attribution/part-*", "compare"),
        ("attribution/targets.arrow", "Python"),
        ("warmup/checkpoint-1/adapter/adapter_model.safetensors", "query"),
        ("selection/bids/selection.parquet", "compare"),
        ("selection/bids/selection.json", "serve"),
        ("evaluation/bids/seed-0.json", "compare"),
        ("data/pool/part-*", "serve"),
        ("data/pool/manifest.json", "compare"),
        ("quarantine.jsonl", "report (what it says)"),
        ("run.json", "compare"),
        ("config.yaml", "query --like"),
    ],
)
@pytest.mark.parametrize("damage", ["bit flip", "deletion"])
def test_what_is_read_is_refused_by_name(whole, tmp_path, kind, verb, damage):
    run_dir = copied(whole, tmp_path)
    name = present_kinds(run_dir)[kind]
    DAMAGES[damage](run_dir / name, 3)
    if (kind, damage) == ("config.yaml", "deletion"):
        return  # without it no run lies there, which is said
    before = content(run_dir)
    with pytest.raises(ArtifactMismatch) as caught:
        READERS[verb](run_dir, whole[1])
    assert names(caught.value, name)
    assert "makes it again" in str(caught.value)
    after = content(run_dir)
    assert {key: after[key] for key in before} == before, "a reader changes nothing"


def test_random_flips_in_random_files_are_never_answered_from(whole, tmp_path):
    generator = random.Random(7)
    files = sorted(path.relative_to(whole[0]) for path in whole[0].rglob("*") if path.is_file())
    for number in range(40):
        run_dir = copied(whole, tmp_path / str(number))
        name = generator.choice([one for one in files if (run_dir / one).stat().st_size]).as_posix()
        flip(run_dir / name, number)
        verb = VERBS[number % len(VERBS)]
        assert of_reader(verb, run_dir, whole[1], name, whole[2][verb]) in ("refused", "without effect"), (name, verb)


def test_the_index_is_built_again_where_its_files_are_damaged_and_never_from_damaged_features(whole, tmp_path):
    shard = "index/shard-*"
    for number, damage in enumerate(DAMAGES):
        run_dir = copied(whole, tmp_path / str(number))
        name = present_kinds(run_dir)[shard]
        wanted = (run_dir / name).read_bytes()
        DAMAGES[damage](run_dir / name, number)
        pipeline.index(run_dir, "flat")
        assert (run_dir / name).read_bytes() == wanted, damage
    run_dir = copied(whole, tmp_path / "features")
    flip(min(run_dir.glob("features/pool/checkpoint-2/part-*")), 0)
    shutil.rmtree(run_dir / "index")
    with pytest.raises(DamagedArtifact, match="`influray featurize` makes it again"):
        pipeline.index(run_dir, "flat")
    assert not (run_dir / "index" / "manifest.json").exists()


def test_data_is_made_again_by_the_data_step(whole, tmp_path):
    wanted = content(whole[0])
    for number, (kind, damage) in enumerate(
        itertools.product(("data/pool/part-*", "data/pool/manifest.json", "quarantine.jsonl"), DAMAGES)
    ):
        run_dir = copied(whole, tmp_path / str(number))
        DAMAGES[damage](run_dir / present_kinds(whole[0])[kind], number)
        pipeline.run(whole[1], run_dir=run_dir, until="data")
        assert content(run_dir) == wanted, (kind, damage)
        assert open_run(run_dir).config is not None


def test_what_run_json_tells_of_and_is_gone_is_named(tmp_path):
    directory = RunDirectory(tmp_path)
    write_sealed(directory.evaluation("bids", 0), {"tasks": {}})
    directory.record_step("evaluate", status="done", artifacts=["evaluation/bids/seed-0.json"])
    directory.require_made("evaluate", "select")
    directory.evaluation("bids", 0).unlink()
    with pytest.raises(USER_ERRORS, match="evaluation/bids/seed-0.json: gone, though run.json.*`influray evaluate`"):
        directory.require_made("evaluate")
    directory.record_outdated("evaluate")
    directory.require_made("evaluate")


@pytest.mark.parametrize("gone", ["report/audit.json", "report"])
def test_an_audit_that_is_gone_is_named_by_what_tells_of_it(whole, tmp_path, gone):
    run_dir, verb = copied(whole, tmp_path), "report (what it says)"
    DAMAGES["deletion"](run_dir / gone, 0)
    assert of_reader(verb, run_dir, whole[1], "report/audit.json", whole[2][verb]) == "refused"


def test_a_file_in_the_place_of_the_report_is_named(whole, tmp_path):
    run_dir = copied(whole, tmp_path)
    shutil.rmtree(run_dir / "report")
    (run_dir / "report").write_bytes(b"something")
    assert of_reader("serve", run_dir, whole[1], "report", whole[2]["serve"]) == "refused"


def test_a_folder_in_the_place_of_a_log_is_set_aside(whole, tmp_path):
    run_dir = copied(whole, tmp_path)
    shutil.rmtree(run_dir / "logs", ignore_errors=True)
    (run_dir / "logs" / "driver.log" / "something").mkdir(parents=True)
    pipeline.run(whole[1], run_dir=run_dir, until="data")
    assert (run_dir / "logs" / "driver.log").is_file()
