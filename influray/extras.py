"""The command that installs an extra, from wherever influray itself was installed."""

from __future__ import annotations

import json
import shlex
from importlib.metadata import PackageNotFoundError, distribution
from urllib.parse import unquote, urlsplit


def install_command(extra: str) -> str:
    """Return `pip install ..` for an extra: of the checkout, the wheel or the index that influray came from."""
    try:
        origin = json.loads(distribution("influray").read_text("direct_url.json") or "{}")
    except PackageNotFoundError:  # a source tree on PYTHONPATH
        origin = {}
    url = origin.get("url", "")
    if "dir_info" in origin:
        folder = unquote(urlsplit(url).path)
        edited = "-e " if origin["dir_info"].get("editable") else ""
        return f"pip install {edited}{shlex.quote(f'{folder}[{extra}]')}"
    wanted = f"influray[{extra}] @ {url}" if url else f"influray[{extra}]"
    return f"pip install {shlex.quote(wanted)}"
