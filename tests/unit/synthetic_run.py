"""A small run directory with a planted answer, made with the store's own functions: no model, no Ray.

Every source has rows that help one task; text of the pool tries to break the page.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from influray.config import Config, dump_config, parse_config
from influray.data.catalogue import Catalogue, build_catalogue
from influray.data.chat import ChatEncoder
from influray.data.files import resolve_files
from influray.runtime.selecting import select_and_write
from influray.store.artifact import ShardStore, write_sealed
from influray.store.attribution import attribution_table, commit_attribution
from influray.store.run_directory import RunDirectory
from tests.tiny import byte_tokenizer, chat, target_rows, write_jsonl

TASKS = {"sums": "arithmetic", "reversal": "strings", "ordering": "lists", "facts": "trivia"}  # task -> its source
HOSTILE = [
    "<script>alert(1)</script>",
    "</script></style><img src=x onerror=alert(2)>",
    "\"quoted\" & 'quoted' {{ 7 * 7 }} {% raw %}",
    "right to left: \u202etxt.exe\u202c and \u200fmarks",
    "<svg onload=alert(3)></svg><!-- ]]> <!--<script>\u2028",
]
HOSTILE_SOURCE = "<b onmouseover=alert(4)>so\u202eurce</b>"


def build_run(
    folder: Path,
    *,
    rows: int = 120,
    seed: int = 0,
    first_id: int = 0,
    selections: bool = True,
    evaluated: bool = True,
    dead_columns: int = 1,
    roles: Mapping[str, str] | None = None,
) -> RunDirectory:
    """Write a run of `rows` pool rows and 4 tasks of 3 targets; ids count from `first_id`, `roles` are of tasks."""
    run = RunDirectory(folder)
    pool = pool_rows(rows, first_id)
    tree = config_tree(folder, evaluated)
    for task, role in (roles or {}).items():
        tree["data"]["targets"][task]["role"] = role
    write_jsonl(folder / "raw" / "pool.jsonl", [*pool, {"id": "bad-1", "messages": []}, {"id": "bad-2", "text": "x"}])
    for task in TASKS:
        targets = [{**row, "id": f"{task}-{i}"} for i, row in enumerate(target_rows(task))]
        write_jsonl(folder / "raw" / f"{task}.jsonl", targets)
    config = parse_config(tree)
    run.write_config(dump_config(config))
    catalogue = _catalogue(run, config)
    _attribution(run, catalogue, rows, seed, dead_columns)
    run.record_step("data", status="done", seconds=2.4, rows=rows, tokens=123_456, started="2026-01-05T10:00:00+00:00")
    facts = {"rows": rows, "tokens": 99_000, "rows_per_second": 41.7, "tokens_per_second": 15_300.4}
    run.record_step("featurize", status="done", seconds=1804.2, started="2026-01-05T10:01:00+00:00", workers=2, **facts)
    run.record_step("select", status="done", seconds=0.31, started="2026-01-05T10:32:00+00:00", fingerprint="f" * 64)
    if selections:
        for selector in config.selectors:
            select_and_write(run.path, selector.model_dump(), "f" * 64, roles=config.data.roles)
    if evaluated:
        _evaluations(run, seed)
    return run


def config_tree(folder: Path, tune: bool = True) -> dict:
    targets = {task: {"files": f"raw/{task}.jsonl"} for task in TASKS}
    targets["sums"]["expected_sources"] = "arithmetic"
    targets["facts"]["expected_sources"] = ["trivia", "not-there"]
    budgets = {"bids": "bids", "less": "less", "random": "random"}
    tree = {
        "model": {"base": "tiny-llama"},
        "data": {"root": str(folder), "pool": "raw/pool.jsonl", "targets": targets, "max_bad_fraction": 1},
        "selectors": [{"name": name, "method": method, "budget": 0.2} for name, method in budgets.items()],
    }
    return {**tree, "tune": {"seeds": [0, 1]}} if tune else tree


def pool_rows(rows: int, first_id: int = 0) -> list[dict]:
    """Rows of the four sources in turn, and every 24th one hostile; the last is a copy of the first."""
    sources = list(TASKS.values())
    made = []
    for i in range(rows):
        number = first_id + i
        if i % 24 == 5:
            text = HOSTILE[i // 24 % len(HOSTILE)]
            made.append(chat(f"row-{number}", HOSTILE_SOURCE, text, f"An answer to {text}"))
            continue
        source = sources[i % 4]
        prompt = f"A question about {source}, number {number}." + " It goes on for a while." * (number * 7 % 40)
        made.append(chat(f"row-{number}", source, prompt, f"The answer is {number}."))
    made[-1] = {**made[0], "id": made[-1]["id"]}
    return made


def _catalogue(run: RunDirectory, config: Config) -> Catalogue:
    data = config.data
    encoder = ChatEncoder(byte_tokenizer(), "auto", data.max_tokens)
    files = [("", file) for file in resolve_files(data.pool, data.root, "data.pool")]
    return build_catalogue(run.data("pool"), "pool", files, encoder, "tiny", data, quarantine=run.quarantine_path)


def _attribution(run: RunDirectory, catalogue: Catalogue, rows: int, seed: int, dead_columns: int) -> None:
    generator = np.random.default_rng(seed)
    groups = [task for task in TASKS for _ in range(3)]
    source_N = catalogue.facts("source")["source"]
    score_NT = generator.normal(0, 1, (rows, len(groups)))
    for j, task in enumerate(groups):
        mine_N = np.array([source == TASKS[task] for source in source_N])
        score_NT[:, j] += 2.0 * mine_N
        if task == "ordering":  # hostile texts are to reach the page
            score_NT[:, j] += 6.0 * np.array([source == HOSTILE_SOURCE for source in source_N])
        if task == "reversal":  # the first row and its copy come first
            score_NT[[0, -1], j] += 8.0
        # The raw scale of the first task drowns the others: what standardising is there for.
        score_NT[:, j] *= 0.05 if task == "sums" else 0.01
    score_NT[:, len(groups) - dead_columns :] = 0.25
    store = ShardStore(run.attribution)
    for key, part in (("a", slice(0, rows // 2)), ("b", slice(rows // 2, rows))):
        store.commit(key, attribution_table(np.arange(rows)[part], score_NT[part]), {})
    ids = [f"{task}-{i % 3}" for i, task in enumerate(groups)]
    commit_attribution(store, ["a", "b"], {}, np.arange(len(groups)), ids, groups)


def _evaluations(run: RunDirectory, seed: int) -> None:
    generator = np.random.default_rng(seed + 1)
    level = {"bids": 0.52, "less": 0.77, "random": 0.61, "full": 0.53, "base": 1.2}
    for name, loss in level.items():
        for s in (0,) if name == "base" else (0, 1):
            tasks = {}
            for task in TASKS:
                found = float(loss + generator.normal(0, 0.05))
                exact = None if task == "facts" else float(np.clip(1.1 - found + generator.normal(0, 0.05), 0, 1))
                tasks[task] = {"loss": found, "exact_match": exact, "n": 40}
            write_sealed(run.evaluation(name, s), {"tasks": tasks})
