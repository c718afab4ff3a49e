"""The matrix on disk and in memory: what goes in comes out, and its moments are right to the last digits."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from influray.protocols import ArtifactMismatch, DamagedArtifact, DataError
from influray.store.artifact import ShardStore
from influray.store.attribution import (
    ArrayAttribution,
    Attribution,
    attribution_table,
    commit_attribution,
    stats_of,
    write_targets,
)
from influray.store.moments import column_moments, column_stats, merge, moments_of
from tests.reference import moments as reference

EPS = np.finfo(np.float64).eps


def random_matrix(n: int, t: int, seed: int = 0, dtype=np.float32) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((n, t)).astype(dtype)


def commit(folder, score_NT: np.ndarray, rows: np.ndarray, cuts: list[int]) -> Attribution:
    """Commit a matrix in shards cut at `cuts`; an empty shard leaves no file."""
    store, keys = ShardStore(folder), []
    for number, (start, stop) in enumerate(zip([0, *cuts], [*cuts, len(rows)], strict=True)):
        key = f"{number:064x}"
        table = attribution_table(rows[start:stop], score_NT[start:stop]) if stop > start else None
        store.commit(key, table, {})
        keys.append(key)
    columns = score_NT.shape[1]
    tasks = ["ab"[j % 2] for j in range(columns)]
    ids = [f"t{j}" for j in range(columns)]
    commit_attribution(store, keys, {"fingerprint": "f"}, range(10, 10 + columns), ids, tasks)
    return Attribution(folder)


@pytest.mark.parametrize(("offset", "scale"), [(0, 1), (1000, 1e-3), (-3, 1e3), (1, 1e-5)])
@pytest.mark.parametrize("rows", [1, 2, 255, 256, 257, 5000])
def test_moments_agree_with_two_passes_in_extended_precision(rows, offset, scale):
    score_NT = offset + scale * random_matrix(rows, 7, dtype=np.float64)
    found = column_moments(ArrayAttribution(score_NT).blocks())
    mean_T, std_T = reference.moments(score_NT)
    assert found.count == rows
    assert np.abs(found.mean - mean_T).max() <= EPS * np.abs(mean_T).max() + EPS * std_T.max()
    assert np.abs(found.std - std_T).max() <= 4 * EPS * std_T.max()


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.integers(1, 1500), st.lists(st.integers(1, 700), min_size=1, max_size=6), st.integers(0, 9))
def test_moments_do_not_depend_on_how_the_matrix_is_cut(rows, lengths, seed):
    score_NT = random_matrix(rows, 3, seed)
    row_N = np.arange(rows)
    blocks, start = [], 0
    while start < rows:
        stop = start + lengths[len(blocks) % len(lengths)]
        blocks.append((row_N[start:stop], score_NT[start:stop]))
        start = stop
    cut, whole = column_moments(blocks), column_moments([(row_N, score_NT)])
    for name in ("mean", "std", "peak_T"):
        assert getattr(cut, name).tobytes() == getattr(whole, name).tobytes(), "the same matrix must give the same bits"


def test_merged_moments_are_those_of_both_parts_together():
    score_NT = 5 + random_matrix(300, 4, dtype=np.float64)
    row_N = np.arange(300)
    whole = moments_of(score_NT, row_N)
    for cut in (0, 1, 100, 299, 300):
        both = merge(moments_of(score_NT[:cut], row_N[:cut]), moments_of(score_NT[cut:], row_N[cut:]))
        assert both.count == 300
        np.testing.assert_allclose(both.mean, whole.mean, rtol=4 * EPS)
        np.testing.assert_allclose(both.m2_T, whole.m2_T, rtol=16 * EPS)
        assert (both.peak_T == np.abs(score_NT).max(axis=0)).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", [0, 256, 700])
def test_one_bad_cell_takes_its_column_out_and_no_other(bad, place):
    score_NT = random_matrix(701, 4)
    clean = column_stats(column_moments(ArrayAttribution(score_NT).blocks()))
    score_NT[place, 2] = bad
    stats = column_stats(column_moments(ArrayAttribution(score_NT).blocks()))
    assert stats.used_T.tolist() == [True, True, False, True]
    assert stats.left_out() == {2: "non-finite"}
    assert stats.std_T[[0, 1, 3]].tobytes() == clean.std_T[[0, 1, 3]].tobytes()


@pytest.mark.parametrize("columns", [1, 3])
def test_a_row_without_a_finite_score_is_an_error_that_names_it(columns):
    score_NT = random_matrix(600, columns)
    score_NT[411] = np.nan
    with pytest.raises(DataError, match="row 411 has no finite score"):
        stats_of(ArrayAttribution(score_NT))


def test_columns_without_spread_are_left_out():
    rng = np.random.default_rng(1)
    noise_N = rng.standard_normal(4000)
    columns = {
        **{f"good {i}": (noise_N[::-1] + i, True) for i in range(9)},
        "constant": (np.full(4000, 0.1), False),
        "zero": (np.zeros(4000), False),
        "rounding noise on a large value": (1e4 + 1e-4 * noise_N, False),
        "just enough spread on a large value": (1e4 + 1e-2 * noise_N, True),
        "far below the median std": (1e-13 * noise_N, False),
        "small but above the floor": (1e-11 * noise_N, True),
        "one row differs": (np.eye(1, 4000, 7)[0], True),
    }
    score_NT = np.stack([column for column, _ in columns.values()], axis=1)
    stats = stats_of(ArrayAttribution(score_NT))
    assert dict(zip(columns, stats.used_T.tolist(), strict=True)) == {name: used for name, (_, used) in columns.items()}
    assert set(stats.left_out().values()) == {"constant"}


def test_a_constant_float32_column_is_left_out_whatever_its_value_and_length():
    rng = np.random.default_rng(2)
    for _ in range(30):
        score_NT = np.full((int(rng.integers(1, 3000)), 1), rng.standard_normal() * 10.0 ** rng.integers(-20, 20))
        assert not stats_of(ArrayAttribution(score_NT.astype(np.float32))).used_T.any()


def test_an_empty_stream_is_an_error():
    with pytest.raises(DataError, match="no rows"):
        column_moments(iter([]))


def test_every_form_of_a_matrix_reads_the_same(tmp_path):
    exact_NT = np.random.default_rng(3).integers(-8, 8, (37, 5)).astype(np.float32)
    mapped = np.memmap(tmp_path / "a.bin", dtype=np.float32, mode="w+", shape=exact_NT.shape)
    mapped[:] = exact_NT
    wide = np.zeros((74, 15), np.float32)
    wide[::2, ::3] = exact_NT
    forms = {
        "float16": exact_NT.astype(np.float16),
        "float64": exact_NT.astype(np.float64),
        "big endian": exact_NT.astype(">f4"),
        "int8": exact_NT.astype(np.int8),
        "column order": np.asfortranarray(exact_NT),
        "strided": wide[::2, ::3],
        "reversed twice": exact_NT[::-1].copy()[::-1],
        "list": exact_NT.tolist(),
        "memmap": mapped,
        "torch": torch.from_numpy(exact_NT).requires_grad_(),
        "torch bfloat16": torch.from_numpy(exact_NT).bfloat16(),
        "torch transposed": torch.from_numpy(np.ascontiguousarray(exact_NT.T)).T,
    }
    for name, form in forms.items():
        source = ArrayAttribution(form, block_rows=8)
        assert source.shape == (37, 5), name
        rows, blocks = zip(*source.blocks(), strict=True)
        assert np.array_equal(np.concatenate(blocks), exact_NT), name
        assert np.array_equal(np.concatenate(rows), np.arange(37)), name
        assert all(block.dtype in (np.float32, np.float64) and block.flags.c_contiguous for block in blocks), name
        picked = source.gather(np.array([30, 2, 2]))
        assert np.array_equal(picked, exact_NT[[30, 2, 2]]), name
        assert picked.dtype == blocks[0].dtype, name


def test_a_contiguous_float_array_is_not_copied():
    score_NT = random_matrix(20, 3)
    assert all(np.shares_memory(block, score_NT) for _, block in ArrayAttribution(score_NT, block_rows=6).blocks())


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        (np.zeros(5), r"shape \(5,\)"),
        (np.zeros((2, 2, 2)), r"shape \(2, 2, 2\)"),
        (np.zeros((0, 3)), "empty"),
        (np.zeros((3, 0)), "empty"),
        (np.zeros((2, 2), complex), "complex128"),
        (np.zeros((2, 2), bool), "bool"),
        (np.array([["a", "b"]]), "dtype <U1"),
        (np.array([[None, 1.0]]), "object"),
        ([[1.0, 2.0], [3.0]], "not an array of numbers"),
        (np.ma.masked_array(np.zeros((2, 2)), mask=[[True, False], [False, False]]), "masked"),
        (3.0, r"shape \(\)"),
    ],
)
def test_what_is_no_matrix_of_real_numbers_is_refused(scores, message):
    with pytest.raises(DataError, match=message):
        ArrayAttribution(scores)


def test_a_committed_matrix_comes_back_without_a_copy(tmp_path):
    score_NT = random_matrix(50, 4)
    row_N = np.flatnonzero(np.arange(80) % 8 < 5)
    source = commit(tmp_path, score_NT, row_N, [13, 13, 30])
    assert source.shape == (50, 4)
    assert source.groups == ("a", "b", "a", "b")
    assert source.target_ids == ("t0", "t1", "t2", "t3")
    assert source.target_rows.tolist() == [10, 11, 12, 13]
    assert np.array_equal(source.rows, row_N)
    rows, blocks = zip(*source.blocks(), strict=True)
    assert [len(block) for block in blocks] == [13, 17, 20]
    assert np.array_equal(np.concatenate(rows), row_N)
    assert np.concatenate(blocks).tobytes() == score_NT.tobytes()
    assert source.manifest["fingerprint"] == "f"
    assert source.manifest["targets"] == 4


def test_stored_statistics_are_those_of_the_matrix_bit_for_bit(tmp_path):
    score_NT = random_matrix(700, 4)
    score_NT[3, 1] = np.nan
    score_NT[:, 2] = 0.25
    stored = commit(tmp_path, score_NT, np.arange(700), [1, 300, 556]).stats
    fresh = stats_of(ArrayAttribution(score_NT))
    for name in ("mean_T", "std_T", "used_T"):
        assert getattr(stored, name).tobytes() == getattr(fresh, name).tobytes()
    assert stored.left_out() == {1: "non-finite", 2: "constant"}


def test_gather_returns_lines_in_the_order_asked_for(tmp_path):
    score_NT = random_matrix(50, 4)
    row_N = np.arange(50) * 3 + 1
    source = commit(tmp_path, score_NT, row_N, [7, 8, 40])
    rng = np.random.default_rng(0)
    for count in (0, 1, 2, 60):
        place = rng.integers(0, 50, count)
        assert np.array_equal(source.gather(row_N[place]), score_NT[place])
    for missing in (0, 2, 10**6, -5):
        with pytest.raises(DataError, match=f"row {missing} is not in"):
            source.gather(np.array([4, missing]))


def test_a_matrix_that_is_not_committed_is_named(tmp_path):
    with pytest.raises(ArtifactMismatch, match="influray score"):
        Attribution(tmp_path)


def test_parts_that_do_not_fit_the_targets_are_refused(tmp_path):
    score_NT = random_matrix(9, 4)
    commit(tmp_path, score_NT, np.arange(9), [4])
    stats = column_stats(moments_of(score_NT[:, :3], np.arange(9)))
    write_targets(tmp_path, range(3), list("xyz"), list("aaa"), stats)
    with pytest.raises(DamagedArtifact, match="targets.arrow: not what was committed"):
        next(Attribution(tmp_path).blocks())


def test_a_run_without_a_single_scored_row_is_an_error(tmp_path):
    store = ShardStore(tmp_path)
    store.commit("0" * 64, None, {})
    with pytest.raises(DataError, match="no rows"):
        commit_attribution(store, ["0" * 64], {}, [0], ["t"], ["a"])


def test_the_same_matrix_commits_to_the_same_bytes(tmp_path):
    score_NT = random_matrix(30, 3)
    files = []
    for name in ("one", "other"):
        commit(tmp_path / name, score_NT, np.arange(30), [10])
        files.append(sorted(path.read_bytes() for path in (tmp_path / name).glob("*.arrow")))
    assert files[0] == files[1]


def test_a_part_stores_float32_and_rows_as_given():
    table = attribution_table(np.array([4, 9]), np.array([[1.0, 2.0], [3.0, 4.0]]))
    assert table.schema == pa.schema([("row", pa.int64()), ("score", pa.list_(pa.float32(), 2))])
    assert table["score"].to_pylist() == [[1.0, 2.0], [3.0, 4.0]]
