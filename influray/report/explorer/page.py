"""The explorer page as one HTML file: data, script and style are inside, and nothing is asked of the network but,
where it is served, the service that it came from.

Everything from the pool is hostile. It stands in the page only as JSON without a "<", and the script makes text nodes
of it; a content security policy lets no other script run.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

from markupsafe import Markup

from influray import formatting
from influray.report.data import ReportData
from influray.report.explorer.data import overview_of
from influray.report.explorer.sample import sample_rows
from influray.report.readings import open_run
from influray.report.templating import environment, inline_json, style_sheet
from influray.store.artifact import write_bytes
from influray.store.run_directory import RunDirectory

# In the order in which they stand in the page: each may use the names of those before it.
SCRIPTS = ("dom.js", "state.js", "figures.js", "balance.js", "rows.js", "compare.js", "ask.js", "explorer.js")
MOST_BYTES = 3_000_000  # of the static page
LEAST_SAMPLE = 200_000  # bytes of rows that it carries however large its numbers are


def write_explorer(run_dir: str | Path, data: ReportData) -> Path:
    """Write RUN/report/explorer.html, the page without a server, and return its path.

    Raises:
        ArtifactMismatch: a part of the run cannot be read, or does not belong to the others.
    """
    path = RunDirectory(run_dir).report.with_name("explorer.html")
    numbers = overview_of(data, run_dir)
    bare = len(explorer_page(numbers, live=False).encode())
    room = max(LEAST_SAMPLE, MOST_BYTES - bare)
    attribution = open_run(run_dir).attribution
    rows = sample_rows(run_dir, [one.name for one in data.selections], attribution, room)
    write_bytes(path, explorer_page(numbers, live=False, rows=rows).encode())
    return path


def explorer_page(
    overview: Mapping[str, Any], *, live: bool, rows: Mapping[str, Any] | None = None, nonce: str = ""
) -> str:
    """Return the whole page. The same arguments give the same bytes.

    `live`: rows, explanations and answers are asked of the service beside the page; otherwise the page shows `rows`
    (of `sample_rows`). With a `nonce` its script and style carry it, without one the page's own policy names their
    hashes, so that either way no other script runs.
    """
    script = Markup(script_text())  # noqa: S704 - the package's own files
    style = style_sheet() + Markup(_own("explorer.css"))  # noqa: S704
    data = {"live": live, "overview": overview, "rows": rows, "unsafe": formatting.UNSAFE}
    page = (
        environment()
        .get_template("explorer.html.j2")
        .render(
            title=str(overview["title"]),
            live=live,
            nonce=nonce,
            script=script,
            style=style,
            policy=_policy(script, style, nonce, live),
            data=Markup(inline_json(data)),  # noqa: S704 - holds no markup
        )
    )
    return formatting.visible(page)


def script_text() -> str:
    """Return the page's script: its files one after another, in a block of their own."""
    return '"use strict";\n{\n' + "\n".join(_own(name) for name in SCRIPTS) + "}\n"


def _own(name: str) -> str:
    return files("influray.report.explorer").joinpath(name).read_text(encoding="utf-8")


def _policy(script: str, style: str, nonce: str, live: bool) -> str:
    def allowed(text: str) -> str:
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        return f"'nonce-{nonce}'" if nonce else f"'sha256-{digest}'"

    parts = ["default-src 'none'", f"script-src {allowed(script)}", f"style-src {allowed(style)}", "img-src data:"]
    parts += ["connect-src 'self'"] if live else []
    return "; ".join([*parts, "base-uri 'none'", "form-action 'none'"])
