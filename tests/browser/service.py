"""A service of one page's worth: the explorer's own functions over http.server, and an answer to every query."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

import numpy as np

from influray.protocols import ConfigError
from influray.report.explorer.data import chosen_rows, overview
from influray.report.explorer.page import explorer_page
from influray.report.explorer.rows import open_chosen
from influray.report.explorer.sample import served
from influray.store.attribution import Attribution
from influray.store.run_directory import RunDirectory

POLICY = (
    "default-src 'none'; script-src 'nonce-{0}'; style-src 'nonce-{0}'; img-src data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


@contextmanager
def serving(run: RunDirectory) -> Iterator[tuple[str, list[dict]]]:
    """Serve the page of `run`; yield its address and the list of queries as they come."""
    queries: list[dict] = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(run.path, queries))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/", queries
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def hits(run: Path, k: int, last: bool) -> list[dict]:
    """The first `k` rows of the first selection, or its last ones, as hits of a query."""
    total = len(open_chosen(run, "bids"))
    rows = chosen_rows(run, "bids", offset=total - k if last else 0, limit=k)["rows"]
    sign = -1.0 if last else 1.0
    keys = ("row", "id", "source", "text", "cut")
    return [
        {
            **{key: row[key] for key in keys},
            "influence": sign * 0.01 * (k - i),
            "z": sign * (k - i),
            "norm": 1.5,
            "selections": ["bids"],
        }
        for i, row in enumerate(rows)
    ]


def _handler(run: Path, queries: list[dict]) -> type[BaseHTTPRequestHandler]:
    numbers = overview(run)

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_args) -> None:
            pass

        def answer(self, status: int, body: bytes, kind: str, **headers: str) -> None:
            self.send_response(status)
            for name, value in {"Content-Type": kind, "Content-Length": str(len(body)), **headers}.items():
                self.send_header(name.replace("_", "-"), value)
            self.end_headers()
            self.wfile.write(body)

        def json(self, value, status: int = 200) -> None:
            self.answer(status, json.dumps(value).encode(), "application/json")

        def do_GET(self) -> None:
            url = urlsplit(self.path)
            parts = [unquote(part) for part in url.path.strip("/").split("/")]
            asked = {name: values[0] for name, values in parse_qs(url.query).items()}
            if parts == [""]:
                html = explorer_page(numbers, live=True, nonce="abc123")
                self.answer(
                    200, html.encode(), "text/html; charset=utf-8", Content_Security_Policy=POLICY.format("abc123")
                )
            elif parts[0] == "selection":
                counts = {name: int(asked.pop(name)) for name in ("offset", "limit", "budget") if name in asked}
                try:
                    self.json(chosen_rows(run, parts[1], **asked, **counts))
                except ConfigError as error:
                    self.json({"code": "bad_request", "detail": str(error)}, 400)
            elif parts[0] == "explain":
                self.json(explained(run, parts[1], asked["selection"]))
            else:
                self.json({"code": "http_404", "detail": "Not Found"}, 404)

        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            queries.append(asked)
            if asked.get("answer") == "refused":
                self.json({"code": "bad_question", "detail": "answer: <b>too long</b>"}, 422)
                return
            tokens = [
                {"text": text, "share": share, "influence": 0.2 * share}
                for text, share in ((" one", 0.75), ("<i>", 0.5), ("two", -0.25))
            ]
            self.json(
                {
                    "seconds": 0.25, "mean": 0.001, "std": 0.02, "exact": True, "loss": 1.25, "grad_norm": 3.5, "truncated": False,
                    "helpful": hits(run, asked["k"], False), "harmful": hits(run, asked["k"], True),
                    "tokens": tokens if asked.get("tokens") else None,
                }
            )  # fmt: skip

    return Handler


def explained(run: Path, id: str, selection: str) -> dict:
    chosen = open_chosen(run, selection)
    found = chosen_rows(run, selection, text=id)["rows"]
    row = next(row for row in found if row["id"] == id)
    tasks = served(Attribution(RunDirectory(run).attribution), np.array([row["row"]]))[0]
    winner = (
        {"id": row["target_id"], "task": row["task"], "text": "user: a target <i>\n\nassistant: yes"}
        if row["task"]
        else None
    )
    keys = ("row", "id", "source", "rank")
    return {
        **{key: row[key] for key in ("row", "id", "source", "text", "cut", "rank", "merit")},
        "selection": selection,
        "selections": {selection: row["rank"]},
        "winner": winner,
        "tasks": [{"task": task, "z": z} for task, z in tasks],
        "targets": [{"id": "sums-1", "task": "sums", "text": "user: <u>", "z": 2.5, "influence": 0.1}],
        "neighbours": [
            {**{key: facts[key] for key in keys}, "similarity": 0.9}
            for facts in (chosen.facts(place) for place in range(3))
            if facts["id"] != id
        ],
    }
