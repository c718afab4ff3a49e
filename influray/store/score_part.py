"""One part of the attribution matrix on disk, read by offset: never mapped whole, and held open by nobody.

A map of a file far larger than memory counts against the process, and 20,000 parts cannot all stay mapped. The Arrow
file is asked once where its two columns begin; from then on rows are plain reads at an offset.

Shape suffixes: T target columns, B rows read.
"""

from __future__ import annotations

import os
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa

from influray.protocols import ArtifactMismatch
from influray.store.artifact import hash_bytes
from influray.store.checks import check_file, damage
from influray.store.mirror import present


class ScorePart:
    """`rows` lines of (row int64, score float32[T]) in one uncompressed record batch of an Arrow IPC file.

    `sha256` is that of the file, `row_sha256` that of its row numbers. The file is checked as a whole when scores are
    first read, and of the row numbers alone only they are.

    Reading raises ArtifactMismatch where the file is missing, damaged or of another form.
    """

    def __init__(self, path: Path, rows: int, width: int, sha256: str, row_sha256: str) -> None:
        self.path = path
        self.rows = rows
        self._width = width
        self._sha256, self._row_sha256 = sha256, row_sha256

    def row_numbers(self, start: int, stop: int) -> np.ndarray:
        """Return the row numbers of lines [start, stop), int64."""
        return self._rows[start:stop]

    @cached_property
    def _rows(self) -> np.ndarray:
        out_B = np.empty(self.rows, np.int64)
        self._read(out_B, self._layout[0])
        if hash_bytes(out_B.view(np.uint8).data) != self._row_sha256:
            raise damage(self.path, "not what was committed (its row numbers)")
        out_B.flags.writeable = False
        return out_B

    def scores(self, start: int, stop: int) -> np.ndarray:
        """Return lines [start, stop), [B, T] float32."""
        check_file(self.path, self._sha256)
        out_BT = np.empty((stop - start, self._width), np.float32)
        self._read(out_BT, self._layout[1] + 4 * self._width * start)
        return out_BT

    def announce(self, start: int, stop: int) -> None:
        """Have lines [start, stop) read from the disk in the background."""
        if not hasattr(os, "posix_fadvise"):
            return
        size = 4 * self._width
        with open(present(self.path), "rb", buffering=0) as file:
            os.posix_fadvise(file.fileno(), self._layout[1] + size * start, size * (stop - start), _WILLNEED)

    def _read(self, out: np.ndarray, offset: int) -> None:
        if not out.size:
            return
        view = out.reshape(-1).view(np.uint8).data
        try:
            with open(present(self.path), "rb", buffering=0) as file:
                done = 0
                while done < len(view):
                    got = os.preadv(file.fileno(), [view[done:]], offset + done)
                    if not got:
                        raise damage(self.path, f"ends {len(view) - done} bytes too early")
                    done += got
        except OSError as error:
            raise damage(self.path, f"cannot be read ({error})") from error

    @cached_property
    def _layout(self) -> tuple[int, int]:
        """Where in the file the rows and the scores begin."""
        try:
            with pa.memory_map(str(present(self.path)), "r") as source:
                whole = source.read_buffer()
                reader = pa.ipc.open_file(source)
                if reader.num_record_batches != 1:
                    raise damage(self.path, f"{reader.num_record_batches} record batches, expected one")
                batch = reader.get_batch(0)
                schema, lines = batch.schema, batch.num_rows
                width = schema.field("score").type.list_size
                row, score = batch.column("row"), batch.column("score").flatten()
                offsets = [column.buffers()[1].address - whole.address for column in (row, score)]
                ends = (offsets[0] + 8 * lines, offsets[1] + 4 * lines * width)
                size = whole.size
                right = row.type == pa.int64() and score.type == pa.float32() and row.offset == score.offset == 0
        except (OSError, pa.ArrowException, KeyError, AttributeError) as error:
            raise damage(self.path, f"not a readable Arrow file ({error})") from error
        if width != self._width:
            raise ArtifactMismatch(
                f"{self.path}: {width} columns, but targets.arrow names {self._width}; run `influray score` again"
            )
        if lines != self.rows or not right or min(offsets) < 0 or max(ends) > size:
            raise damage(
                self.path,
                f"{lines} rows of {schema.field('score').type}, but the manifest tells of {self.rows} of {width} "
                "uncompressed float32",
            )
        return offsets[0], offsets[1]


_WILLNEED = getattr(os, "POSIX_FADV_WILLNEED", 0)
