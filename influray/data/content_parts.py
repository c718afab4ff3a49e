"""A content that is a list of parts -> its text, tool calls, results of tools and reasoning."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from influray.data.tools import tool_calls
from influray.data.training_flags import part_flag
from influray.data.turns import BadRow, shown

TEXT_PARTS = ("text", "input_text", "output_text")
TEXT_KEYS = ("text", "content", "value")


@dataclass(slots=True)
class Parts:
    """What a list of parts holds. `results` are (text, keys of the message) of tools; `trained` is of all the text."""

    text: str = ""
    trained: bool = True
    reasoning: str = ""
    calls: list[dict[str, Any]] = field(default_factory=list)
    results: list[tuple[str, dict[str, Any]]] = field(default_factory=list)


def read_parts(parts: Sequence[Any], where: str, role: str) -> Parts:
    """Return what a list of parts holds: texts are joined, and a picture or sound becomes its type in brackets.

    Calls and results of tools may be blocks of Anthropic's kind (`tool_use`, `tool_result`, `thinking`).

    Raises:
        BadRow: a part without text or type, no text at all, an answer that is not only text, or one whose parts are
            trained in part.
    """
    found, texts, flags, others = Parts(), [], set(), 0
    for part in parts:
        if isinstance(part, str):
            part = {"text": part}
        if not isinstance(part, dict):
            raise BadRow(f"{where}: a part without text or type ({shown(part)})")
        kind = part.get("type")
        text = next((part[key] for key in TEXT_KEYS if isinstance(part.get(key), str)), None)
        if text is not None and (kind is None or kind in TEXT_PARTS):
            texts.append(text)
            flags.add(part_flag(part, where) is not False)
        elif kind == "tool_use" and role == "assistant":
            call = {"id": part.get("id"), "name": part.get("name"), "arguments": part.get("input")}
            found.calls += tool_calls([call], where)
        elif kind == "tool_result" and role in ("user", "tool"):
            handle = part.get("tool_use_id")
            extra = {} if handle is None else {"tool_call_id": handle}
            found.results.append((_result(part.get("content"), where), extra))
        elif kind == "thinking" and role == "assistant" and isinstance(part.get("thinking"), str):
            found.reasoning += part["thinking"]
        elif isinstance(kind, str) and kind not in TEXT_PARTS:
            texts.append(f"[{kind}]")
            others += 1
        else:
            raise BadRow(f"{where}: a part without text or type ({shown(part)})")
    if len(texts) == others and not (found.calls or found.results):
        raise BadRow(f"{where} has no text part")
    if others and role == "assistant":
        raise BadRow(f"{where}: an answer that is not only text cannot be trained on")
    if role == "assistant" and len(flags) > 1:
        raise BadRow(f"{where}: a turn is trained as a whole; some of its parts say train: false and others do not")
    found.text, found.trained = "".join(texts), flags != {False}
    return found


def _result(content: Any, where: str) -> str:
    if content is None:
        return ""
    if isinstance(content, list) and content:
        return read_parts(content, where, "tool").text
    return content if isinstance(content, str) else json.dumps(content, ensure_ascii=False)
