"""A slice of real instruction data, some rows of every source, through the whole job up to the report."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

import influray
from influray.data.catalogue import Catalogue
from influray.store.artifact import read_json
from tests.integration.test_pipeline import tree
from tests.tiny import write_tiny_model

pytestmark = [pytest.mark.ray, pytest.mark.endurance]

ROWS = 12  # of each source
TARGETS = 4  # of each task


@pytest.fixture(scope="module")
def finished(real_data: Path, tmp_path_factory, ray_cluster) -> influray.pipeline.Run:
    folder = tmp_path_factory.mktemp("slice")
    write_tiny_model(folder / "model")
    (folder / "pool").mkdir()
    for source in sorted((real_data / "pool").glob("*.jsonl.gz")):
        with gzip.open(source) as lines:
            (folder / "pool" / source.name.removesuffix(".gz")).write_bytes(b"".join(next(lines) for _ in range(ROWS)))
    config = tree(folder, folder / "run")
    tasks = sorted(path.name for path in (real_data / "targets").iterdir())
    config["data"] = {
        "root": str(folder),
        "pool": "pool",
        "max_tokens": 256,
        "targets": {
            task: {"files": str(real_data / "targets" / task / "few_shot.jsonl"), "limit": TARGETS} for task in tasks
        },
    }
    config["warmup"] = {**config["warmup"], "fraction": 0.1, "batch_size": 8}
    config["features"] = {**config["features"], "rows_per_shard": 64}
    config["selectors"] = [{"name": name, "method": name, "budget": 0.1} for name in ("bids", "less", "random")]
    return influray.run(config, until="report-only")


def test_every_row_of_every_source_has_a_line_of_the_matrix(finished, real_data):
    sources = len(list((real_data / "pool").glob("*.jsonl.gz")))
    tasks = len(list((real_data / "targets").iterdir()))
    assert finished.attribution().shape == (sources * ROWS, tasks * TARGETS)
    assert (finished.directory.path / "quarantine.jsonl").read_text() == ""
    assert finished.attribution().stats.used_T.all()


def test_what_is_selected_is_the_sources_own_bytes(finished, real_data):
    for name in ("bids", "less", "random"):
        lines = (finished.directory.selection(name) / "selected.jsonl").read_bytes().splitlines()
        assert len(lines) == len(finished.attribution().rows) // 10
        for line in lines[:10]:
            record = json.loads(line)
            with gzip.open(real_data / "pool" / f"{record['source']}.jsonl.gz") as source:
                assert line + b"\n" in [next(source) for _ in range(ROWS)]


def test_bids_leaves_no_task_as_far_behind_as_less_does(finished):
    worst = {
        name: read_json(finished.directory.selection(name) / "selection.json")["aid"]["worst"]
        for name in ("bids", "less")
    }
    assert worst["bids"] >= min(worst["less"], 0.0), (
        "standardised and balanced, the worst task is not below the pool's mean"
    )


def test_trained_tokens_are_the_answers(finished):
    catalogue = Catalogue(finished.directory.data("pool"))
    from influray.model.loading import load_tokenizer

    tokenizer = load_tokenizer(finished.config.model)
    for example in catalogue.tokenized(0, len(catalogue)):
        record = json.loads(catalogue.record(example.row))
        trained = tokenizer.decode(example.input_ids_S[example.loss_mask_S].tolist()).replace("<|im_end|>", "")
        answers = "".join(m["content"] for m in record["messages"] if m["role"] == "assistant")
        if not catalogue.cell(example.row, "truncated"):
            assert trained == answers
        else:
            assert trained.strip("\ufffd") in answers


def test_the_report_is_one_page_without_links_elsewhere(finished):
    page = finished.directory.report.read_text(encoding="utf-8")
    assert "<script" not in page
    assert page.count("<html") == 1
