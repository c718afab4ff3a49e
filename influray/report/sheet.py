"""Tables and figures under headings: a terminal, one HTML file or one SVG can show the same sheet.

The files need no network and run no script; texts of the pool are escaped as on the report's page.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from textwrap import wrap

from markupsafe import Markup, escape

from influray import formatting
from influray.protocols import ConfigError
from influray.report.figures import wide_part
from influray.report.templating import environment, style_sheet
from influray.store.artifact import write_bytes

_SIZE = re.compile(r'viewBox="0 0 ([\d.]+) ([\d.]+)"')
MARGIN, TITLE, CAPTION = 24, 56, 34  # of a drawing, px
_NUMBER = re.compile(r"[+\u2212<]?\d")


@dataclass(frozen=True)
class Table:
    """Texts, one row a line; the first column names the row."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    @cached_property
    def numeric(self) -> tuple[bool, ...]:
        """Whether a column holds numbers only, which stand right-aligned."""
        columns = zip(*self.rows, strict=True) if self.rows else [()] * len(self.columns)
        return tuple(
            all(_NUMBER.match(cell) or cell in (formatting.ABSENT, "") for cell in cells) and any(cells)
            for cells in columns
        )


@dataclass(frozen=True)
class Figure:
    """A drawing with what it shows."""

    caption: str
    drawing: Markup


@dataclass(frozen=True)
class Section:
    """A heading, figures and tables."""

    title: str
    figures: tuple[Figure, ...] = ()
    tables: tuple[Table, ...] = ()


@dataclass(frozen=True)
class Sheet:
    """Everything that a page of tables and figures shows; `notes` say how to read it."""

    title: str
    notes: tuple[str, ...]
    sections: tuple[Section, ...]

    @property
    def tables(self) -> tuple[Table, ...]:
        return tuple(table for section in self.sections for table in section.tables)

    @property
    def figures(self) -> tuple[Figure, ...]:
        """The figures that have something to show."""
        return tuple(figure for section in self.sections for figure in section.figures if figure.drawing)


def check_figure_path(path: str | Path, key: str) -> Path:
    """Return `path` where a sheet can be written to it. Raises ConfigError naming `key` where it cannot."""
    path = Path(path)
    if path.suffix.lower() not in (".html", ".svg"):
        raise ConfigError(f"{key}: {str(path)!r} is neither .html nor .svg; the ending decides what is written")
    return check_output_path(path, key)


def check_output_path(path: str | Path, key: str) -> Path:
    """Return `path` where a file can be written to it. Raises ConfigError naming `key` where it cannot."""
    path = Path(path)
    if path.is_dir() or not path.parent.is_dir():
        wrong = "is a folder" if path.is_dir() else f"lies in {path.parent}, which is not a folder"
        raise ConfigError(f"{key}: {path} {wrong}; name a file in a folder that is there")
    return path


def write_sheet(path: Path, sheet: Sheet) -> None:
    """Write a sheet as one HTML page, or its figures as one SVG, by the file's ending."""
    text = as_svg(sheet) if path.suffix.lower() == ".svg" else as_html(sheet)
    write_bytes(path, text.encode("utf-8"))


def as_html(sheet: Sheet) -> str:
    """Return one page that needs nothing beside it."""
    page = environment().get_template("sheet.html.j2").render(sheet=sheet, style=style_sheet())
    return formatting.visible(page)


def as_svg(sheet: Sheet) -> str:
    """Return the figures below each other as one drawing that carries its own colours, light and dark."""
    y, width = float(TITLE), 0.0
    parts = [_label(MARGIN, 34, sheet.title, 19)]
    for figure in sheet.figures:
        drawing = wide_part(figure.drawing)
        size = _SIZE.search(drawing)
        assert size is not None, "a figure has a view box"
        lines = wrap(figure.caption, 130, break_long_words=False, break_on_hyphens=False)
        parts += [_label(MARGIN, y + 18 + 17 * n, line, 13) for n, line in enumerate(lines)]
        y += CAPTION + 17 * (len(lines) - 1)
        place = Markup('<svg x="{}" y="{}" ').format(MARGIN, f"{y:.1f}")
        parts.append(Markup(drawing.replace("<svg ", place, 1)))  # noqa: S704 - a drawing of this package
        width, y = max(width, float(size[1])), y + float(size[2]) + 22
    start = Markup(
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {w} {h}" width="{w}" height="{h}">'
        '<title>{t}</title><style>{s}</style><rect width="100%" height="100%" style="fill: var(--paper)"/>'
    ).format(w=f"{width + 2 * MARGIN:.0f}", h=f"{y:.0f}", t=sheet.title, s=style_sheet())
    return formatting.visible(start + Markup("").join(parts) + Markup("</svg>\n"))


def _label(x: float, y: float, text: str, size: int) -> Markup:
    return Markup('<text x="{}" y="{}" style="fill: var(--ink); font: {}px system-ui, sans-serif">{}</text>').format(
        x, f"{y:.1f}", size, escape(text)
    )
