"""Numbers and hostile texts as people can read them."""

from __future__ import annotations

import datetime
import re

MINUS = "\u2212"
ABSENT = "\u2013"

# What no page, terminal or log may carry as it is: controls steer a terminal; they, surrogates and noncharacters are
# not HTML; marks that steer the direction of text make a record read as something it is not; letters without width are
# read by nobody (but U+200C and U+200D, which scripts and emoji are written with). All become their code point.
UNSAFE = (
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u00ad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f"
    "\ufeff\ufff9-\ufffb\ufffe\uffff\ud800-\udfff\U000e0000-\U000e007f]"
)
_UNSAFE = re.compile(UNSAFE)
_LINES = re.compile("[\t\n]")


def visible(text: str, lines: bool = True) -> str:
    """Return `text` with every control, direction mark and lone surrogate written out, such as [U+202E].

    Without `lines`, for what must stay one line, the ends of lines and tabs too.
    """
    text = _UNSAFE.sub(_named, text.replace("\r\n", "\n"))
    return text if lines else _LINES.sub(_named, text)


def number(value: float | None, digits: int = 2) -> str:
    """Return a plain number: `digits` decimals, thousands separated, a true minus, never minus zero."""
    if value is None:
        return ABSENT
    text = f"{value:,.{digits}f}"
    if text.startswith("-"):
        text = text[1:] if not text.strip("-0.,") else MINUS + text[1:]
    return text


def signed(value: float | None, digits: int = 2) -> str:
    """Return a number with its sign; what rounds to 0 has none."""
    text = number(value, digits)
    return text if text.startswith((MINUS, ABSENT)) or not text.strip("0.,") else "+" + text


def count(value: int | None) -> str:
    """Return an integer with its thousands separated."""
    return ABSENT if value is None else number(value, 0)


def percent(value: float | None, digits: int = 1) -> str:
    """Return a share as percent; what is there but rounds to nothing reads <0.1%."""
    if value is None:
        return ABSENT
    smallest = 10.0**-digits
    if 0 < 100 * value < smallest / 2:
        return f"<{smallest:.{digits}f}%"
    return number(100 * value, digits) + "%"


def seconds(value: float | None) -> str:
    """Return a duration in the unit that suits it: 0.42 s, 12.3 s, 4 min 05 s, 2 h 07 min."""
    if value is None:
        return ABSENT
    if value < 59.95:
        return f"{value:.2f} s" if value < 9.995 else f"{value:.1f} s"
    whole = round(value)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    minutes = round(value / 60)
    return f"{minutes // 60:,} h {minutes % 60:02d} min"


def tokens(value: float | None) -> str:
    """Return a large count in short form: 812, 45.2K, 3.10M, 1.25B."""
    if value is None:
        return ABSENT
    for size, unit, digits in ((1e9, "B", 2), (1e6, "M", 2), (1e4, "K", 1)):
        if value >= size:
            return f"{value / (1e3 if unit == 'K' else size):.{digits}f}{unit}"
    return count(round(value))


def large(value: float | None, unit: str = "") -> str:
    """Return a number of three digits with its SI prefix: 812, 45.2 k, 1.25 T; with `unit` behind it."""
    if value is None:
        return ABSENT
    for size, prefix in ((1e21, "Z"), (1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.3g} {prefix}{unit}"
    return f"{value:.3g} {unit}".rstrip()


def moment(value: str) -> str:
    """Return an ISO 8601 time to the minute; what is none is returned as it is."""
    try:
        when = datetime.datetime.fromisoformat(value)
    except ValueError:
        return value
    zone = when.tzname() or ""
    return f"{when:%Y-%m-%d %H:%M} {zone}".rstrip()


def listed(items: list[str]) -> str:
    """Return "a", "a and b", "a, b and c"."""
    return items[0] if len(items) == 1 else ", ".join(items[:-1]) + " and " + items[-1]


def _named(found: re.Match[str]) -> str:
    return f"[U+{ord(found[0]):04X}]"
