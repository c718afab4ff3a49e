"""What every page shares: the template engine with its number formats, the style sheet, and JSON inside a page."""

from __future__ import annotations

import json
from importlib.resources import files
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from influray import formatting


def environment(escape: bool = True) -> Environment:
    """Return the engine over the package's templates: everything is escaped for HTML, an unknown name is an error."""
    found = Environment(
        loader=PackageLoader("influray.report"),
        autoescape=escape,  # noqa: S701 - not what goes into a page
        keep_trailing_newline=not escape,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    for name in ("number", "signed", "count", "percent", "seconds", "tokens", "moment"):
        found.filters[name] = getattr(formatting, name)
    found.filters["repr"] = repr
    return found


def style_sheet() -> Markup:
    """Return style.css, to stand inside a page or a drawing."""
    return Markup(files("influray.report").joinpath("style.css").read_text(encoding="utf-8"))  # noqa: S704


def inline_json(value: Any) -> str:
    """Return JSON that may stand inside a script element: no "<", ">" or "&", and ASCII only."""
    text = json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
