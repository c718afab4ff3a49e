"""A record as the model sees it: its text cut into trained and untrained pieces."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from influray.data.catalogue import Catalogue
from influray.protocols import DataError


@dataclass(frozen=True)
class View:
    """One catalogue row. `pieces` are (text, trained) in order; together they are the tokens' text."""

    row: int
    id: str
    place: str  # file:line
    source: str
    tokens: int
    loss_tokens: int
    truncated: bool
    pieces: tuple[tuple[str, bool], ...]


def view(folder: str | Path, tokenizer: Any, *, row: int | None = None, identity: str | None = None) -> View:
    """Return the view of a row, named by its number or its id.

    Raises:
        DataError: no such row.
    """
    catalogue = Catalogue(folder)
    if row is None:
        assert identity is not None
        row = catalogue.find(identity)
    elif not 0 <= row < len(catalogue):
        raise DataError(f"{catalogue.folder}: no row {row}; rows are numbered 0 to {len(catalogue) - 1}")
    (example,) = catalogue.tokenized(row, row + 1)
    facts = {name: catalogue.cell(row, name) for name in ("id", "file", "line", "source", "truncated")}
    labelled = zip(example.input_ids_S.tolist(), example.loss_mask_S.tolist(), strict=True)
    pieces = tuple(
        (tokenizer.decode([token for token, _ in run], clean_up_tokenization_spaces=False), trained)
        for trained, run in groupby(labelled, key=lambda pair: pair[1])
    )
    return View(
        row=row,
        id=facts["id"],
        place=f"{facts['file']}:{facts['line']}",
        source=facts["source"],
        tokens=example.tokens,
        loss_tokens=example.loss_tokens,
        truncated=facts["truncated"],
        pieces=pieces,
    )
