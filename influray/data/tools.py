"""Tool calls and tool definitions -> the shape in which chat templates read them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from influray.data.turns import BadRow, decoded, kind, parse_within, shown

MAX_QUOTED = 4  # JSON texts of JSON texts that are taken apart


def tool_calls(value: Any, where: str) -> list[dict[str, Any]]:
    """Return the calls of a message: `{"type": "function", "function": {"name", "arguments"}, ...}` each.

    A call may be bare (`{"name", "arguments"}`), and each of it a JSON text. Arguments that are the JSON text of an
    object become the object; any other text stays as it is.

    Raises:
        BadRow: not a list of calls, or a call without a name.
    """
    calls = decoded(value, where)
    if isinstance(calls, dict):
        calls = [calls]
    if not isinstance(calls, list):
        raise BadRow(f"{where} must be a list of objects, found {shown(value)}")
    return [_call(decoded(call, where), where) for call in calls]


def function_calls(value: Any, where: str) -> list[dict[str, Any]]:
    """Return the calls that a turn of a speaker such as `function_call` holds. Raises BadRow as `tool_calls`."""
    if isinstance(value, str):
        value = parse_within(value, where)
    if not value:
        raise BadRow(f"{where} must be a call with name and arguments, found {kind(value)}")
    return tool_calls(value, where)


def tool_definitions(value: Any, where: str = "tools") -> tuple[Any, ...]:
    """Return the functions that a conversation may call; `parameters` that are a JSON text are decoded.

    Raises:
        BadRow: neither a list of objects nor the JSON text of one.
    """
    if isinstance(value, str) and not value.strip():
        return ()
    tools = decoded(value, where)
    if isinstance(tools, dict):
        tools = [tools]
    if not isinstance(tools, list):
        raise BadRow(f"{where} must be a list of objects or its JSON text, found {shown(value)}")
    return tuple(_definition(decoded(tool, where), where) for tool in tools if tool is not None)


def legacy_functions(value: Any) -> tuple[Any, ...]:
    """Return the tools that the older key `functions` stands for. Raises BadRow as `tool_definitions`."""
    tools = tool_definitions(value, "functions")
    return tuple(tool if "function" in tool else {"type": "function", "function": tool} for tool in tools)


def _call(call: Any, where: str) -> dict[str, Any]:
    if not isinstance(call, dict):
        raise BadRow(f"{where} must be a list of objects, found {shown(call)}")
    call = {key: value for key, value in call.items() if value is not None}
    if "function" in call:
        function = decoded(call["function"], where)
        if isinstance(function, str):  # {"function": name, "arguments": ..}
            function = {"name": function, "arguments": call.pop("arguments", None)}
        shell = call
    else:
        shell = {"type": "function", **{key: value for key, value in call.items() if key in ("id", "type", "index")}}
        function = {key: value for key, value in call.items() if key not in ("id", "type", "index")}
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise BadRow(f"{where}: a call without the name of its function ({shown(call)})")
    function = dict(function)
    if "arguments" not in function and isinstance(function.get("parameters"), dict | str):
        function["arguments"] = function.pop("parameters")
    function["arguments"] = _arguments(function.get("arguments"))
    return {**shell, "function": function}


def _arguments(value: Any) -> Any:
    if value is None or value == "":
        return {}
    inner = value
    for _ in range(MAX_QUOTED):
        if not isinstance(inner, str):
            break
        try:
            inner = parse_within(inner, "arguments")
        except BadRow:
            return value
    return inner if isinstance(inner, dict) else value


def _definition(tool: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(tool, dict):
        raise BadRow(f"{where} must be a list of objects or its JSON text, found {shown(tool)}")
    inside = tool.get("function")
    if isinstance(inside, str) and inside.lstrip().startswith("{"):
        inside = parse_within(inside, where)
    if isinstance(inside, dict):
        return {**tool, "function": _with_parameters(inside, where)}
    return _with_parameters(tool, where)


def _with_parameters(function: Mapping[str, Any], where: str) -> Mapping[str, Any]:
    parameters = function.get("parameters")
    if isinstance(parameters, str) and parameters.lstrip().startswith("{"):
        return {**function, "parameters": parse_within(parameters, f"{where}: parameters")}
    return function
