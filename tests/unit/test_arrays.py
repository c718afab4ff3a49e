"""Named arrays on disk: they come back as they were, as views of the file."""

from __future__ import annotations

import numpy as np

from influray.store.arrays import add_arrays, arrays_of, arrays_table
from influray.store.artifact import map_table, write_table


def test_arrays_come_back_with_their_names_shapes_types_and_bits(tmp_path):
    generator = np.random.default_rng(0)
    arrays = {
        "a source: 'x/y'": generator.standard_normal((3, 4, 5)),
        "single": np.float32([[1.5]]),
        "whole": np.arange(6)[::2],
        "scalar": np.array(2.0),
    }
    write_table(tmp_path / "a.arrow", arrays_table(arrays))
    found = arrays_of(map_table(tmp_path / "a.arrow"))
    assert list(found) == list(arrays)
    for name, array in arrays.items():
        assert (found[name].dtype, found[name].shape) == (array.dtype, array.shape)
        assert found[name].tobytes() == array.tobytes()
        assert not found[name].flags.writeable


def test_sums_add_by_name_and_leave_their_parts_alone():
    part = {"x": np.ones(2), "y": np.ones(1)}
    total: dict[str, np.ndarray] = {}
    for one in (part, {"x": np.array([1.0, 2.0])}, {"z": np.zeros(1)}):
        add_arrays(total, one)
    assert {name: array.tolist() for name, array in total.items()} == {"x": [2, 3], "y": [1], "z": [0]}
    assert part["x"].tolist() == [1, 1]
