"""How feature rows are kept: what comes back, how far off it is, and how many bytes it takes."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from influray.protocols import ArtifactMismatch, FeatureBlock
from influray.store.artifact import map_table, write_table
from influray.store.datastore import feature_table
from influray.store.encodings import as_column, decoded, encoded_rows

D = 1003  # no multiple of eight


def unit_rows(rows: int, seed: int = 0, dimension: int = D) -> np.ndarray:
    wide = np.random.default_rng(seed).standard_normal((rows, dimension))
    return (wide / np.linalg.norm(wide, axis=1, keepdims=True)).astype(np.float16)


def kept(feature_BD: np.ndarray, encoding: str, path, *bounds: int) -> np.ndarray:
    write_table(path, pa.table({name: as_column(value) for name, value in encoded_rows(feature_BD, encoding).items()}))
    return decoded(map_table(path), feature_BD.shape[1], slice(*bounds) if bounds else slice(None))


@pytest.mark.parametrize("encoding", ["float16", "int8", "sign1"])
def test_any_range_of_rows_comes_back_as_float16(tmp_path, encoding):
    feature_BD = unit_rows(9)
    whole = kept(feature_BD, encoding, tmp_path / "a")
    assert (whole.shape, whole.dtype) == ((9, D), np.float16)
    for start, stop in ((0, 9), (2, 5), (8, 9), (4, 4)):
        assert np.array_equal(kept(feature_BD, encoding, tmp_path / "b", start, stop), whole[start:stop])
    assert kept(feature_BD[:0], encoding, tmp_path / "c").shape == (0, D)


def test_float16_is_exact_and_a_view(tmp_path):
    feature_BD = unit_rows(9)
    found = kept(feature_BD, "float16", tmp_path / "a")
    assert np.array_equal(found, feature_BD)
    assert not found.flags.writeable


def test_int8_is_off_by_half_a_step_at_most(tmp_path):
    feature_BD = unit_rows(9)
    feature_BD[3] = 0
    found = kept(feature_BD, "int8", tmp_path / "a").astype(np.float64)
    largest = np.abs(feature_BD.astype(np.float64)).max(axis=1, keepdims=True)
    assert (np.abs(found - feature_BD) <= largest * (0.5 / 127 + 2**-11)).all()
    assert not found[3].any()


def test_sign1_keeps_the_signs_in_unit_rows(tmp_path):
    feature_BD = unit_rows(9)
    feature_BD[3, :5] = 0
    found = kept(feature_BD, "sign1", tmp_path / "a").astype(np.float64)
    assert np.array_equal(found > 0, feature_BD >= 0)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-3)


def test_products_of_signs_with_full_rows_are_proportional_to_cosines(tmp_path):
    dimension, rows = 4096, 400
    generator = np.random.default_rng(3)
    v_D = generator.standard_normal(dimension)
    cosine_B = generator.uniform(-0.9, 0.9, rows)
    noise_BD = generator.standard_normal((rows, dimension))
    noise_BD -= np.outer(noise_BD @ v_D, v_D) / (v_D @ v_D)
    noise_BD /= np.linalg.norm(noise_BD, axis=1, keepdims=True)
    unit_BD = cosine_B[:, None] * v_D / np.linalg.norm(v_D) + np.sqrt(1 - cosine_B**2)[:, None] * noise_BD
    found = kept(unit_BD.astype(np.float16), "sign1", tmp_path / "a").astype(np.float64) @ v_D / np.linalg.norm(v_D)
    # For normal numbers E[sign(x) y] = sqrt(2 / pi) * correlation; its error is 1 / sqrt(D).
    np.testing.assert_allclose(found, np.sqrt(2 / np.pi) * cosine_B, atol=5 / dimension**0.5)


@pytest.mark.parametrize(("encoding", "size"), [("float16", 2 * D), ("int8", D + 4), ("sign1", 126)])
def test_a_row_takes_as_many_bytes_as_it_says(encoding, size):
    plain = np.ones(50, np.float32)
    block = FeatureBlock(np.arange(50), unit_rows(50), plain, plain, plain, plain.astype(np.int32))
    assert feature_table([block], D, encoding).nbytes == 50 * (size + 8 + 4 * 4)


def test_rows_kept_in_another_way_are_refused():
    table = pa.table({"feature": pa.FixedSizeListArray.from_arrays(pa.array(np.zeros(8, np.float64)), 4)})
    with pytest.raises(ArtifactMismatch, match="features of type double, expected one of float16, int8, sign1"):
        decoded(table, 4)
