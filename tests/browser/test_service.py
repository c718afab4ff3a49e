"""The service's own application in a real browser: its page, its engine, its guard and its content security policy.

uvicorn runs it in this process. Of what `influray serve` starts, only Ray Serve is left out.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pytest

from influray import formatting
from influray.ask.http_app import build_app, error_of
from influray.ask.http_guard import Access, Guard
from influray.ask.query import Asked
from influray.report.explorer.data import chosen_rows
from influray.runs import Run
from tests.unit.asked_run import build_asked_run
from tests.unit.synthetic_run import HOSTILE

uvicorn = pytest.importorskip("uvicorn", reason="the extra serve is not installed")


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Run:
    return build_asked_run(tmp_path_factory.mktemp("service"))


@pytest.fixture(scope="module")
def address(run) -> Iterator[str]:
    async def ask(asked: Asked) -> dict[str, Any]:
        (found,) = await asyncio.to_thread(run.engine.ask_many, [asked])
        if isinstance(found, Exception):
            status, body = error_of(found)
            return {"status": status, "error": body}
        return {"answer": found.as_plain()}

    with listening(Guard(build_app(run.directory, run.config, ask), Access())) as port:
        yield f"http://127.0.0.1:{port}/"


@contextmanager
def listening(app: Guard) -> Iterator[int]:
    """Serve an application on a free port of the loopback; yield the port."""
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=0, log_level="warning", lifespan="off"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive(), "uvicorn did not start"
        thread.join(0.02)
    yield server.servers[0].sockets[0].getsockname()[1]
    server.should_exit = True
    thread.join(20)
    assert not thread.is_alive()


def ids(page: Any, place: str = "#rows-table") -> list[str]:
    page.wait_for_selector("#rows-table:not([aria-busy])")
    return page.locator(f"{place} button.open").all_inner_texts()


def told(page: Any, place: str, text: str) -> None:
    page.locator(place, has_text=text).wait_for()


def test_rows_are_searched_filtered_and_explained(open_page, address, run):
    watched = open_page(address)
    page, place = watched.page, run.directory.path
    told(page, "#rows-status", "of 6")
    assert ids(page) == [row["id"] for row in chosen_rows(place, "bids")["rows"]]
    page.select_option("#selection", "1")
    told(page, "#rows-lead", "random")
    everything = chosen_rows(place, "random")
    assert ids(page) == [row["id"] for row in everything["rows"]]
    source = everything["rows"][0]["source"]
    page.select_option("#source", source)
    of_source = chosen_rows(place, "random", source=source)
    assert 0 < of_source["total"] < 6
    told(page, "#rows-status", f"of {of_source['total']}")
    assert ids(page) == [row["id"] for row in of_source["rows"]]
    one = of_source["rows"][-1]
    with page.expect_response(lambda response: "text=" + one["id"].upper() in response.url):
        page.fill("#search", one["id"].upper())
    found = chosen_rows(place, "random", source=source, text=one["id"])
    told(page, "#rows-status", f"of {found['total']}")
    assert ids(page) == [row["id"] for row in found["rows"]]
    page.locator("#rows-table").get_by_role("button", name=one["id"], exact=True).click()
    page.wait_for_selector("#panel .served table")
    assert f"random (rank {one['rank']})" in page.inner_text("#panel .served")
    assert page.locator("#panel .served h3", has_text="Most alike").count() == 1
    watched.check(address)


def test_a_question_is_answered_by_the_engine_and_a_hit_asks_again(open_page, address, run):
    watched = open_page(address)
    page = watched.page
    page.fill("#prompt", "What is 7+8?")
    page.fill("#answer", "15")
    page.fill("#k", "29")
    page.click("#question button[type=submit]")
    told(page, "#ask-status", "Answered for your question")
    expected = run.query("What is 7+8?", "15", k=29, tokens=True)
    assert expected.tokens is not None
    shown = [formatting.visible(hit.id) for hit in (*expected.helpful, *expected.harmful)]
    assert ids(page, "#ask-result") == shown
    assert page.locator(".token").all_text_contents() == [token.text for token in expected.tokens]
    assert HOSTILE[0] in page.inner_text("#ask-result"), "every row of the pool is among the hits"
    page.locator("#ask-result button.open").first.click()
    page.wait_for_selector("#panel .served table")
    page.click("#panel button.like")
    best = expected.helpful[0]
    told(page, "#ask-status", f"Answered for rows like {best.id}")
    assert ids(page, "#ask-result")[:29] == [formatting.visible(h.id) for h in run.query(like=best.id, k=29).helpful]
    watched.check(address)


def test_a_question_that_cannot_be_asked_says_why(open_page, address):
    watched = open_page(address)
    page = watched.page
    page.fill("#prompt", "What is 7+8?")
    page.fill("#answer", " ")
    page.click("#question button[type=submit]")
    told(page, "#ask-status", "Not answered. 422: answer: there is none")
    assert [line for line in watched.told if "status of 422" not in line] == []


def test_only_the_pages_own_script_runs_and_it_may_ask_only_its_own_service(open_page, address):
    watched = open_page(address)
    found = watched.page.evaluate(
        """async () => {
          const script = document.createElement('script');
          script.textContent = 'window.ran = 1';
          document.body.append(script);
          const stopped = [];
          document.addEventListener('securitypolicyviolation', (event) => stopped.push(event.effectiveDirective));
          await fetch('http://127.0.0.1:9/').catch(() => 0);
          await new Promise((done) => setTimeout(done, 50));
          return [window.ran ?? 0, stopped, (await fetch('health')).status];
        }"""
    )
    ran, stopped, health = found
    assert (ran, set(stopped), health) == (0, {"script-src-elem", "connect-src"}, 200)
    assert any("Content Security Policy" in line for line in watched.told)


def test_a_name_that_leads_here_from_elsewhere_is_refused(open_page, address):
    port = address.rstrip("/").rpartition(":")[2]
    assert httpx.get(address, headers={"host": f"evil.example:{port}"}).status_code == 421
    watched = open_page(address.replace("127.0.0.1", "localhost"))
    told(watched.page, "#rows-status", "of 6")
    foreign = open_page(f"http://evil.localhost:{port}/")  # a name of another's that is this machine
    assert "wrong_host" in foreign.page.inner_text("body")
    assert foreign.page.locator("#rows-table").count() == 0
