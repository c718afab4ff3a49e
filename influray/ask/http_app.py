"""The service as a FastAPI application: its routes, what they take and give, and how errors read.

The caller passes the coroutine that answers a query; serving.py has one over Ray Serve.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping
from functools import cached_property
from typing import Annotated, Any

from fastapi import FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse
from pydantic import AliasChoices, BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException

import influray
from influray.ask.admission import Busy
from influray.ask.answers import QueryAnswer
from influray.ask.explain import Explainer
from influray.ask.http_guard import page_policy
from influray.ask.query import Asked, UnknownId
from influray.config import Config
from influray.data.question import Question
from influray.protocols import USER_ERRORS, ArtifactMismatch, DataError
from influray.report.explorer.data import chosen_rows, overview
from influray.report.explorer.page import explorer_page
from influray.store.run_directory import RunDirectory
from influray.store.selection import read_summary

MAX_ROWS = 500  # of an answer, at each end
MAX_TEXT = 64 * 2**10  # characters of a prompt or an answer
QUERY_SECONDS = 60.0
Ask = Callable[[Asked], Awaitable[dict[str, Any]]]


class QueryRequest(BaseModel):
    """A question with its answer, a conversation, or the id of a row whose stored vector asks."""

    model_config = ConfigDict(extra="forbid")

    prompt: str = Field(
        default="",
        max_length=MAX_TEXT,
        validation_alias=AliasChoices("prompt", "question"),
        description="What is asked; `question` is the same.",
    )
    answer: str = Field(default="", max_length=MAX_TEXT)
    system: str = Field(default="", max_length=MAX_TEXT)
    messages: list[dict[str, Any]] = Field(
        default=[], description="Turns as in a pool row, `role` and `content`, in place of the three."
    )
    like: str = Field(default="", max_length=1000, description="Id of a target or a pool row, in place of text.")
    k: int = Field(default=20, ge=1, le=MAX_ROWS, description="Rows at each end.")
    tokens: bool = Field(default=False, description="Split the influence over the answer's tokens.")

    def asked(self) -> Asked:
        record = json.dumps({"messages": self.messages}).encode() if self.messages else b""
        text = self.prompt or self.answer or self.system or record
        question = Question(self.prompt, self.answer, self.system, record) if text or not self.like else None
        return Asked(question, self.like, self.k, self.tokens)


class ErrorModel(BaseModel):
    """Every error: `code` for programs, `detail` for people."""

    code: str
    detail: str


_ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorModel} for status in (400, 404, 409, 413, 415, 422, 503, 504)
}


class Pages:
    """What the service tells of a finished run; everything is read when it is first asked for."""

    def __init__(self, directory: RunDirectory, config: Config) -> None:
        self.directory = directory
        self.config = config

    @cached_property
    def explainer(self) -> Explainer:
        return Explainer(self.directory, self.config)

    @cached_property
    def overview(self) -> dict[str, Any]:
        return overview(self.directory.path)

    def selections(self) -> list[dict[str, Any]]:
        """Return name, method, options, budget and counts of each selection."""
        keys = ("name", "method", "options", "budget", "counts")
        summaries = [read_summary(self.directory.selection(name)) for name in self.explainer.names]
        return [{key: summary[key] for key in keys} for summary in summaries]


def build_app(directory: RunDirectory, config: Config, ask: Ask) -> FastAPI:
    """Return the application over a run. `ask` raises `Busy` where no more queries can wait."""
    app = FastAPI(
        title="influray",
        version=influray.__version__,
        description="Which rows of a pool help or harm: the gradient datastore of one run.",
        docs_url=None,  # these pages load their scripts from a CDN
        redoc_url=None,
        responses=_ERRORS,
    )
    pages = Pages(directory, config)
    _add_errors(app)

    @app.get("/health")
    async def health() -> dict[str, str]:
        """Whether the service stands, of which run and version. It asks for no model."""
        return {"status": "ok", "run": directory.path.name, "version": influray.__version__}

    @app.get("/docs", include_in_schema=False)
    def no_docs() -> None:
        raise HTTPException(
            404, "its scripts would come from a CDN: the routes stand in /openapi.json and docs/http.md"
        )

    @app.get("/overview")
    def numbers() -> dict[str, Any]:
        """The figures of the explorer's first page: pool, tasks, selections, balance, results."""
        return pages.overview

    @app.get("/selection")
    def selections() -> list[dict[str, Any]]:
        """Name, method, options, budget and counts of each selection."""
        return pages.selections()

    @app.get("/selection/{name}")
    def selection(
        name: str,
        text: str = "",
        source: str = "",
        task: str = "",
        sort: str = "rank",
        offset: int = 0,
        limit: int = 50,
        budget: int = 0,
    ) -> dict[str, Any]:
        """Rows of a selection in the order asked for; `text` is looked for in ids and conversations."""
        if name not in pages.explainer.names:
            raise UnknownId(f"selection: the run has none called {name[:80]!r}")
        filters: dict[str, Any] = {"text": text, "source": source, "task": task, "sort": sort}
        return chosen_rows(directory.path, name, **filters, offset=offset, limit=limit, budget=budget)

    @app.get("/explain/{id:path}")
    def explain(id: str, selection: Annotated[str, Query(max_length=100)] = "") -> dict[str, Any]:
        """Why a pool row was chosen or not: its influence on each task and target, its rank, its neighbours."""
        if selection and selection not in pages.explainer.names:
            raise UnknownId(f"selection: the run has none called {selection[:80]!r}")
        return pages.explainer.explain(id, selection)

    @app.post("/query", response_model=QueryAnswer)
    async def query(request: QueryRequest) -> JSONResponse:
        """The pool rows that would help, and those that would harm, the answer to a question most."""
        async with asyncio.timeout(QUERY_SECONDS):
            found = await ask(request.asked())
        return JSONResponse(found.get("answer") or found["error"], status_code=found.get("status", 200))

    @app.get("/", response_class=HTMLResponse)
    def page(request: Request) -> HTMLResponse:
        """A page to look around in."""
        nonce = request.state.nonce
        text = explorer_page(pages.overview, live=True, nonce=nonce)
        return HTMLResponse(text, headers={"content-security-policy": page_policy(nonce)})

    return app


