"""The report's figures: small functions from numbers to inline SVG, without a plotting library.

Each is drawn twice: for a page, and for one of 390 px, where a scaled figure could not be read; style.css shows one.
Colours come from the classes c0 .. c5 and cg (grey, for references) of style.css, so that a figure follows the page
into dark mode and print; series also differ by marker, so that colour alone carries nothing. Every text is escaped.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ParamSpec

from markupsafe import Markup

from influray.report.drawing import (
    clipped,
    draw_line,
    draw_marker,
    draw_text,
    px,
    shorten,
    tick_label,
    ticks,
)

WIDTH = 880
NARROW = 358  # 390 px less the margins of the page
LABEL = {WIDTH: 26, NARROW: 13}  # characters of a row's name that are shown
LETTER = 6.6  # mean width of a character at 12 px, a little generous
LEGEND_LINE = 20
P = ParamSpec("P")
MARKERS = ("circle", "square", "diamond", "triangle", "wedge")


@dataclass(frozen=True)
class Series:
    """One value per row of a figure (None = not there); `low` and `high` draw a whisker. `style` is c0 .. c5 or cg.

    A `hollow` series has a ring for its marker, as a reference has.
    """

    label: str
    style: str
    values: Sequence[float | None]
    low: Sequence[float | None] = ()
    high: Sequence[float | None] = ()
    hollow: bool = False


@dataclass(frozen=True)
class Line:
    """A curve of `lines`: its points, x ascending, and the one that is marked (None = none)."""

    label: str
    style: str
    points: Sequence[tuple[float, float]]
    marked: int | None = None


@dataclass(frozen=True)
class Interval:
    """A row of `intervals`: thin line low..high, thick line inner_low..inner_high, dot, ticks."""

    label: str
    style: str
    low: float
    inner_low: float
    middle: float
    inner_high: float
    high: float
    points: Sequence[float] = ()


def _for_both_widths(draw: Callable[P, Markup]) -> Callable[P, Markup]:
    @functools.wraps(draw)
    def both(*args: P.args, **options: P.kwargs) -> Markup:
        wide, again = draw(*args, **options), functools.partial(draw, *args, **options)
        narrow: Any = {"ident": f"{options['ident']}-narrow", "width": NARROW}
        return wide + again(**narrow) if wide else wide

    return both


def wide_part(drawing: Markup) -> Markup:
    """Return a figure as it is drawn for a page, without that for a narrow one."""
    end = "</svg>"
    return Markup(drawing[: drawing.index(end) + len(end)])  # noqa: S704 - a drawing of this module


@_for_both_widths
def dots(
    rows: Sequence[str],
    series: Sequence[Series],
    *,
    ident: str,
    title: str,
    axis: str,
    reference: float | None = None,
    stems: bool = False,
    width: int = WIDTH,
) -> Markup:
    """Return a dot plot: one band a row, one line in it a series; whiskers where a series has them.

    `reference` draws a vertical rule that the axis includes; `stems` joins each dot with it.
    """
    present = [v for s in series for part in (s.values, s.low, s.high) for v in part if v is not None]
    present += [] if reference is None else [reference]
    if not present or not rows:
        return Markup("")
    lane = 11 if len(series) > 1 else 16
    band = lane * len(series) + 10
    legend, more = _legend(series, _gutter(rows, width), width) if len(series) > 1 else (Markup(""), -24)
    plot = _Plot(rows, (min(present), max(present)), top=30 + more, band=band, width=width)
    out = [legend]
    out += plot.frame(axis, reference)
    for r, row in enumerate(rows):
        for k, one in enumerate(series):
            value = one.values[r]
            if value is None:
                continue
            y = plot.top + r * band + 5 + lane * (k + 0.5)
            low = one.low[r] if one.low else None
            high = one.high[r] if one.high else None
            ends = None if low is None or high is None else (low, high)
            told = f"{row}, {one.label}: {_short(value)}" + (f" ({_short(low)} to {_short(high)})" if ends else "")
            out.append(Markup('<g class="{}"><title>{}</title>').format(one.style, told))
            if stems and reference is not None:
                out.append(draw_line(plot.x(reference), y, plot.x(value), y, "stem"))
            if ends:
                out.append(draw_line(plot.x(ends[0]), y, plot.x(ends[1]), y, "whisker"))
            out += [draw_marker(plot.x(value), y, _shape(series, k)), Markup("</g>")]
    return _figure(ident, title, _told(rows, series), plot.height, out, width)


@_for_both_widths
def intervals(
    rows: Sequence[Interval],
    *,
    ident: str,
    title: str,
    axis: str,
    reference: float | None = None,
    width: int = WIDTH,
) -> Markup:
    """Return one line a row: range, inner range, middle, and the single points."""
    ends = [v for row in rows for v in (row.low, row.high)] + ([] if reference is None else [reference])
    if not rows:
        return Markup("")
    plot = _Plot([row.label for row in rows], (min(ends), max(ends)), top=6, band=28, width=width)
    out = plot.frame(axis, reference)
    for r, row in enumerate(rows):
        y = plot.top + r * plot.band + plot.band / 2
        out.append(Markup('<g class="{}"><title>{}</title>').format(row.style, _interval_text(row)))
        out.append(draw_line(plot.x(row.low), y, plot.x(row.high), y, "range"))
        out.append(draw_line(plot.x(row.inner_low), y, plot.x(row.inner_high), y, "inner"))
        out += [draw_line(plot.x(point), y - 6, plot.x(point), y + 6, "point") for point in row.points]
        out += [draw_marker(plot.x(row.middle), y, "circle"), Markup("</g>")]
    return _figure(ident, title, "; ".join(_interval_text(row) for row in rows), plot.height, out, width)


@_for_both_widths
def lines(
    curves: Sequence[Line],
    *,
    ident: str,
    title: str,
    x_axis: str,
    y_axis: str,
    rule: tuple[float, str] | None = None,
    width: int = WIDTH,
) -> Markup:
    """Return curves over one horizontal axis; a marked point has a ring and a drop line to the axis.

    `rule` = (x, its name) draws a vertical rule.
    """
    points = [point for curve in curves for point in curve.points]
    if not points:
        return Markup("")
    across, up = (
        ticks(0.0, max(x for x, _ in points), 8 if width == WIDTH else 3),
        ticks(min(y for _, y in points), max(y for _, y in points)),
    )
    left, right, height = 62.0, width - 24.0, 250.0
    legend, top = _legend([Series(curve.label, curve.style, ()) for curve in curves], left, width)
    top += 52

    def place(x: float, y: float) -> tuple[float, float]:
        part = (y - up[0]) / (up[-1] - up[0])
        return left + x / across[-1] * (right - left), top + (1 - part) * height

    out = [legend, draw_text(left, top - 10, y_axis, "axis", "start")]
    for mark in up:
        y = place(0, mark)[1]
        out += [draw_line(left, y, right, y, "zero" if mark == 0 else "grid")]
        out.append(draw_text(left - 8, y + 4, tick_label(mark, up[1] - up[0]), "axis", "end"))
    for mark in across:
        x = place(mark, up[0])[0]
        out += [draw_line(x, top + height, x, top + height + 4, "zero")]
        out.append(draw_text(x, top + height + 18, tick_label(mark, across[1] - across[0]), "axis", "middle"))
    if rule is not None:
        x = place(rule[0], up[0])[0]
        out += [draw_line(x, top, x, top + height, "rule"), draw_text(x - 5, top + 12, rule[1], "axis", "end")]
    for k, curve in enumerate(curves):
        out.append(_curve(curve, [place(*point) for point in curve.points], MARKERS[k % len(MARKERS)], top + height))
    out.append(
        draw_text((left + right) / 2 if width == WIDTH else width / 2, top + height + 38, x_axis, "axis", "middle")
    )
    return _figure(ident, title, "; ".join(_curve_text(curve) for curve in curves), top + height + 46, out, width)


@_for_both_widths
def heat_map(
    rows: Sequence[str],
    columns: Sequence[str],
    values: Sequence[Sequence[float | None]],
    texts: Sequence[Sequence[str]],
    *,
    ident: str,
    title: str,
    full: float | None = None,
    width: int = WIDTH,
) -> Markup:
    """Return a table of shaded cells with their text in them; `full` is the value of the strongest shade."""
    left, most_letters = _gutter(rows, width), LABEL[width]
    cell, height, top = min(112.0, (width - left - 8) / max(1, len(columns))), 26, 28
    most = full if full is not None else max((v for line in values for v in line if v is not None), default=1.0)
    fits = max(3, int(cell / LETTER) - 1)
    out = []
    for c, name in enumerate(columns):
        out.append(draw_text(left + (c + 0.5) * cell, top - 10, shorten(name, fits), "head", "middle", name))
    for r, name in enumerate(rows):
        y = top + r * height
        out.append(draw_text(left - 10, y + height / 2 + 4, shorten(name, most_letters), "label", "end", name))
        for c, column in enumerate(columns):
            value = values[r][c]
            shade = 0.0 if value is None or most <= 0 else min(1.0, max(0.0, value / most))
            box = Markup('<g><title>{}, {}: {}</title><rect class="cell" x="{}" y="{}" width="{}" height="{}" ').format(
                name, column, texts[r][c], px(left + c * cell + 1), y + 1, px(cell - 2), height - 2
            )
            # Shades stop at 0.6 of the accent: the text above them keeps its contrast in light and dark.
            out.append(box + Markup('fill-opacity="{}"/>').format(px(0.04 + 0.56 * shade)))
            out.append(draw_text(left + (c + 0.5) * cell, y + height / 2 + 4, texts[r][c], "value", "middle"))
            out.append(Markup("</g>"))
    told = "; ".join(
        f"{row}: " + ", ".join(f"{c} {t}" for c, t in zip(columns, line, strict=True))
        for row, line in zip(rows, texts, strict=True)
    )
    return _figure(ident, title, told, top + len(rows) * height + 6, out, width, left + cell * len(columns) + 8)


def bullet(value: float | None, most: float, style: str = "c0", reference: float | None = None) -> Markup:
    """Return a small bar for a table cell, `most` long at the full width, with a tick at `reference`.

    The number stands beside it in the cell, so it is hidden from screen readers.
    """
    if value is None or most <= 0:
        return Markup("")
    width, height = 96, 12
    parts = [Markup('<rect class="bar" x="0" y="3" width="{}" height="6"/>').format(px(clipped(value, most) * width))]
    if reference is not None:
        x = min(width - 0.75, max(0.75, clipped(reference, most) * width))
        parts.append(draw_line(x, 0, x, height, "tick"))
    start = Markup('<svg class="bullet {}" viewBox="0 0 {} {}" width="{}" height="{}" aria-hidden="true">').format(
        style, width, height, width, height
    )
    return start + Markup("").join(parts) + Markup("</svg>")


def _curve(curve: Line, places: Sequence[tuple[float, float]], shape: str, bottom: float) -> Markup:
    """A polyline with a marker at about every fourth point and at its end."""
    path = " ".join(f"{px(x)},{px(y)}" for x, y in places)
    out = [Markup('<g class="{}"><title>{}</title>').format(curve.style, _curve_text(curve))]
    out.append(Markup('<polyline class="curve" points="{}"/>').format(path))
    out += [draw_marker(x, y, shape) for x, y in [*places[3:-2:4], places[-1]]]
    if curve.marked is not None:
        x, y = places[curve.marked]
        out.append(draw_line(x, y, x, bottom, "drop"))
        out.append(Markup('<circle class="knee" cx="{}" cy="{}" r="8"/>').format(px(x), px(y)))
    return Markup("").join(out) + Markup("</g>")


def _curve_text(curve: Line) -> str:
    shown = [f"{_short(y)} at {x:,.0f}" for x, y in [*curve.points[:-1:6], curve.points[-1]]]
    knee = "no knee" if curve.marked is None else f"knee at {curve.points[curve.marked][0]:,.0f}"
    return f"{curve.label}: {', '.join(shown)}; {knee}"


class _Plot:
    """Where things are: a gutter of row labels on the left, the value axis below."""

    def __init__(self, rows: Sequence[str], ends: tuple[float, float], *, top: float, band: int, width: int) -> None:
        self.rows, self.top, self.band, self.width = rows, top, band, width
        self.marks = ticks(*ends, 6 if width == WIDTH else 3)
        self.left = _gutter(rows, width)
        self.right = width - 16
        self.bottom = top + band * len(rows)
        self.height = self.bottom + 44

    def x(self, value: float) -> float:
        low, high = self.marks[0], self.marks[-1]
        return self.left + (value - low) / (high - low) * (self.right - self.left)

    def frame(self, axis: str, reference: float | None) -> list[Markup]:
        step = self.marks[1] - self.marks[0]
        out = []
        for r, name in enumerate(self.rows):
            y = self.top + r * self.band
            if r % 2 == 0:
                out.append(
                    Markup('<rect class="stripe" x="0" y="{}" width="{}" height="{}"/>').format(
                        y, self.width, self.band
                    )
                )
            out.append(
                draw_text(self.left - 10, y + self.band / 2 + 4, shorten(name, LABEL[self.width]), "label", "end", name)
            )
        for mark in self.marks:
            out.append(draw_line(self.x(mark), self.top, self.x(mark), self.bottom, "grid"))
            out.append(draw_text(self.x(mark), self.bottom + 16, tick_label(mark, step), "axis", "middle"))
        if reference is not None:
            out.append(draw_line(self.x(reference), self.top, self.x(reference), self.bottom, "zero"))
        middle = (self.left + self.right) / 2 if self.width == WIDTH else self.width / 2
        out.append(draw_text(middle, self.bottom + 36, shorten(axis, int(self.width / LETTER)), "axis", "middle", axis))
        return out


def _figure(
    ident: str, title: str, told: str, height: float, parts: Sequence[Markup], width: int, used: float | None = None
) -> Markup:
    """Return the drawing of a figure for pages of this width; `used` is what of it is drawn on."""
    start = Markup(
        '<svg class="figure {k}" viewBox="0 0 {w} {h}" width="{w}" height="{h}" role="img" '
        'aria-labelledby="{i}-t {i}-d"><title id="{i}-t">{title}</title><desc id="{i}-d">{told}</desc>'
    ).format(
        k="wide" if width == WIDTH else "narrow",
        w=px(width if used is None else used),
        h=px(height),
        i=ident,
        title=title,
        told=told,
    )
    return start + Markup("").join(parts) + Markup("</svg>")


def _gutter(rows: Sequence[str], width: int) -> float:
    return max((len(shorten(name, LABEL[width])) for name in rows), default=0) * LETTER + 22


def _legend(series: Sequence[Series], left: float, width: int) -> tuple[Markup, float]:
    """The legend in as many lines as it needs, and the height of all but the first."""
    left = left if width == WIDTH else 4.0
    x, y, out = left, 14.0, []
    for k, one in enumerate(series):
        wide = 14 + len(shorten(one.label)) * LETTER + 24
        if x > left and x + wide - 24 > width:
            x, y = left, y + LEGEND_LINE
        out.append(
            Markup('<g class="{}">').format(one.style) + draw_marker(x + 5, y, _shape(series, k)) + Markup("</g>")
        )
        out.append(draw_text(x + 14, y + 4, shorten(one.label), "legend", "start", one.label))
        x += wide
    return Markup("").join(out), y - 14


def _shape(series: Sequence[Series], k: int) -> str:
    return "ring" if series[k].hollow else MARKERS[k % len(MARKERS)]


def _told(rows: Sequence[str], series: Sequence[Series]) -> str:
    lines = []
    for r, row in enumerate(rows):
        values = [f"{s.label} {_short(v)}" for s in series if (v := s.values[r]) is not None]
        lines.append(f"{row}: {', '.join(values)}")
    return "; ".join(lines)


def _interval_text(row: Interval) -> str:
    ends = f"{_short(row.low)} to {_short(row.high)}, half or one deviation {_short(row.inner_low)} to"
    return f"{row.label}: middle {_short(row.middle)}, {ends} {_short(row.inner_high)}"


def _short(value: float | None) -> str:
    return "none" if value is None else f"{value:.3g}".replace("-", "\u2212")
