"""What the command line prints with: two consoles, and tables in which nothing is taken for markup."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

if TYPE_CHECKING:
    from influray.report.sheet import Table as SheetTable

out = Console(highlight=False, soft_wrap=True)
err = Console(stderr=True, highlight=False, soft_wrap=True)


def print_tables(tables: Sequence[SheetTable], names: Sequence[str]) -> None:
    """Print tables that fit the terminal; heads that are one of `names` may be shortened, and are explained."""
    from influray.report.terminal import fit

    fitted, short = fit(tables, out.width, names)
    for table in fitted:
        drawn = Table(box=None, pad_edge=False, header_style="bold")
        for place, (head, right) in enumerate(zip(table.columns, table.numeric, strict=True)):
            fold: dict[str, Any] = {"no_wrap": True} if place else {"overflow": "fold"}
            drawn.add_column(escape(head), justify="right" if right else "left", **fold)
        for row in table.rows:
            drawn.add_row(*(escape(cell) for cell in row))
        out.print(f"[bold]{escape(table.title)}[/bold]")
        out.print(drawn)
        out.print()
    for name, full in short.items():
        out.print(f"{escape(name)} = {escape(full)}")


def table(*columns: str, rows: Any) -> Table:
    """Return a plain table of texts."""
    drawn = Table(*(escape(column) for column in columns), box=None, pad_edge=False, header_style="bold")
    for row in rows:
        drawn.add_row(*(escape(str(cell)) for cell in row))
    return drawn
