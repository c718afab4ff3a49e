"""The pages where there is little room: on a telephone, and on paper."""

from __future__ import annotations

import pytest

from influray.report.compare import compare
from influray.report.compare_sheet import compare_sheet
from influray.report.page import write_report
from influray.report.sheet import write_sheet
from tests.unit.synthetic_run import build_run

NAMES = ("index", "compare", "explorer")


@pytest.fixture(scope="module")
def pages(tmp_path_factory) -> dict[str, str]:
    run = build_run(tmp_path_factory.mktemp("pages") / "a-run")
    path = write_report(run.path)
    sheet = path.with_name("compare.html")
    write_sheet(sheet, compare_sheet(compare([run.path])))
    return {name: path.with_name(f"{name}.html").as_uri() for name in NAMES}


@pytest.mark.parametrize("name", NAMES)
def test_on_a_telephone_no_figure_scrolls(open_page, pages, name):
    page = open_page(pages[name], viewport={"width": 390, "height": 844}).page
    figures = page.locator("svg.figure:visible")
    figures.first.wait_for()
    boxes = figures.evaluate_all("es => es.map(e => e.getBoundingClientRect()).map(r => [r.left, r.right])")
    assert len(boxes) >= 5
    assert all(left >= 0 and right <= 390 for left, right in boxes)
    assert page.evaluate("document.documentElement.scrollWidth") == 390


@pytest.mark.parametrize("name", NAMES)
def test_on_paper_nothing_is_cut_off_and_what_is_folded_is_there(open_page, pages, name):
    page = open_page(pages[name], viewport={"width": 718, "height": 1000}).page  # A4 within Chromium's margins
    page.emulate_media(media="print")
    page.locator("svg.figure:visible").first.wait_for()
    assert page.evaluate("document.documentElement.scrollWidth") <= 718
    assert page.locator("svg.figure.narrow:visible").count() == 0
    for part in ("nav", "dialog", "#ask", ".filters", ".pager"):
        assert page.locator(f"{part}:visible").count() == 0, part
    assert (
        page.locator("details.task:not([open]) .example:visible").count()
        == page.locator("details.task:not([open]) .example").count()
    )
