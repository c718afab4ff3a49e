"""Refuse a built site whose pages would ask the network: for a script, a style, a font or a picture.

    python jobs/check_site.py site

Links that a reader may follow are none of its business.
"""

from __future__ import annotations

import re
import sys
from html.parser import HTMLParser
from pathlib import Path

LOADED = {
    "script": "src",
    "link": "href",
    "img": "src",
    "iframe": "src",
    "source": "src",
    "video": "src",
    "use": "href",
}
NOT_LOADED = {"canonical", "next", "prev", "alternate", "edit"}  # of a link's rel
OUTSIDE = re.compile(r"^(https?:)?//", re.IGNORECASE)
IN_STYLE = re.compile(r"""(?:url\(|@import)\s*['"]?((?:https?:)?//[^'")\s]+)""", re.IGNORECASE)


class Page(HTMLParser):
    """What a page loads from elsewhere."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        address = given.get(LOADED.get(tag, ""), "")
        if OUTSIDE.match(address) and not (tag == "link" and given.get("rel") in NOT_LOADED):
            self.found.append(f"<{tag}> {address}")
        self.found += [f"srcset {part}" for part in given.get("srcset", "").split() if OUTSIDE.match(part)]
        self.found += IN_STYLE.findall(given.get("style", ""))


def outside(folder: Path) -> list[str]:
    """Return "file: what" for whatever the pages and styles of a folder load from elsewhere."""
    found = []
    for path in sorted(folder.rglob("*")):
        if path.suffix == ".html":
            page = Page()
            page.feed(path.read_text(encoding="utf-8"))
            found += [f"{path}: {what}" for what in page.found]
        elif path.suffix == ".css":
            found += [f"{path}: {address}" for address in IN_STYLE.findall(path.read_text(encoding="utf-8"))]
    return found


def main() -> None:
    folder = Path(sys.argv[1])
    pages = len(list(folder.rglob("*.html")))
    if not pages:
        sys.exit(f"{folder}: no pages there")
    if found := outside(folder):
        sys.exit("\n".join(found))
    print(f"{folder}: {pages} pages, and none asks the network")


if __name__ == "__main__":
    main()
