"""What the command line prints with: two consoles, and tables in which nothing is taken for markup.

Nothing that is printed steers the terminal but the consoles' own colours: see report.formatting.visible.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.markup import escape
from rich.segment import Segment
from rich.table import Table

from influray.formatting import visible

if TYPE_CHECKING:
    from influray.report.compare import Comparison
    from influray.report.sheet import Table as SheetTable


class Screen(Console):
    """A console on which characters that steer a terminal are shown, whatever they come in."""

    def print(self, *objects: Any, **options: Any) -> None:
        # Here too: of a string, rich drops some of them before it is rendered.
        super().print(*(visible(one) if isinstance(one, str) else one for one in objects), **options)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(visible(segment.text), segment.style)


out = Screen(highlight=False, soft_wrap=True)
err = Screen(stderr=True, highlight=False, soft_wrap=True)


class _Visible:
    """A stream of text on which they are shown, for all that is not printed by a console: tracebacks, other packages.

    On a terminal a carriage return stays: progress bars of other packages are drawn with it.
    """

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        if not self._stream.isatty():
            return self._stream.write(visible(text))
        return self._stream.write("\r".join(visible(part) for part in text.split("\r")))

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def guard_streams() -> None:
    """Let this process print nothing that steers a terminal; the consoles keep the streams as they were."""
    out.file, err.file = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = _Visible(sys.stdout), _Visible(sys.stderr)


def print_tables(tables: Sequence[SheetTable], names: Sequence[str]) -> None:
    """Print tables that fit the terminal; heads that are one of `names` may be shortened, and are explained."""
    from influray.report.terminal import fit

    clear = [
        replace(
            one,
            title=visible(one.title, lines=False),
            columns=tuple(visible(head, lines=False) for head in one.columns),
            rows=tuple(tuple(visible(cell, lines=False) for cell in row) for row in one.rows),
        )
        for one in tables
    ]
    fitted, short = fit(clear, out.width, [visible(name, lines=False) for name in names])
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
        drawn.add_row(*(escape(visible(str(cell), lines=False)) for cell in row))
    return drawn


def print_comparison(result: Comparison) -> None:
    """Print selections side by side."""
    from influray.report.compare_sheet import compare_sheet

    sheet = compare_sheet(result)
    print_tables(sheet.tables, [entry.label for entry in result.entries])
    for note in sheet.notes:
        out.print(escape(note))
