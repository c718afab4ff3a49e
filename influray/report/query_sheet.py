"""The answer to a query, and shots, as tables for a terminal: one line a row, its text shortened to what fits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.cells import cell_len, set_cell_size

from influray import formatting
from influray.evaluation.harm import NO_HARM
from influray.report.sheet import Table

COLUMNS = ("", "influence", "z", "norm", "id", "source", "in", "text")
WIDE = 110  # cells; a narrower terminal has shorter names, and no norms
MOST = {"id": 28, "source": 18, "in": 18}  # cells
NARROW = {"id": 20, "source": 10, "in": 8}
LEAST_TEXT, GAP = 14, 2


def query_tables(answer: Mapping[str, Any], width: int) -> list[Table]:
    """Return the tables of an answer (QueryAnswer.as_plain) for a terminal of `width` cells."""
    tables = [
        _rows_table(title, answer[side], width)
        for side, title in (("helpful", "rows that help most"), ("harmful", "rows that harm most"))
        if answer[side]
    ]
    if answer["tokens"] is not None:
        lines = [
            (str(place), formatting.percent(one["share"]), formatting.signed(one["influence"], 4), repr(one["text"]))
            for place, one in enumerate(answer["tokens"], start=1)
        ]
        shown = tuple((*line[:3], short(line[3], max(LEAST_TEXT, width - 30))) for line in lines)
        title = "tokens of the answer: their parts of the mean influence on the helpful rows"
        tables.append(Table(title, ("", "share", "influence", "token"), shown))
    return tables


def shots_table(shots: Mapping[str, Any], width: int) -> Table:
    """Return the table of shots (Shots.as_plain), in the order of the prompt, the nearest to the question last."""
    most = MOST if width >= WIDE else NARROW
    lines = [
        (
            str(shot["rank"]),
            formatting.signed(shot["influence"], 4),
            formatting.signed(shot["z"]),
            short(shot["id"], most["id"]),
            short(shot["source"], most["source"]),
        )
        for shot in shots["shots"]
    ]
    title = f"shots for {formatting.visible(shots['asked'])} by {shots['method']}, in the order of the prompt"
    return with_texts(title, ("chosen", "influence", "z", "id", "source", "text"), lines, shots["shots"], width)


def query_note(answer: Mapping[str, Any]) -> str:
    """Return a line on the query as a whole."""
    found = [
        f"{formatting.visible(answer['asked'])}:",
        f"influence over the pool {formatting.number(answer['mean'], 4)} +- {formatting.number(answer['std'], 4)}",
    ]
    facts = [f"{name} {formatting.number(answer[key], 3)}" for name, key in _FACTS if answer[key] is not None]
    if not answer["harmful"]:
        facts.append(NO_HARM[0].lower() + NO_HARM[1:-1])
    if answer["truncated"]:
        facts.append("cut to data.max_tokens")
    if not answer["exact"]:
        facts.append("approximate: rows may be missing, mean and std are estimates")
    return " ".join(found) + "".join(f"; {fact}" for fact in facts) + f"; {formatting.seconds(answer['seconds'])}"


_FACTS = (("loss", "loss"), ("gradient norm", "grad_norm"))


def _rows_table(title: str, hits: Sequence[Mapping[str, Any]], width: int) -> Table:
    most = MOST if width >= WIDE else NARROW
    lines = [
        (
            str(rank),
            formatting.signed(hit["influence"], 4),
            formatting.signed(hit["z"]),
            *([formatting.number(hit["norm"])] if width >= WIDE else []),
            short(hit["id"], most["id"]),
            short(hit["source"], most["source"]),
            short(" ".join(hit["selections"]), most["in"]),
        )
        for rank, hit in enumerate(hits, start=1)
    ]
    columns = tuple(name for name in COLUMNS if name != "norm" or width >= WIDE)
    return with_texts(title, columns, lines, hits, width)


def with_texts(
    title: str,
    columns: tuple[str, ...],
    lines: Sequence[tuple[str, ...]],
    rows: Sequence[Mapping[str, Any]],
    width: int,
) -> Table:
    """Return a table whose last column is the text of each row, cut to the room that the others leave."""
    used = sum(max(map(cell_len, column)) + GAP for column in zip(columns[:-1], *lines, strict=True))
    room = max(LEAST_TEXT, width - used)
    texts = [short(row["text"], room) for row in rows]
    return Table(title, columns, tuple((*line, text) for line, text in zip(lines, texts, strict=True)))


def short(text: str, most: int) -> str:
    """Return one line of at most `most` cells, in which nothing steers a terminal."""
    # Cut before it is made visible, so that a huge text costs nothing.
    plain = formatting.visible(" ".join(text[: 8 * most].split()))
    return plain if cell_len(plain) <= most else set_cell_size(plain, most - 3) + "..."
