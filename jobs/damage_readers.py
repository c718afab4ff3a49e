"""What reads a run: each verb as a call that gives the bytes of its answer, so that two answers can be compared.

All run in this process, without Ray. A call may raise one of USER_ERRORS; anything else is a bug.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

QUESTION, ANSWER = "What is 12 + 5?", "17"


def plain(value: Any) -> bytes:
    """Return what stands for a value, byte for byte."""

    def known(one: Any) -> Any:
        if isinstance(one, np.ndarray):
            return [str(one.dtype), one.shape, one.tobytes().hex()]
        return dataclasses.asdict(one) if dataclasses.is_dataclass(one) and not isinstance(one, type) else repr(one)

    return json.dumps(value, sort_keys=True, default=known).encode()


def query(run_dir: Path, config: Path) -> bytes:
    from influray.runs import open_run

    found = open_run(run_dir).query(QUESTION, ANSWER, k=10, tokens=True).as_plain()
    return plain({name: value for name, value in found.items() if name != "seconds"})


def like(run_dir: Path, config: Path) -> bytes:
    """A query by the id of a row, which needs no model."""
    from influray.runs import open_run

    run = open_run(run_dir)
    found = run.query(like=run.attribution().target_ids[0], k=10).as_plain()
    return plain({name: value for name, value in found.items() if name != "seconds"})


def audit(run_dir: Path, config: Path) -> bytes:
    from influray import pipeline

    return plain(pipeline.audit(run_dir)[1])


def compare(run_dir: Path, config: Path) -> bytes:
    from influray.report.compare import compare as compare_runs

    return plain(compare_runs([run_dir]).as_plain())


def collect(run_dir: Path, config: Path) -> bytes:
    """All that the report says."""
    from influray.report.collect import collect as collect_all

    return repr(dataclasses.replace(collect_all(run_dir), name="")).encode()


def plan(run_dir: Path, config: Path) -> bytes:
    from influray import pipeline

    steps = pipeline.plan(config, run_dir=run_dir, device="h100").steps
    return plain([(step.name, step.state, step.rows, step.tokens) for step in steps])


def inspect(run_dir: Path, config: Path) -> bytes:
    from influray import pipeline

    return plain(
        [pipeline.inspect(config, run_dir=run_dir, split=split, row=1) for split in ("pool", "target", "test")]
    )


def index(run_dir: Path, config: Path) -> bytes:
    from influray import pipeline

    return plain(pipeline.index(run_dir, "flat"))


def python(run_dir: Path, config: Path) -> bytes:
    """What a Python user holds: matrix, features, selections, evaluations; and a selection of the stored matrix."""
    import influray
    from influray.runs import open_run

    run = open_run(run_dir)
    matrix, store = run.attribution(), run.datastore("pool")
    names = [selector.name for selector in run.config.selectors]
    chosen = influray.select(run_dir / "attribution", None, 10, method="bids")
    return plain(
        [
            [matrix.gather(matrix.rows), matrix.groups, dataclasses.asdict(matrix.stats)],
            [store.features(), store.column("row"), store.column("loss")],
            [dataclasses.asdict(run.selection(name)) for name in names],
            [run.evaluation("base"), run.evaluation(names[0])],
            [chosen.rows, chosen.merit],
        ]
    )


def serve(run_dir: Path, config: Path) -> bytes:
    """The answers of the HTTP application; one that refuses is left out of the bytes and raised where all is said."""
    from influray.ask.http_app import build_app
    from influray.protocols import ArtifactMismatch
    from influray.runs import open_run

    run = open_run(run_dir)

    async def ask(asked: Any) -> dict[str, Any]:
        answer = run.engine.ask(asked).as_plain()
        return {"answer": {**answer, "seconds": 0.0}}

    application = build_app(run.directory, run.config, ask)
    name = run.config.selectors[0].name
    identity = json.dumps({"like": run.attribution().target_ids[0], "k": 5}).encode()
    calls = [
        ("GET", "/overview", b""),
        ("GET", "/selection", b""),
        ("GET", f"/selection/{name}?text=a", b""),
        ("POST", "/query", identity),
    ]
    found = [asyncio.run(_call(application, *call)) for call in calls]
    first = json.loads(found[2][1])["rows"][0]["id"] if found[2][0] == 200 else "none"
    found.append(asyncio.run(_call(application, "GET", f"/explain/{first}", b"")))
    refused = [json.loads(body)["detail"] for status, body in found if status == 409]
    if refused:
        raise ArtifactMismatch(refused[0])
    return b"\n".join(b"%d %s" % answer for answer in found)


async def _call(application: Any, method: str, path: str, body: bytes) -> tuple[int, bytes]:
    import httpx

    transport = httpx.ASGITransport(app=application)
    async with httpx.AsyncClient(transport=transport, base_url="http://testserver") as client:
        answer = await client.request(method, path, content=body, headers={"content-type": "application/json"})
    return answer.status_code, answer.content


READERS: dict[str, Callable[[Path, Path], bytes]] = {
    "plan": plan,
    "inspect": inspect,
    "query": query,
    "query --like": like,
    "audit": audit,
    "compare": compare,
    "report (what it says)": collect,
    "index": index,
    "serve": serve,
    "Python": python,
}
