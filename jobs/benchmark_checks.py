"""What checking committed files costs the first question of a process, on a store made by hand.

    python jobs/benchmark_checks.py FOLDER [--rows 1000000] [--dimension 1024] [--cold]

Makes FOLDER once (2 GB for the default), then asks in fresh processes, with checks and with checks left out: the
seconds from opening the store to the first answer, and to the second; and what opening takes where only row numbers
and 20 rows are read, as with an approximate index. `--cold` drops the pages of the files first (posix_fadvise).
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np

from influray.protocols import FeatureBlock
from influray.store.artifact import ShardStore
from influray.store.attribution import attribution_table, commit_attribution
from influray.store.datastore import Datastore, feature_table, features_digest
from influray.store.run_directory import RunDirectory

PART_ROWS = 8192


def make(run: RunDirectory, rows: int, dimension: int) -> None:
    """Write features of one checkpoint and a matrix of two columns."""
    generator = np.random.default_rng(0)
    rows_of = {"pool": rows, "target": 64}
    for split, count in rows_of.items():
        store, keys = ShardStore(run.features(split, 1)), []
        for start in range(0, count, PART_ROWS):
            row_B = np.arange(start, min(start + PART_ROWS, count))
            unit_BD = generator.standard_normal((len(row_B), dimension), np.float32) / np.sqrt(dimension)
            ones_B = np.ones(len(row_B), np.float32)
            block = FeatureBlock(
                row_B, unit_BD.astype(np.float16), ones_B, ones_B, ones_B, np.ones(len(row_B), np.int32)
            )
            keys.append(f"{start:020d}")
            store.commit(keys[-1], feature_table([block], dimension), {})
        store.freeze(keys, {"dimension": dimension, "featurizer": "gradient"})
    matrix = ShardStore(run.attribution)
    matrix.commit("all", attribution_table(np.arange(rows), generator.standard_normal((rows, 2))), {})
    made = features_digest([Datastore(run.features("pool", 1)).content])
    facts = {"weights": [1.0], "scorer": "inner_product", "options": {}, "pool_features": made, "fingerprint": "m"}
    commit_attribution(matrix, ["all"], facts, [0, 1], ["a", "b"], ["x", "y"])


def ask(run: RunDirectory, checked: bool, cold: bool) -> dict[str, float]:
    """Return seconds of the clock and of CPU: row numbers and 20 rows alone, a first and a second answer over all."""
    import torch  # not part of what is measured

    from influray.store import checks
    from influray.store.exact_query import exact_query
    from influray.store.vectors import PoolVectors

    assert torch
    if not checked:
        checks._check = lambda path, sha256: path
    if cold:
        for path in run.path.rglob("*.arrow"):
            with open(path, "rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    found: dict[str, float] = {}

    @contextlib.contextmanager
    def taken(name: str) -> Iterator[None]:
        began, busy = time.perf_counter(), time.process_time()
        yield
        found[name] = time.perf_counter() - began
        found[f"{name} (CPU)"] = time.process_time() - busy

    with taken("row numbers and 20 rows"):
        vectors = PoolVectors(run)
        vectors.take(np.linspace(0, len(vectors) - 1, 20).astype(np.int64))
    query_QF = vectors.take(np.array([1]))
    for name in ("first answer", "second answer"):
        with taken(name):
            vectors = PoolVectors(run)
            vectors.check_ahead()
            exact_query(vectors, query_QF, 20)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--dimension", type=int, default=1024)
    parser.add_argument("--cold", action="store_true")
    parser.add_argument("--ask", choices=("checked", "unchecked"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    run = RunDirectory(arguments.folder)
    if arguments.ask is not None:
        print(json.dumps(ask(run, arguments.ask == "checked", arguments.cold)))
        return
    if not (run.attribution / "manifest.json").exists():
        make(run, arguments.rows, arguments.dimension)
    for how in ("unchecked", "checked"):
        command = [sys.executable, __file__, str(arguments.folder), "--ask", how, *(["--cold"] * arguments.cold)]
        answer = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        print(how, {name: round(seconds, 2) for name, seconds in json.loads(answer).items()}, flush=True)


if __name__ == "__main__":
    main()
