"""Passes over ranges of rows: the same results whoever carries them out, and memory that does not grow."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from influray.protocols import ArtifactMismatch, DataError
from influray.selectors import heads
from influray.selectors.api import select
from influray.selectors.candidates import floor_at, gather, sample
from influray.store import attribution, ranges
from influray.store.attribution import ArrayAttribution, Attribution, stats_of
from influray.store.moments import column_moments
from influray.store.ranges import Threads, map_ranges
from tests.unit.test_attribution import commit, random_matrix


class Plain:
    """A source of someone else's: blocks of any size, no ranges."""

    def __init__(self, score_NT: np.ndarray, block_rows: int) -> None:
        self._array = ArrayAttribution(score_NT, block_rows)
        self.shape, self.rows = self._array.shape, self._array.rows
        self.blocks, self.gather = self._array.blocks, self._array.gather


def seen(blocks, start, mark_N, factor):
    """What a call is given, in one array."""
    row_B, block_BT = (np.concatenate(parts) for parts in zip(*blocks, strict=True))
    return start, row_B, block_BT * factor, mark_N


@pytest.mark.parametrize("kind", ["sequential", "threads", "plain"])
@pytest.mark.parametrize("rows", [1, 7, 8, 9, 100])
def test_ranges_cover_the_rows_in_order(monkeypatch, kind, rows):
    monkeypatch.setattr(ranges, "RANGE_ROWS", 8)
    monkeypatch.setattr(ranges, "SMALL", 0)
    score_NT = random_matrix(rows, 3)
    source = Plain(score_NT, 5) if kind == "plain" else ArrayAttribution(score_NT, 5)
    if kind != "plain":
        source.mapper = Threads(1 if kind == "sequential" else 3)
    mark_N = np.arange(rows) * 10
    starts, row, score, mark = zip(*map_ranges(source, seen, np.float32(2), by_row=(mark_N,)), strict=True)
    assert list(starts) == list(range(0, rows, 8))
    assert np.concatenate(row).tolist() == list(range(rows))
    assert np.array_equal(np.concatenate(score), 2 * score_NT)
    assert np.array_equal(np.concatenate(mark), mark_N)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.integers(1, 3000), st.sampled_from((256, 512, 1024)), st.integers(1, 700), st.integers(1, 3))
def test_moments_of_ranges_are_those_of_the_whole_bit_for_bit(rows, range_rows, block_rows, threads):
    score_NT = random_matrix(rows, 3, rows)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ranges, "RANGE_ROWS", range_rows)
        patch.setattr(ranges, "SMALL", 0)
        source = ArrayAttribution(score_NT, block_rows)
        source.mapper = Threads(threads)
        found, whole = source.stats, column_moments([(np.arange(rows), score_NT)])
    assert found.mean_T.tobytes() == whole.mean.tobytes()
    assert found.std_T.tobytes() == whole.std.tobytes()


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.integers(1, 60), st.integers(0, 99), st.integers(1, 9), st.integers(1, 20), st.booleans())
def test_gathered_rows_are_all_down_to_the_floor(rows, seed, range_rows, depth, few):
    rng = np.random.default_rng(seed)
    score_NT = rng.integers(0, 4, (rows, 3)).astype(np.float32) if few else random_matrix(rows, 3, seed)
    out_N, column_C = rng.random(rows) < 0.3, np.array([0, 2])
    out_N[rng.integers(rows)] = False
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ranges, "RANGE_ROWS", range_rows)
        source = ArrayAttribution(score_NT, 2)
        position_S, line_ST = sample(source, out_N, 16)
        floor = floor_at(line_ST[:, column_C], position_S, min(depth, len(line_ST)))
        position_U, line_UT, under_C = gather(source, column_C, floor, out_N, rows)
        assert gather(source, column_C, floor, out_N, len(position_U) - 1) is None
    in_N = np.zeros(rows, bool)
    for column, score, last in zip(column_C, floor.score_C, floor.last_C, strict=True):
        score_N = score_NT[:, column]
        in_N |= (score_N > score) | ((score_N == score) & (np.arange(rows) <= last))
        sample_S = sorted(zip(-score_NT[position_S, column], position_S, strict=True))
        assert (-score, last) == sample_S[min(depth, len(line_ST)) - 1], "the floor is a row of the sample, by its rank"
    assert position_U.tolist() == np.flatnonzero(in_N & ~out_N).tolist()
    assert np.array_equal(line_UT, score_NT[position_U])
    for column, score, under in zip(column_C, floor.score_C, under_C, strict=True):
        below_N = score_NT[:, column][score_NT[:, column] < score]
        assert under >= below_N.max(initial=-np.inf), "nothing under the floor is higher"
        assert under < score


