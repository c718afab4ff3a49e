"""Characters that steer a terminal, or that nobody sees, written so that they are seen: [U+001B].

Text of a pool, an id, a file name may hold any of them: escape sequences that clear the screen or fake its lines,
overrides of the writing direction that show one word for another, letters without width. They are shown wherever
text is printed or logged, and stay what they are in files of data.
"""

from __future__ import annotations

import unicodedata

JOINERS = "\u200c\u200d"  # which scripts and emoji are written with
KEPT = "\n\t" + JOINERS


# Cc: C0, DEL, C1. Cf: direction, zero width, tags. Zl, Zp: ends of lines. Cs: halves of pairs, which no file takes.
STEERING = ("Cc", "Cf", "Zl", "Zp", "Cs")


def shown(text: str, lines: bool = True) -> str:
    """Return a text with each such character as [U+XXXX]; without `lines`, ends of lines and tabs as well."""
    if text.isprintable():  # none of them is
        return text
    kept = KEPT if lines else JOINERS
    return "".join(f"[U+{ord(c):04X}]" if unicodedata.category(c) in STEERING and c not in kept else c for c in text)
