"""What features.store saves and costs: bytes a row, and how far scores and BIDS selections move from those of float16.

    python jobs/benchmark_stores.py [RUN]        default runs/demo, a run directory with float16 datastores

Pool rows of every checkpoint are encoded and decoded as a run would keep them; targets stay float16.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import pyarrow as pa

from influray.selectors.api import select
from influray.store.attribution import Attribution
from influray.store.datastore import Datastore
from influray.store.encodings import ENCODINGS, as_column, decoded, encoded_rows
from influray.store.run_directory import RunDirectory

BUDGETS = (0.05, 0.10, 0.15)


def rank_correlation(a_NT: np.ndarray, b_NT: np.ndarray) -> np.ndarray:
    """Return Spearman's correlation of each column, [T]; ties, which floats hardly have, by place."""
    rank_a, rank_b = (np.argsort(np.argsort(one, axis=0, kind="stable"), axis=0) for one in (a_NT, b_NT))
    return np.array([np.corrcoef(x, y)[0, 1] for x, y in zip(rank_a.T, rank_b.T, strict=True)])


def measure(run: RunDirectory) -> None:
    attribution = Attribution(run.attribution)
    weights, rows_N = attribution.manifest["weights"], attribution.rows
    exact_KND, target_KTD = [], []
    for k in range(1, len(weights) + 1):
        for split, out, rows in (("pool", exact_KND, rows_N), ("target", target_KTD, attribution.target_rows)):
            store = Datastore(run.features(split, k))
            out.append(store.features()[np.isin(store.column("row"), rows)])
    N, D = exact_KND[0].shape
    T = len(attribution.groups)
    print(f"{run.path.name}: {N} rows, {T} targets, {len(weights)} checkpoints, D = {D}\n")
    print("store    bytes a row   encode us  decode us   rank correlation     same rows in BIDS at")
    print("        and checkpoint   a row      a row      mean      lowest      5 %    10 %    15 %")
    chosen: dict[str, list[set[int]]] = {}
    reference_NT = np.zeros((N, T))
    for encoding in ENCODINGS:
        score_NT, size, seconds = np.zeros((N, T), np.float32), 0, [0.0, 0.0]
        for weight, exact_ND, target_TD in zip(weights, exact_KND, target_KTD, strict=True):
            start = time.process_time()
            table = pa.table({name: as_column(value) for name, value in encoded_rows(exact_ND, encoding).items()})
            middle = time.process_time()
            pool_ND = decoded(table, D)
            seconds = [seconds[0] + middle - start, seconds[1] + time.process_time() - middle]
            size += table.nbytes
            score_NT += np.float32(weight) * (pool_ND.astype(np.float32) @ target_TD.astype(np.float32).T)
        if encoding == "float16":
            reference_NT = score_NT
        chosen[encoding] = [set(select(score_NT, attribution.groups, b).rows.tolist()) for b in BUDGETS]
        overlap = [len(a & b) / len(b) for a, b in zip(chosen[encoding], chosen["float16"], strict=True)]
        correlation_T = rank_correlation(score_NT, reference_NT)
        per_row = [1e6 * second / N / len(weights) for second in seconds]
        print(
            f"{encoding:8s} {size / N / len(weights):12.1f} {per_row[0]:11.1f} {per_row[1]:10.1f}"
            f" {correlation_T.mean():11.5f} {correlation_T.min():11.5f}"
            + "".join(f"{100 * share:7.1f}%" for share in overlap)
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", nargs="?", default="runs/demo")
    run = RunDirectory(parser.parse_args().run)
    if not (Path(run.attribution) / "manifest.json").exists():
        print(f"{run.path}: no scored run there; `influray demo` makes one")
        return
    measure(run)


if __name__ == "__main__":
    main()
