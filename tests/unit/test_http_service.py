"""The service's application in-process: who may ask, what answers and errors look like, hostile text.

The engine behind it is the real one; only Ray Serve, which batches and queues, is left out.
"""

from __future__ import annotations

import asyncio
import base64
import json
import re
from typing import Any

import httpx
import numpy as np
import pytest

from influray.ask import http_app
from influray.ask.admission import Busy
from influray.ask.http_app import build_app, error_of
from influray.ask.http_guard import MAX_BODY, Access, Guard
from influray.ask.query import Asked
from influray.ask.serving import Place, read_token, serve
from influray.protocols import ConfigError
from influray.runs import Run
from tests.unit.asked_run import build_asked_run
from tests.unit.synthetic_run import HOSTILE, HOSTILE_SOURCE

TOKEN = "0123456789abcdef0123"


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Run:
    return build_asked_run(tmp_path_factory.mktemp("served"))


def guarded(run: Run, ask: Any = None, **access: Any) -> Guard:
    async def real(asked: Asked) -> dict[str, Any]:
        (found,) = run.engine.ask_many([asked])
        if isinstance(found, Exception):
            status, body = error_of(found)
            return {"status": status, "error": body}
        return {"answer": found.as_plain()}

    return Guard(build_app(run.directory, run.config, ask or real), Access(**access))


def send(app: Guard, method: str, path: str, base: str = "http://127.0.0.1:8899", **options: Any) -> httpx.Response:
    async def ask() -> httpx.Response:
        transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url=base) as client:
            return await client.request(method, path, **options)

    return asyncio.run(ask())


def test_a_query_over_http_is_the_answer_of_the_engine(run):
    asked = {"prompt": "What is 7+8?", "answer": "15", "k": 3, "tokens": True}
    answer = send(guarded(run), "POST", "/query", json=asked)
    assert answer.status_code == 200
    expected = run.query("What is 7+8?", "15", k=3, tokens=True).as_plain()
    assert {**answer.json(), "seconds": 0} == json.loads(json.dumps({**expected, "seconds": 0}))
    turns = [{"role": "user", "content": "What is 7+8?"}, {"role": "assistant", "content": "15"}]
    for same in ({"question": "What is 7+8?", "answer": "15"}, {"messages": turns}):
        again = send(guarded(run), "POST", "/query", json={**same, "k": 3, "tokens": True})
        assert again.status_code == 200
        assert again.json()["helpful"] == answer.json()["helpful"]
    like = send(guarded(run), "POST", "/query", json={"like": "t-sum-50", "k": 2}).json()
    assert like["asked"] == "target t-sum-50"
    assert like["tokens"] is None


@pytest.mark.parametrize(
    ("method", "path", "options", "status", "code", "says"),
    [
        ("POST", "/query", {"json": {"prompt": "", "answer": "b"}}, 422, "bad_question", "question: it is empty"),
        ("POST", "/query", {"json": {"prompt": "a"}}, 422, "bad_question", "answer: there is none"),
        ("POST", "/query", {"json": {}}, 422, "bad_question", "question: it is empty"),
        ("POST", "/query", {"json": {"prompt": "a", "question": "b", "answer": "c"}}, 422, "invalid", "question: "),
        (
            "POST",
            "/query",
            {"json": {"messages": [{"role": "user"}], "answer": "b"}},
            422,
            "bad_question",
            "in place of",
        ),
        ("POST", "/query", {"json": {"messages": [{"role": "user"}]}}, 422, "bad_question", "messages: "),
        ("POST", "/query", {"json": {"messages": ["a"]}}, 422, "invalid", "messages.0: "),
        ("POST", "/query", {"json": {"like": "nobody"}}, 404, "unknown_id", "'nobody'"),
        ("POST", "/query", {"json": {"like": "sum-3", "k": 0}}, 422, "invalid", "k: "),
        ("POST", "/query", {"json": {"like": "sum-3", "k": 99}}, 422, "bad_question", "expected 1 to 29"),
        ("POST", "/query", {"json": {"like": "sum-3", "kk": 1}}, 422, "invalid", "kk: "),
        ("POST", "/query", {"json": ["a"]}, 422, "invalid", ""),
        ("POST", "/query", {"json": {"prompt": "a" * 70_000, "answer": "b"}}, 422, "invalid", "prompt: "),
        ("POST", "/query", {"content": b"{", "headers": {"content-type": "application/json"}}, 422, "invalid", ""),
        ("POST", "/query", {"content": b"{}", "headers": {"content-type": "text/plain"}}, 415, "not_json", ""),
        ("POST", "/query", {"content": b"{}"}, 415, "not_json", ""),
        ("POST", "/query", {"json": {"prompt": "a" * MAX_BODY}}, 413, "too_large", str(MAX_BODY)),
        ("GET", "/query", {}, 405, "http_405", ""),
        ("GET", "/explain/nobody", {}, 404, "unknown_id", "'nobody'"),
        ("GET", "/explain/sum-3?selection=none", {}, 404, "unknown_id", "'none'"),
        ("GET", "/selection/none", {}, 404, "unknown_id", "'none'"),
        ("GET", "/selection/..%2F..", {}, 404, "http_404", ""),
        ("GET", "/selection/bids?limit=100000", {}, 400, "bad_request", "limit"),
        ("GET", "/selection/bids?sort=none", {}, 400, "bad_request", "sort"),
        ("GET", "/selection/bids?offset=x", {}, 422, "invalid", "offset"),
        ("GET", "/nothing", {}, 404, "http_404", ""),
        ("GET", "/docs", {}, 404, "http_404", "/openapi.json"),
        ("GET", "/health?" + "x" * 9000, {}, 414, "too_long", ""),
    ],
)
def test_a_wrong_request_gets_its_status_a_code_and_a_sentence(run, method, path, options, status, code, says):
    answer = send(guarded(run), method, path, **options)
    assert (answer.status_code, answer.json()["code"]) == (status, code)
    assert says in answer.json()["detail"]
    assert len(answer.content) < 3000  # what was sent does not come back


