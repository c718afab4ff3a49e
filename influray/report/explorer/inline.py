"""JSON that stands inside a page."""

from __future__ import annotations

import json
from typing import Any


def inline_json(value: Any) -> str:
    """Return JSON that may stand inside a script element: no "<", ">" or "&", and ASCII only."""
    text = json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
