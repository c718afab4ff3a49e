"""Take the pictures of docs/pictures/ from a finished run: the report's head and the explorer.

    influray demo && python jobs/make_screenshots.py runs/demo

It takes a Chromium of this machine, as tests/browser does, and the package playwright.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path

from playwright.sync_api import sync_playwright

PICTURES = Path(__file__).resolve().parent.parent / "docs" / "pictures"
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
WIDTH, HEIGHT = 1440, 900
MOST_BYTES = 150_000
SIDE = 220  # empty on both sides of the report
# File, the element that the picture begins with, the one that it ends before (or the window's height), and the side.
PAGES = {"report": ("index.html", "body", "dl", SIDE), "explorer": ("explorer.html", "#rows", "", 0)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="a finished run, with its report")
    parser.add_argument("--to", type=Path, default=PICTURES)
    given = parser.parse_args()
    browser_path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser_path is None:
        sys.exit(f"no Chromium on this machine (looked for {', '.join(BROWSERS)})")
    given.to.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=browser_path, args=["--no-sandbox"])
        page = browser.new_page(
            viewport={"width": WIDTH, "height": HEIGHT}, color_scheme="light", reduced_motion="reduce"
        )
        for name, (file, first, after, side) in PAGES.items():
            page.goto((given.run / "report" / file).resolve().as_uri())
            page.evaluate("it => document.querySelector(it).scrollIntoView()", first)
            path = given.to / f"{name}.png"
            box = page.locator(after).first.bounding_box() if after else None
            height = HEIGHT if box is None else box["y"]
            page.screenshot(path=path, clip={"x": side, "y": 0, "width": WIDTH - 2 * side, "height": height})
            size = path.stat().st_size
            print(f"{path}: {size:,} bytes")
            if size > MOST_BYTES:
                sys.exit(f"{path} has more than {MOST_BYTES:,} bytes: too much for a repository")
        browser.close()


if __name__ == "__main__":
    main()
