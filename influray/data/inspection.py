"""A record as people read it, turn by turn, and as the model sees it: its text in trained and untrained pieces."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from influray.data.catalogue import Catalogue
from influray.protocols import DataError

if TYPE_CHECKING:
    from influray.data.chat import ChatEncoder


@dataclass(frozen=True)
class TurnView:
    """One turn: who speaks, what it says, with its reasoning and calls, and whether it is trained."""

    role: str
    says: str
    trained: bool


@dataclass(frozen=True)
class View:
    """One catalogue row. `pieces` are (text, trained) in order; together they are the tokens' text.

    `tools` are the names of the functions that it may call, `cuts` what the template leaves out or rewrites.
    """

    row: int
    id: str
    place: str  # file:line
    source: str
    tokens: int
    loss_tokens: int
    truncated: bool
    cuts: tuple[str, ...]
    tools: tuple[str, ...]
    turns: tuple[TurnView, ...]
    pieces: tuple[tuple[str, bool], ...]


def view(
    folder: str | Path,
    tokenizer: Any,
    encoder: Callable[[], ChatEncoder],
    *,
    row: int | None = None,
    identity: str | None = None,
) -> View:
    """Return the view of a row, named by its number or its id. `encoder` makes what the catalogue was encoded with.

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
    record = catalogue.parsed(row)
    labelled = zip(example.input_ids_S.tolist(), example.loss_mask_S.tolist(), strict=True)
    pieces = tuple(
        (tokenizer.decode([token for token, _ in run], clean_up_tokenization_spaces=False), trained)
        for trained, run in groupby(labelled, key=lambda pair: pair[1])
    )
    return View(
        row=row,
        id=catalogue.cell(row, "id"),
        place=f"{catalogue.cell(row, 'file')}:{catalogue.cell(row, 'line')}",
        source=record.source,
        tokens=example.tokens,
        loss_tokens=example.loss_tokens,
        truncated=catalogue.cell(row, "truncated"),
        cuts=encoder().encode(record).cuts if catalogue.cell(row, "cut_by_template") else (),
        tools=tuple(_name(tool) for tool in record.tools),
        turns=tuple(TurnView(t.role, t.text, t.role == "assistant" and t.trained) for t in record.turns),
        pieces=pieces,
    )


def _name(tool: Any) -> str:
    function = tool.get("function", tool) if isinstance(tool, dict) else tool
    return str(function.get("name", "?")) if isinstance(function, dict) else str(function)
