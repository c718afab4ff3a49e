"""The explorer in a real browser, static and served: what it shows is what the data functions give."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from influray import formatting
from influray.report.explorer.data import chosen_rows, overview
from influray.report.explorer.page import explorer_page
from influray.report.explorer.sample import sample_rows
from influray.report.page import write_report
from influray.store.run_directory import RunDirectory
from tests.browser.service import serving
from tests.unit.synthetic_run import HOSTILE, HOSTILE_SOURCE, build_run


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> RunDirectory:
    return build_run(tmp_path_factory.mktemp("browser") / "a-run", rows=240)


@pytest.fixture(scope="module")
def numbers(run) -> dict:
    return overview(run.path)


@pytest.fixture(scope="module")
def static(run) -> str:
    return write_report(run.path).with_name("explorer.html").as_uri()


@pytest.fixture(scope="module")
def served(run):
    with serving(run) as (address, queries):
        yield address, queries


@pytest.fixture(params=["static", "live"])
def address(request, static, served) -> str:
    return static if request.param == "static" else served[0]


def ids(page) -> list[str]:
    page.wait_for_selector("#rows-table:not([aria-busy])")
    return page.locator("#rows-table button.open").all_inner_texts()


def shown(rows: list[dict]) -> list[str]:
    return [formatting.visible(row["id"]) for row in rows]


def told(page, place: str, text: str) -> None:
    """Wait until an element says `text`."""
    page.locator(place, has_text=text).wait_for()


def reads(text: str, value: float, digits: int = 2) -> bool:
    """Whether a text is a number rounded to `digits`, whichever way a tie goes."""
    return abs(float(text.replace(formatting.MINUS, "-").rstrip("%")) - value) <= 0.5000001 * 10**-digits


def set_budget(page, place: int) -> None:
    page.locator("#budget").evaluate("(e, v) => { e.value = v; e.dispatchEvent(new Event('input')); }", str(place))


def test_the_page_draws_everything_and_asks_nothing_else(open_page, address, numbers, run):
    watched = open_page(address)
    page = watched.page
    page.wait_for_selector("#rows-table table")
    assert page.title() == f"{overview(run.path)['title']} – influray explorer"
    for place in ("aid", "thi", "flow", "budget"):
        assert page.locator(f"#{place}-figure svg > *").count() > 10, place
    assert page.locator("#bins-figure svg").count() == len(numbers["tasks"])
    assert page.locator("#compare-table tbody tr").count() == len(numbers["selections"]) + 2  # full pool, before tuning
    assert page.locator("#question").count() == (1 if address.startswith("http") else 0)
    assert not page.locator(".figure *[y='NaN'], .figure *[x='NaN'], .figure *[d*='NaN']").count()
    assert "undefined" not in page.inner_text("body")
    watched.check(address)


def test_method_and_budget_change_every_number_to_that_of_the_prefix(open_page, static, numbers):
    watched = open_page(static)
    page = watched.page
    tasks = [task["name"] for task in numbers["tasks"]]
    for selection, against, place in ((0, 1, -1), (1, 2, 5), (2, 0, 0), (1, -1, 8)):
        place %= len(numbers["budgets"])
        page.select_option("#selection", str(selection))
        page.select_option("#against", str(against))
        set_budget(page, place)
        budget = numbers["budgets"][place]
        assert page.inner_text("#budget-text").startswith(f"{budget} row")
        one = numbers["selections"][selection]
        aid = one["at"]["aid"][place]
        tile = page.locator(".tile", has_text="Worst task")
        assert reads(tile.locator("b").inner_text(), min(aid))
        assert tasks[aid.index(min(aid))] in tile.inner_text()
        assert tile.locator(".before").count() == (against >= 0)
        page.locator("#aid-table").evaluate("e => e.closest('details').open = true")
        cells = page.locator("#aid-table tbody tr").evaluate_all(
            "trs => trs.map(tr => [...tr.cells].map(c => c.innerText))"
        )
        mine = len(cells[0]) - 3
        assert [line[0] for line in cells] == tasks
        for line, *values in zip(cells, aid, one["at"]["std"][place], one["at"]["thi"][place], strict=True):
            assert reads(line[mine], values[0])
            assert reads(line[mine + 1], values[1])
            assert reads(line[mine + 2], 100 * values[2] / budget, 1)
        flow = sum(rows > 0 for line in one["at"]["flow"][place] for rows in line)
        assert page.locator("#flow-figure .ribbon").count() == flow
        assert len(ids(page)) == min(25, budget), "the table ends at the budget"
        other = (selection + 1) % 3
        both = numbers["shared"][selection][other][place]
        overlap = page.locator("#overlap-table tbody tr").nth(selection).locator("td").nth(other).inner_text()
        assert reads(overlap, both / (2 * budget - both))
    page.click("input[name=thi][value=instance]")
    rows = numbers["selections"][1]["at"]["instance"][8]
    titles = page.locator("#thi-figure title").all_text_contents()
    expected = [f"{task}, less: {n} row{'' if n == 1 else 's'}" for task, n in zip(tasks, rows, strict=True)]
    assert [line.rpartition(", ")[0] for line in titles] == expected
    watched.check(static)


def test_search_filters_sort_and_pages_give_the_rows_of_the_data_functions(open_page, address, run):
    watched = open_page(address)
    page = watched.page
    assert ids(page) == shown(chosen_rows(run.path, "bids", limit=25)["rows"])
    page.click("#next")
    told(page, "#page-text", "Page 2 of")
    assert ids(page) == shown(chosen_rows(run.path, "bids", offset=25, limit=25)["rows"])
    first = chosen_rows(run.path, "bids", limit=1)["rows"][0]
    source, task = first["source"], first["task"]
    for changed, query in (
        (("#sort", "merit"), {"sort": "merit"}),
        (("#source", source), {"sort": "merit", "source": source}),
        (("#task", task), {"sort": "merit", "source": source, "task": task}),
    ):
        page.select_option(*changed)
        expected = chosen_rows(run.path, "bids", limit=25, **query)
        told(page, "#rows-status", f"of {expected['total']}")
        assert ids(page) == shown(expected["rows"])
    page.select_option("#source", "")
    page.select_option("#task", "")
    page.fill("#search", "ANSWER TO")
    expected = chosen_rows(run.path, "bids", text="answer to", sort="merit", limit=25)
    assert 0 < expected["total"] < 25
    told(page, "#rows-status", f"of {expected['total']}")
    assert ids(page) == shown(expected["rows"])
    page.fill("#search", "nothing has this text")
    told(page, "#rows-status", "No row fits")
    watched.check(address)


def test_hostile_text_is_shown_as_text(open_page, address, run):
    watched = open_page(address)
    page = watched.page
    page.select_option("#source", HOSTILE_SOURCE)
    told(page, "#rows-status", f"of {chosen_rows(run.path, 'bids', source=HOSTILE_SOURCE)['total']}")
    texts = []
    for button in page.locator("#rows-table button.open").all():
        button.click()
        texts.append(page.inner_text("#panel .whole"))
        page.keyboard.press("Escape")
    whole = "\n".join(texts)
    for hostile in HOSTILE:
        assert formatting.visible(hostile) in whole
    assert not re.search(formatting.UNSAFE, page.inner_text("body"))
    assert formatting.visible(HOSTILE_SOURCE) in page.inner_text("#rows-table")
    assert page.locator("script").count() == 2
    assert page.locator("img, iframe, object, embed, svg[onload], [onmouseover]").count() == 0
    watched.check(address)


def test_no_script_but_the_pages_own_runs(open_page, address):
    watched = open_page(address)
    watched.page.evaluate(
        "const s = document.createElement('script'); s.textContent = 'window.ran = 1'; document.body.append(s);"
        "const d = document.createElement('div'); d.innerHTML = '<img src=x onerror=\"window.ran = 1\">'; document.body.append(d)"
    )
    watched.page.wait_for_timeout(100)
    assert watched.page.evaluate("window.ran") is None
    assert any("Content Security Policy" in line for line in watched.told)


def test_a_row_opens_with_what_it_serves(open_page, static, run):
    watched = open_page(static)
    page = watched.page
    row = chosen_rows(run.path, "bids", limit=3)["rows"][2]
    page.locator("#rows-table button.open").nth(2).click()
    panel = page.locator("#panel")
    assert panel.locator("h2").inner_text() == row["id"]
    assert panel.locator(".whole").inner_text().strip() == formatting.visible(row["text"])
    assert f"{row['task']}, target {row['target_id']}" in panel.inner_text()
    values = panel.locator(".served tbody tr td:nth-child(2)").all_inner_texts()
    assert len(values) == 4
    assert panel.locator(".served svg").count() == 4
    panel.locator("button.close").click()
    assert not panel.is_visible()
    watched.check(static)


def test_everything_can_be_reached_and_done_by_keyboard(open_page, static):
    watched = open_page(static)
    page = watched.page
    focused = "(() => { const e = document.activeElement; const s = getComputedStyle(e); return [e.id || e.className || e.textContent.trim(), s.outlineStyle !== 'none' && parseFloat(s.outlineWidth) >= 1]; })()"
    order, seen = [], ""
    for _ in range(60):
        page.keyboard.press("Tab")
        seen, outlined = page.evaluate(focused)
        assert outlined, f"the focus on {seen} cannot be seen"
        order.append(seen)
        if seen == "selection":
            page.keyboard.press("ArrowDown")
            assert page.input_value("#selection") == "1"
        if seen == "budget":
            page.keyboard.press("Home")
            assert page.inner_text("#budget-text").startswith("1 row,")
            page.keyboard.press("End")
        if seen == "open":
            break
    assert order[0] == "skip"
    places = [
        order.index(name) for name in ("skip", "selection", "against", "budget", "search", "source", "sort", "open")
    ]
    assert places == sorted(places), order
    page.keyboard.press("Enter")
    assert page.locator("#panel").is_visible()
    for _ in range(6):
        page.keyboard.press("Tab")
        inside = page.evaluate(
            "document.activeElement === document.body || document.getElementById('panel').contains(document.activeElement)"
        )
        assert inside, "the focus stays in the open panel"
    page.keyboard.press("Escape")
    assert not page.locator("#panel").is_visible()
    assert page.evaluate("document.activeElement.className") == "open", "the focus is back on the row"
    names = page.evaluate(
        "[...document.querySelectorAll('button, input, select, textarea')].filter(e => !e.labels?.length && !e.textContent.trim() && !e.getAttribute('aria-label')).map(e => e.outerHTML)"
    )
    assert not names, "every control has a name"
    assert page.locator("table").count() == page.locator("table:has(caption):has(th[scope=col])").count()
    assert page.locator("svg.figure").count() == page.locator("svg.figure[role=img][aria-label]").count()
    watched.check(static)


@pytest.mark.parametrize("width", [360, 1280])
def test_light_and_dark_are_readable_and_nothing_is_wider_than_the_window(open_page, static, width, tmp_path):
    colours = {}
    for scheme in ("light", "dark"):
        watched = open_page(static, color_scheme=scheme, viewport={"width": width, "height": 900})
        page = watched.page
        page.wait_for_selector("#rows-table table")
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        colours[scheme] = page.evaluate(
            """() => {
              const canvas = document.createElement('canvas').getContext('2d', { willReadFrequently: true });
              const light = (colour) => {
                canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1);
                const [r, g, b] = [...canvas.getImageData(0, 0, 1, 1).data].map((v) => { v /= 255; return v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4; });
                return 0.2126 * r + 0.7152 * g + 0.0722 * b;
              };
              const paper = light(getComputedStyle(document.body).backgroundColor);
              const contrast = (element) => { const ink = light(getComputedStyle(element).color); return (Math.max(ink, paper) + 0.05) / (Math.min(ink, paper) + 0.05); };
              const texts = [...document.querySelectorAll('p, th, td, button:not(:disabled):not(.primary), select, figcaption, summary, label, output')];
              return [paper, Math.min(...texts.map(contrast))];
            }"""
        )
        shots = Path(os.environ.get("INFLURAY_SHOTS") or tmp_path)
        page.screenshot(path=str(shots / f"explorer-{scheme}-{width}.png"), full_page=True)
        watched.check(static)
    assert colours["light"][0] > 0.9
    assert colours["dark"][0] < 0.02
    assert min(contrast for _, contrast in colours.values()) >= 4.5, "WCAG AA"


def test_a_question_is_asked_and_its_answer_shown(open_page, served, run):
    address, queries = served
    watched = open_page(address)
    page = watched.page
    page.fill("#prompt", "Which <b>rows</b>?")
    page.fill("#answer", "These.")
    page.fill("#k", "3")
    page.click("#question button[type=submit]")
    told(page, "#ask-status", "Answered for your question in 0.25 s")
    assert queries[-1] == {"prompt": "Which <b>rows</b>?", "answer": "These.", "tokens": True, "k": 3}
    result = page.locator("#ask-result")
    assert result.locator("section, h3").all_inner_texts() == [
        "Which tokens of the answer carry it",
        "Most helpful",
        "Most harmful",
    ]
    best = shown(chosen_rows(run.path, "bids", limit=3)["rows"])
    assert result.locator("button.open").all_inner_texts()[:3] == best
    tokens = page.locator(".token")
    assert tokens.all_text_contents() == [" one", "<i>", "two"]
    assert tokens.evaluate_all(
        "es => es.map(e => e.className + getComputedStyle(e).getPropertyValue('--share').slice(0, 4))"
    ) == ["token help1", "token help0.66", "token harm0.33"]
    assert len(set(tokens.evaluate_all("es => es.map(e => getComputedStyle(e).backgroundColor)"))) == 3
    page.locator("#ask-result button.open").nth(1).click()
    page.wait_for_selector("#panel .served table")
    assert page.locator("#panel h2").inner_text() == best[1]
    assert "Chosen by bids (rank 2)." in page.inner_text("#panel")
    page.locator("#panel .served button.open").first.click()
    told(page, "#panel h2", best[0])
    page.click("#panel button.like")
    told(page, "#ask-status", "Answered for rows like")
    assert queries[-1] == {"like": chosen_rows(run.path, "bids", limit=1)["rows"][0]["id"], "k": 3}
    watched.check(address)


def test_a_refused_question_says_why(open_page, served):
    watched = open_page(served[0])
    page = watched.page
    page.fill("#prompt", "x")
    page.fill("#answer", "refused")
    page.click("#question button[type=submit]")
    told(page, "#ask-status", "Not answered. 422")
    assert "answer: <b>too long</b>" in page.inner_text("#ask-status")
    assert page.locator("#ask-status b").count() == 0
    assert page.locator("#question button").is_enabled()


def test_controls_and_direction_marks_are_written_out_as_in_the_report(open_page, run, numbers, tmp_path):
    text = "a\r\nb\x00\x1b\u200b\u202e\u2028\ufeff\uffff\ud800\U0001f469\u200d\U0001f52c\tend </script><!--"
    rows = sample_rows(run.path, ["bids", "less", "random"], None, 10**6)
    path = tmp_path / "explorer.html"
    path.write_text(explorer_page({**numbers, "model": text}, live=False, rows=rows), encoding="utf-8")
    watched = open_page(path.as_uri())
    assert f"model {formatting.visible(text)} \u00b7" in watched.page.locator("#facts").text_content()
    watched.check(path.as_uri())
