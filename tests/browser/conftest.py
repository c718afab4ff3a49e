"""A headless Chromium of this machine, and pages in it that notice what must not happen."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


@dataclass
class Watched:
    """A page, with what it printed, asked for and popped up."""

    page: object
    told: list[str] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)
    popped: list[str] = field(default_factory=list)

    def check(self, own: str) -> None:
        """Assert that nothing was printed or popped up, and nothing asked for outside `own` (the start of its address)."""
        assert not self.told, f"the console says {self.told}"
        assert not self.popped, f"text of the pool ran as script: {self.popped}"
        assert not [url for url in self.asked if not url.startswith((own, "data:"))], "asks the network"


@pytest.fixture(scope="module")  # playwright keeps an event loop running, which other tests in the process cannot have
def chromium() -> Iterator[object]:
    """A browser for the tests of a module; its pages are made by `open_page`."""
    path = next(filter(None, map(shutil.which, NAMES)), None)
    if path is None:
        pytest.skip(f"no Chromium on this machine (looked for {', '.join(NAMES)})")
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def open_page(chromium) -> Iterator[object]:
    """A function (address, **options of a context) -> Watched."""
    contexts = []

    def opened(address: str, **options) -> Watched:
        context = chromium.new_context(
            **{"viewport": {"width": 1280, "height": 900}, "reduced_motion": "reduce", **options}
        )
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(20_000)
        watched = Watched(page)
        page.on("console", lambda message: watched.told.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: watched.told.append(str(error)))
        page.on("request", lambda request: watched.asked.append(request.url))
        page.on("dialog", lambda dialog: (watched.popped.append(dialog.message), dialog.dismiss()))
        page.goto(address)
        return watched

    yield opened
    for context in contexts:
        context.close()