def test_a_body_without_a_length_is_bounded_too(run):
    async def parts():
        for _ in range(40):
            yield b"x" * 10_000

    headers = {"content-type": "application/json"}
    assert send(guarded(run), "POST", "/query", content=parts(), headers=headers).status_code == 413


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"host": "evil.example"}, 421),
        ({"host": "evil.example:8899"}, 421),
        ({"host": "127.0.0.1.evil.example"}, 421),
        ({"host": ""}, 421),
        ({"host": "localhost:8899"}, 200),
        ({"host": "LOCALHOST"}, 200),
        ({"host": "[::1]:8899"}, 200),
        ({"host": "lab.example:80"}, 200),
        ({"origin": "http://evil.example"}, 403),
        ({"origin": "null"}, 403),
        ({"origin": "http://127.0.0.1:1"}, 403),
        ({"origin": "http://127.0.0.1:8899"}, 200),
        ({"sec-fetch-site": "cross-site"}, 403),
        ({"sec-fetch-site": "same-site", "sec-fetch-mode": "cors"}, 403),
        ({"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate"}, 200),
        ({"sec-fetch-site": "same-origin"}, 200),
    ],
)
def test_only_the_services_own_names_and_pages_may_ask(run, headers, status):
    assert send(guarded(run, hosts=("lab.example",)), "GET", "/health", headers=headers).status_code == status


@pytest.mark.parametrize(
    ("authorization", "status"),
    [
        (None, 401),
        ("Bearer wrong", 401),
        (f"Bearer {TOKEN}x", 401),
        (TOKEN, 401),
        ("Basic !!!", 401),
        ("Bearer \u00e9", 401),
        (f"Bearer {TOKEN}", 200),
        (f"bearer {TOKEN}", 200),
        ("Basic " + base64.b64encode(f"anybody:{TOKEN}".encode()).decode(), 200),
        ("Basic " + base64.b64encode(b"anybody:other").decode(), 401),
    ],
)
def test_with_a_token_nothing_is_told_without_it(run, authorization, status):
    headers = {} if authorization is None else {"authorization": authorization.encode("latin-1")}
    for path in ("/health", "/", "/openapi.json", "/nothing"):
        answer = send(guarded(run, token=TOKEN), "GET", path, headers=headers)
        assert (answer.status_code == 401) == (status == 401)
        if status == 401:
            assert "www-authenticate" in answer.headers
            assert answer.json()["code"] == "no_token"


def test_every_answer_has_its_security_headers_and_no_cors(run):
    app = guarded(run)
    for path in ("/", "/health", "/nothing", "/openapi.json", "/overview"):
        headers = send(app, "GET", path).headers
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["x-frame-options"] == "DENY"
        assert headers["cache-control"] == "no-store"
        assert "default-src 'none'" in headers["content-security-policy"]
        assert "frame-ancestors 'none'" in headers["content-security-policy"]
        assert not [name for name in headers if name.startswith("access-control")]


def test_the_page_runs_its_own_script_alone_and_hostile_rows_stay_text(run):
    app = guarded(run)
    first, second = (send(app, "GET", "/") for _ in range(2))
    nonces = [re.findall(r"nonce-([\w-]+)", page.headers["content-security-policy"]) for page in (first, second)]
    assert len(set(nonces[0])) == 1
    assert nonces[0][0] != nonces[1][0]
    assert f'nonce="{nonces[0][0]}"' in first.text
    lowered = first.text.lower()
    assert not re.search(r"""(src|href)=["']?(https?:)?//""", lowered)  # nothing from elsewhere
    for text in (*HOSTILE, HOSTILE_SOURCE):
        if "<" in text:
            assert text.lower() not in lowered


