"""The rows of a training or an evaluation as its model sees them: the catalogue's tokens, or those of `tune.model`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

import numpy as np

from influray.config import Config
from influray.protocols import DataError, TokenizedExample
from influray.store.artifact import hash_bytes

if TYPE_CHECKING:
    from influray.data.catalogue import Catalogue


def examples_of(
    config: Config, encodes: bool, catalogue: Catalogue, ranges: Iterable[tuple[int, int]], split: str
) -> list[TokenizedExample]:
    """Return the rows of these ranges; where `encodes`, their records are read by the tokenizer of `config.model`.

    Raises:
        DataError: the model's chat template refuses a record.
    """
    if not encodes:
        return [example for start, stop in ranges for example in catalogue.tokenized(start, stop)]
    from influray.data.chat import split_encoder
    from influray.data.records import BadRow
    from influray.model.loading import load_tokenizer

    rows = [row for start, stop in ranges for row in range(start, stop)]
    found = split_encoder(config, load_tokenizer(config.model), split).encode_many(catalogue.all_parsed(rows))
    if bad := [one for one in found if isinstance(one, BadRow)]:
        raise DataError(
            f"tune.model: {len(bad)} of {len(found)} records cannot be written by its chat template, as that of "
            f"{bad[0].id!r}: {bad[0].reason}; name another tune.model.chat_template, or leave them out "
            "(selectors.constraints.exclude)"
        )
    return [
        TokenizedExample(row, one.input_ids, one.loss_mask)
        for row, one in zip(rows, found, strict=True)
        if not isinstance(one, BadRow)
    ]


def text_digest(catalogue: Catalogue, start: int, stop: int) -> str:
    """Return what identifies the records of rows [start, stop), 64 hex digits."""
    return hash_bytes(*(part for text in catalogue.values("record", start, stop) for part in (text, b"\n")))


def row_ranges(rows: np.ndarray, catalogue: Catalogue, name: str) -> Iterator[tuple[int, int]]:
    """Yield (start, stop) of the ranges of consecutive ones of ascending rows. Raises DataError where one is absent."""
    if len(rows) and not 0 <= rows[0] <= rows[-1] < len(catalogue):
        raise DataError(f"{name}: rows {rows[0]} to {rows[-1]} are asked for, of {len(catalogue)}")
    for part in np.split(rows, np.flatnonzero(np.diff(rows) != 1) + 1):
        if len(part):
            yield int(part[0]), int(part[-1]) + 1
