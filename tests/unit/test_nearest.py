"""The nearest of some rows are those that a loop finds."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from influray.ask import nearest as module
from influray.ask.nearest import NearestRows
from influray.store.vectors import PoolVectors
from tests.reference import nearest as reference
from tests.unit.synthetic_features import random_run, unit_rows, write_matrix, write_store


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    rows=st.integers(12, 80),
    dimension=st.integers(1, 20),
    encoding=st.sampled_from(["float16", "int8", "sign1"]),
    similarity=st.sampled_from(["cosine", "dot"]),
    share=st.floats(0.02, 1),
    k=st.integers(1, 12),
    step=st.integers(1, 40),
    seed=st.integers(0, 99),
)
def test_the_nearest_rows_are_those_of_a_loop(rows, dimension, encoding, similarity, share, k, step, seed):
    generator = np.random.default_rng(seed)
    with tempfile.TemporaryDirectory() as folder:
        run = random_run(
            Path(folder), rows=rows, dimension=dimension, encoding=encoding, similarity=similarity, seed=seed
        )
        vectors = PoolVectors(run)
        positions = generator.permutation(len(vectors))[: max(1, int(share * len(vectors)))]
        own = int(generator.choice(positions) if seed % 2 else generator.integers(len(vectors)))
        own_F, row_nF = vectors.take(np.array([own]))[0], vectors.take(positions)
        before, module.BLOCK_BYTES = module.BLOCK_BYTES, 4 * vectors.dimension * step
        try:
            chosen = NearestRows(vectors, positions)
            first, again = (chosen.nearest(own_F, k, without=own) for _ in range(2))
        finally:
            module.BLOCK_BYTES = before
    without = int(np.flatnonzero(positions == own)[0]) if own in positions else -1
    _, wanted = reference.nearest(row_nF, own_F, k, without)
    places, cosines = first
    assert len(places) == min(k, len(positions) - (without >= 0))
    assert without not in places.tolist()
    np.testing.assert_allclose(cosines, wanted, rtol=0, atol=1e-6)
    every = dict(zip(*reference.nearest(row_nF, own_F, len(positions)), strict=True))
    np.testing.assert_allclose(cosines, [every[place] for place in places.tolist()], rtol=0, atol=1e-6)
    assert (np.diff(cosines) <= 0).all()
    assert places.tolist() == again[0].tolist()
    assert cosines.tobytes() == again[1].tobytes(), "kept norms are those of the first pass"


def test_equal_rows_stand_in_the_order_given(tmp_path):
    from influray.store.run_directory import RunDirectory

    run = RunDirectory(tmp_path)
    generator = np.random.default_rng(1)
    feature_ND = unit_rows(30, 8, generator)[generator.integers(0, 5, 60)]
    write_store(run.features("pool", 1), np.arange(60), feature_ND, cuts=[7, 31])
    write_store(run.features("target", 1), np.arange(2), unit_rows(2, 8, generator))
    write_matrix(run, [1.0], ["a", "b"], "cosine")
    vectors, positions = PoolVectors(run), generator.permutation(60)
    own_F = vectors.take(np.array([3]))[0]
    places, _ = NearestRows(vectors, positions).nearest(own_F, 40)
    assert places.tolist() == reference.nearest(vectors.take(positions), own_F, 40)[0]