def error_of(error: Exception) -> tuple[int, dict[str, str]]:
    """Return the status and body that tell a user's error."""
    if isinstance(error, UnknownId):
        return 404, {"code": "unknown_id", "detail": str(error)}
    if isinstance(error, DataError):
        return 422, {"code": "bad_question", "detail": str(error)}
    if isinstance(error, ArtifactMismatch):
        return 409, {"code": "artifact_mismatch", "detail": str(error)}
    return 400, {"code": "bad_request", "detail": str(error)}


def _add_errors(app: FastAPI) -> None:
    async def of_user(request: Request, error: Exception) -> JSONResponse:
        status, body = error_of(error)
        return JSONResponse(body, status_code=status)

    for kind in USER_ERRORS:
        app.add_exception_handler(kind, of_user)

    @app.exception_handler(Busy)
    async def busy(request: Request, error: Busy) -> JSONResponse:
        body = {"code": "busy", "detail": "too many queries wait; ask again in a moment"}
        return JSONResponse(body, status_code=503, headers={"retry-after": str(error.retry_after)})

    @app.exception_handler(TimeoutError)
    async def late(request: Request, error: TimeoutError) -> JSONResponse:
        return JSONResponse(
            {"code": "timeout", "detail": f"no answer within {QUERY_SECONDS:g} seconds"}, status_code=504
        )

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        # Without what was sent: a large or hostile input is not to come back.
        told = "; ".join(f"{'.'.join(map(str, one['loc'][1:]))}: {one['msg']}" for one in error.errors()[:5])
        return JSONResponse({"code": "invalid", "detail": told[:2000]}, status_code=422)

    @app.exception_handler(HTTPException)
    async def plain(request: Request, error: HTTPException) -> JSONResponse:
        body = {"code": f"http_{error.status_code}", "detail": str(error.detail)}
        headers: Mapping[str, str] | None = error.headers
        return JSONResponse(body, status_code=error.status_code, headers=headers)