def test_an_error_in_a_range_arrives_as_it_is(monkeypatch):
    monkeypatch.setattr(ranges, "RANGE_ROWS", 256)
    monkeypatch.setattr(ranges, "SMALL", 0)
    score_NT = random_matrix(3000, 2)
    score_NT[1234] = np.nan
    for source in (ArrayAttribution(score_NT), Plain(score_NT, 100)):
        with pytest.raises(DataError, match="row 1234 has no finite score"):
            stats_of(source)


@pytest.mark.parametrize("method", ["bids", "less"])
def test_a_matrix_on_disk_is_read_in_pieces_of_parts(tmp_path, monkeypatch, method):
    score_NT = random_matrix(900, 6)
    row_N = np.arange(900) * 2 + 1
    expected = select(score_NT, list("ababab"), 100, method=method)
    source = commit(tmp_path, score_NT, row_N, [1, 1, 300, 303, 800])
    monkeypatch.setattr(attribution, "READ_BYTES", 100 * 6 * 4)
    monkeypatch.setattr(ranges, "RANGE_ROWS", 256)
    monkeypatch.setattr(ranges, "SMALL", 0)
    monkeypatch.setattr(heads, "SAMPLE_ROWS", 64)
    assert max(len(block) for _, block in source.blocks()) == 100
    found = select(source, None, 100, method=method)
    assert found.rows.tolist() == row_N[expected.rows].tolist()
    np.testing.assert_allclose(found.merit, expected.merit, rtol=1e-13)


@pytest.mark.parametrize("harm", ["gone", "torn", "shorter", "other"])
def test_a_part_that_cannot_be_read_is_named(tmp_path, harm):
    score_NT = random_matrix(90, 4)
    commit(tmp_path, score_NT, np.arange(90), [40])
    source = Attribution(tmp_path)
    first = tmp_path / source.manifest["parts"][0]["file"]
    if harm == "gone":
        first.unlink()
    elif harm == "torn":
        first.write_bytes(first.read_bytes()[:200])
    elif harm == "other":
        first.write_bytes((tmp_path / source.manifest["parts"][1]["file"]).read_bytes())
    else:  # after its layout was read
        next(source.blocks())
        first.write_bytes(first.read_bytes()[:400])
    with pytest.raises(ArtifactMismatch, match=f"{first.name}: .*`influray run` makes it again"):
        list(source.blocks())


WALK = """
import sys
import influray.selectors.balanced
from influray.selectors.api import select

def peak():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM")) * 1024

before = peak()
found = select(sys.argv[1], None, 600)
print(peak() - before, len(found.rows))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_memory_does_not_grow_with_the_matrix(tmp_path):
    rows, columns = 400_000, 200
    rng = np.random.default_rng(0)
    score_NT = rng.standard_normal((rows, columns), dtype=np.float32)
    commit(tmp_path, score_NT, np.arange(rows), [100_000, 399_000])  # one part is most of the matrix
    answer = subprocess.run(
        [sys.executable, "-c", WALK, str(tmp_path)], capture_output=True, text=True, check=True
    ).stdout
    grown, chosen = map(int, answer.split())
    assert chosen == 600
    assert grown < score_NT.nbytes / 2, f"the peak grew by {grown / 2**20:.0f} MiB, mapped files included"
