"""What the figures are drawn of: axis ticks, marks, lines and texts as SVG. Every text is escaped."""

from __future__ import annotations

import math

from markupsafe import Markup, escape


def ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Return round numbers (steps of 1, 2 or 5 times a power of ten) that cover [low, high] from outside."""
    if not (math.isfinite(low) and math.isfinite(high)):
        raise ValueError(f"an axis needs finite ends, found {low} and {high}")
    if high - low <= 1e-12 * max(abs(low), abs(high), 1e-12):
        low, high = (low - 0.5, high + 0.5) if low == 0 else (low - abs(low) / 2, high + abs(high) / 2)
    rough = (high - low) / most
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= rough * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    decimals = 12 - math.floor(math.log10(step))  # rounding errors of a mean of zero make a range too
    return [round(i * step, decimals) for i in range(first, last + 1)]


def tick_label(value: float, step: float) -> str:
    """Return `value` with as many decimals as `step` needs, and a true minus sign."""
    decimals = max(0, -math.floor(math.log10(step) + 1e-9))
    text = f"{value:,.{decimals}f}"
    return text.replace("-", "\u2212") if float(text.replace(",", "")) else text.lstrip("-")


def shorten(text: str, most: int = 26) -> str:
    """Return `text`, its end cut off where it is longer than `most` characters."""
    return text if len(text) <= most else text[: most - 1] + "\u2026"


def draw_marker(x: float, y: float, shape: str) -> Markup:
    """Return the mark of a series at a point."""
    if shape == "circle":
        return Markup('<circle class="mark" cx="{}" cy="{}" r="4.5"/>').format(px(x), px(y))
    if shape == "ring":
        return Markup('<circle class="mark hollow" cx="{}" cy="{}" r="3.8"/>').format(px(x), px(y))
    corners = {
        "square": ((-4, -4), (4, -4), (4, 4), (-4, 4)),
        "diamond": ((0, -5.6), (5.6, 0), (0, 5.6), (-5.6, 0)),
        "triangle": ((0, -5.2), (5.2, 4), (-5.2, 4)),
        "wedge": ((0, 5.2), (5.2, -4), (-5.2, -4)),
    }[shape]
    points = " ".join(f"{px(x + dx)},{px(y + dy)}" for dx, dy in corners)
    return Markup('<polygon class="mark" points="{}"/>').format(points)


def draw_line(x1: float, y1: float, x2: float, y2: float, kind: str) -> Markup:
    """Return a straight line of a class."""
    return Markup('<line class="{}" x1="{}" y1="{}" x2="{}" y2="{}"/>').format(kind, px(x1), px(y1), px(x2), px(y2))


def draw_text(x: float, y: float, text: str, kind: str, anchor: str, full: str = "") -> Markup:
    """Return a text of a class; `full` is told where it was shortened."""
    title = Markup("<title>{}</title>").format(full) if full and full != text else Markup("")
    return Markup('<text class="{}" x="{}" y="{}" text-anchor="{}">{}{}</text>').format(
        kind, px(x), px(y), anchor, title, escape(text)
    )


def clipped(value: float, most: float) -> float:
    """Return value / most, within [0, 1]."""
    return min(1.0, max(0.0, value / most))


def px(value: float) -> str:
    """Return a coordinate as SVG has it: a tenth of a pixel at most."""
    return f"{value:.1f}".removesuffix(".0")