def test_hostile_rows_come_as_json_and_are_found(run):
    app = guarded(run)
    for i, text in enumerate(HOSTILE):
        answer = send(app, "GET", f"/explain/hostile-{i}")
        assert answer.headers["content-type"] == "application/json"
        assert answer.json()["text"] == f"user: {text}\n\nassistant: {text} too"
        assert answer.json()["source"] == HOSTILE_SOURCE


def test_a_row_is_explained_by_the_numbers_of_the_matrix(run):
    app = guarded(run)
    selection = run.selection("bids")
    attribution = run.attribution()
    ids = {hit.row: hit.id for hit in run.query(like="t-sum-50", k=29).helpful}
    row = int(selection.rows[2])
    found = send(app, "GET", f"/explain/{ids[row]}?selection=bids").json()
    z_T = (attribution.gather(np.array([row]))[0] - attribution.stats.mean_T) / attribution.stats.std_T
    assert (found["rank"], found["merit"]) == (3, pytest.approx(float(selection.merit[2])))
    assert found["winner"]["id"] == attribution.target_ids[selection.column[2]]
    assert found["winner"]["text"].startswith("user: ")
    best = int(np.argmax(z_T))
    assert found["targets"][0]["id"] == attribution.target_ids[best]
    assert found["targets"][0]["z"] == pytest.approx(float(z_T[best]), rel=1e-5)
    tasks = {task: z_T[np.array(attribution.groups) == task].mean() for task in set(attribution.groups)}
    assert {one["task"]: one["z"] for one in found["tasks"]} == pytest.approx(tasks)
    like = run.query(like=ids[row], k=29)
    cosine = {hit.row: hit.influence for hit in like.helpful}  # vectors of pool rows are units, but for float16
    others = [r for r in selection.rows.tolist() if r != row]
    assert {one["row"] for one in found["neighbours"]} == set(others)
    similarity = [one["similarity"] for one in found["neighbours"]]
    assert similarity == sorted(similarity, reverse=True)
    assert similarity == pytest.approx([cosine[one["row"]] for one in found["neighbours"]], abs=2e-3)
    out = next(r for r in ids if r not in selection.rows.tolist())
    stranger = send(app, "GET", f"/explain/{ids[out]}?selection=bids").json()
    assert (stranger["rank"], stranger["merit"], stranger["winner"]) == (None, None, None)
    assert len(stranger["neighbours"]) == 6


def test_selections_are_listed_and_paged(run):
    app = guarded(run)
    listed = send(app, "GET", "/selection").json()
    assert [(one["name"], one["budget"]["examples"]) for one in listed] == [("bids", 6), ("random", 6)]
    page = send(app, "GET", "/selection/bids?limit=2&offset=1").json()
    assert page["total"] == 6
    assert [one["row"] for one in page["rows"]] == run.selection("bids").rows[1:3].tolist()
    schema = send(app, "GET", "/openapi.json").json()
    assert {"/query", "/explain/{id}", "/selection", "/selection/{name}", "/health", "/overview"} <= set(
        schema["paths"]
    )


def test_a_full_queue_says_when_to_come_again_and_a_late_answer_is_a_timeout(run, monkeypatch):
    async def busy(asked: Asked) -> dict[str, Any]:
        raise Busy(2)

    answer = send(guarded(run, busy), "POST", "/query", json={"like": "sum-3"})
    assert (answer.status_code, answer.json()["code"]) == (503, "busy")
    assert int(answer.headers["retry-after"]) >= 1

    async def never(asked: Asked) -> dict[str, Any]:
        await asyncio.sleep(60)
        raise AssertionError

    monkeypatch.setattr(http_app, "QUERY_SECONDS", 0.05)
    answer = send(guarded(run, never), "POST", "/query", json={"like": "sum-3"})
    assert (answer.status_code, answer.json()["code"]) == (504, "timeout")


def test_other_machines_need_a_token_and_a_token_is_long(run, tmp_path):
    with pytest.raises(ConfigError, match="--host: 0.0.0.0 can be reached from other machines; name a --token-file"):
        serve(run.directory, run.config, Place("0.0.0.0"))
    with pytest.raises(ConfigError, match="--workers: found 0"):
        serve(run.directory, run.config, Place(), workers=0)
    with pytest.raises(ConfigError, match="--port: nothing can listen at 127.0.0.1 port 70000"):
        serve(run.directory, run.config, Place(port=70000))
    for text in ("", "short\n", "a token with spaces in it", "\u00e9" * 20):
        (tmp_path / "token").write_text(text)
        with pytest.raises(ConfigError, match="--token-file"):
            read_token(tmp_path / "token")
    (tmp_path / "token").write_text(f"{TOKEN}\n")
    assert read_token(tmp_path / "token") == TOKEN
    with pytest.raises(ConfigError, match="cannot be read"):
        read_token(tmp_path / "none")
