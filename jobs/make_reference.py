"""Write the pages of docs/ that are made from the code: keys of a config, verbs, routes of the service.

    python jobs/make_reference.py           a test sees that they are up to date

What stands beside a field of a config (its comment) is what the page says of it.
"""

from __future__ import annotations

import inspect
import io
import re
import sys
import tokenize
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer
from pydantic import BaseModel
from pydantic.fields import FieldInfo

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from influray.ask.http_app import build_app
from influray.cli.app import app
from influray.config import Config

DOCS = Path(__file__).resolve().parent.parent / "docs"
MADE = "Made from the code by `python jobs/make_reference.py`."
FIELD = re.compile(r"    (\w+): (.+)")
BOUNDS = {"gt": "> {}", "ge": ">= {}", "lt": "< {}", "le": "<= {}", "min_length": "at least {}", "pattern": "`{}`"}
WORDS = {
    "Positive": "integer >= 1",
    "Fraction": "number in (0, 1]",
    "Seed": "integer in [0, 2^63)",
    "Key": "text",
    "Entries": "list of text or of sections, below",
}
WORDS |= {"str": "text", "int": "integer", "float": "number", "bool": "true or false", "Name": "a name", "None": "none"}


def configuration() -> str:
    """Return docs/configuration.md."""
    parts = [
        "# Configuration: every key",
        "",
        "Made from the code by `python jobs/make_reference.py`. A config is YAML; ",
    ]
    parts[-1] += (
        "unknown keys are refused, with the nearest known one.\n`--set key=value` and `overrides` take dotted keys."
    )
    places: dict[type[BaseModel], list[str]] = {}
    for key, model in sections(Config, ""):
        places.setdefault(model, []).append(key)
    for model, (key, *others) in places.items():
        parts += ["", f"## {f'`{key}`' if key else 'The file'}", "", inspect.getdoc(model) or "", ""]
        if others:
            parts += ["The same keys as in " + ", ".join(f"`{other}`" for other in others) + ".", ""]
        parts += ["| key | value | default | |", "|---|---|---|---|"]
        noted = comments(model)
        for name, field in model.model_fields.items():
            cells = (f"`{field.alias or name}`", kind(model, name, field), default(field), noted.get(name, ""))
            parts.append(f"| {' | '.join(cell.replace('|', '&#124;') for cell in cells)} |")
    return "\n".join(parts) + "\n"


def sections(model: type[BaseModel], key: str) -> Iterator[tuple[str, type[BaseModel]]]:
    """Yield (dotted key, model) of a section and of those within it, in the order of the file."""
    yield key, model
    for name, field in model.model_fields.items():
        for within, mark in models(field.annotation):
            yield from sections(within, f"{key}.{field.alias or name}{mark}".strip("."))


def models(annotation: Any, mark: str = "") -> Iterator[tuple[type[BaseModel], str]]:
    """Yield the sections that an annotation holds, and what stands after the key of one of several."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation, mark
        return
    origin = typing.get_origin(annotation)
    mark = {tuple: "[]", list: "[]", dict: ".NAME"}.get(origin, mark) if isinstance(origin, type) else mark
    seen = set()
    for argument in typing.get_args(annotation):
        for model, where in models(argument, mark):
            if model not in seen:
                seen.add(model)
                yield model, where


def comments(model: type[BaseModel]) -> dict[str, str]:
    """Return field -> the comment beside it, or above it, of a class and of those it extends."""
    found: dict[str, str] = {}
    for one in reversed(model.__mro__):
        if not (issubclass(one, BaseModel) and one is not BaseModel):
            continue
        above, name, depth = "", "", 0
        for token in tokenize.generate_tokens(io.StringIO(inspect.getsource(one)).readline):
            if token.type == tokenize.OP:
                depth += (token.string in "([{") - (token.string in ")]}")
            elif token.type == tokenize.COMMENT:
                text = token.string.lstrip("# ")
                if token.line.strip().startswith("#"):
                    above = f"{above} {text}".strip()
                elif name:
                    found[name] = f"{found.get(name, '')} {text}".strip()
            elif token.type == tokenize.NAME and depth == 0 and (field := FIELD.match(token.line)):
                if token.start[1] == 4 and field[1] in model.model_fields and field[1] == token.string:
                    name = field[1]
                    found[name] = above
                    above = ""
            elif token.type == tokenize.NAME and token.start[1] == 4:
                name = above = ""
    return found


def kind(model: type[BaseModel], name: str, field: FieldInfo) -> str:
    """Return what a value may be, in words."""
    owner = next(one for one in model.__mro__ if name in inspect.get_annotations(one))
    source = inspect.get_annotations(owner)[name]
    text = source if isinstance(source, str) else getattr(source, "__name__", str(source))
    text = re.sub(r"Annotated\[([^\[\]]*), Tag\('\w+'\)\]", r"\1", text)  # of a union, the parts and how one is told
    text = re.sub(r"Annotated\[(.*), Discriminator\(\w+\)\]", r"\1", text)
    text = re.sub(r"Annotated\[(.*), Field\(.*?\)\]", r"\1", text)
    text = re.sub(r"Annotated\[(.*?), Field\([^)]*\)\]", r"\1", text)
    text = re.sub(
        r"Literal\[([^\]]*)\]", lambda found: found[1].replace("'", "`").replace('"', "`").replace(", ", " / "), text
    )
    text = re.sub(r"tuple\[(.*?)(?:, \.\.\.)\]", r"list of \1", text)
    text = re.sub(r"dict\[(.*?), (.*?)\]", r"mapping of \2", text)
    text = re.sub(r"\b(\w+)\b(?![^`]*`(?:[^`]*`[^`]*`)*[^`]*$)", lambda found: WORDS.get(found[1], found[1]), text)
    text = re.sub(r"\b\w+Config\b|\bImportedCheckpoint\b|\bTokenBudget\b|\bAutoBudget\b|\bAny\b", _section, text)
    bounds = [] if ">=" in text or "number in" in text else [_bound(one) for one in field.metadata]
    return ", ".join([text.replace(" | ", " or "), *filter(None, bounds)])


def _section(found: re.Match[str]) -> str:
    return {"Any": "anything", "TokenBudget": "`{tokens: n}`", "AutoBudget": "`auto`"}.get(found[0], "a section, below")


def _bound(one: Any) -> str:
    for name, words in BOUNDS.items():
        if getattr(one, name, None) is not None:
            return words.format(getattr(one, name))
    return ""


def default(field: FieldInfo) -> str:
    """Return the default as YAML has it; "required" where there is none."""
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    if isinstance(value, BaseModel):
        return ""
    if isinstance(value, tuple | list):
        return "`[" + ", ".join(map(str, value)) + "]`"
    return {"True": "`true`", "False": "`false`", "None": "none", "{}": "`{}`"}.get(str(value), f"`{value}`")


LOUDNESS = """\
Every verb takes `--quiet` (`-q`: results, warnings and errors alone) and `--log-level` (debug, info, warning or error).
`--json -` of compare, audit and query prints the numbers to standard output and all else to standard error."""


def commands() -> str:
    """Return docs/commands.md."""
    group: Any = typer.main.get_command(app)
    parts = ["# Command line: every verb", "", MADE]
    parts += ["", *((group.help or "").splitlines()), "", "Exit status: 0 done; 2 wrong config or data, one message; "]
    parts[-1] += "1 a bug, with its traceback, or object"
    parts += ["storage that does not answer or a cluster that is gone; 130 interrupted.", ""]
    parts += [LOUDNESS]
    for name, command in group.commands.items():
        arguments = [one for one in command.params if one.param_type_name == "argument"]
        hidden = {"--help", *OF_ALL}
        options = [one for one in command.params if one.param_type_name == "option" and not hidden & set(one.opts)]
        usage = " ".join(["influray", name, *(one.metavar or (one.name or "").upper() for one in arguments)])
        parts += ["", f"## {name}", "", f"    {usage}", "", inspect.cleandoc(command.help or "")]
        if options or arguments:
            parts += ["", "| | default | |", "|---|---|---|"]
        parts += [f"| `{one.metavar}` | | {' '.join((one.help or '').split())} |" for one in arguments]
        for one in options:
            names = ", ".join(f"`{text}`" for text in (*one.opts, *one.secondary_opts))
            given = one.default is not None and not isinstance(one.default, bool) and one.default not in ("", ())
            usual = f"`{one.default}`" if given else ""
            parts.append(f"| {names} | {usual} | {' '.join((one.help or '').split())} |")
    return "\n".join(parts) + "\n"


SERVICE = """\
`influray serve RUN` answers here, on http://127.0.0.1:8899 unless told otherwise; `/openapi.json` is this page for
programs, and `/` a page to look around in. With `--token-file` every request needs the header
`Authorization: Bearer TOKEN`. Bodies are JSON and declared so.

```console
$ curl -s http://127.0.0.1:8899/query -H 'content-type: application/json' \\
    -d '{"prompt": "What is 21 + 43?", "answer": "64", "k": 5}'
```

Every error is `{"code": .., "detail": ..}`: 400 what cannot be asked, 401 without the token, 404 an id or a selection
that is not there, 409 files that do not fit the run, 413 a body over 256 KiB, 415 one that is not JSON, 422 a field
that does not fit, 503 too many queries wait (`retry-after` says how long), 504 no answer in time.
"""


def service() -> str:
    """Return docs/http.md."""
    nothing: Any = None  # what a run holds is read when it is asked for
    schema = build_app(nothing, nothing, nothing).openapi()
    parts = ["# HTTP: every route", "", MADE, "", SERVICE.rstrip()]
    for path, methods in schema["paths"].items():
        for method, route in methods.items():
            parts += ["", f"## {method.upper()} {path}", "", route.get("description", "")]
            body = route.get("requestBody", {}).get("content", {}).get("application/json", {}).get("schema")
            rows = [(one["name"], one["schema"], one["in"]) for one in route.get("parameters", [])]
            rows += [
                (name, field, "body") for name, field in _resolved(schema, body or {}).get("properties", {}).items()
            ]
            if rows:
                parts += ["", "| field | in | value | default | |", "|---|---|---|---|---|"]
            parts += [_field(schema, *row) for row in rows]
            answer = route["responses"]["200"].get("content", {}).get("application/json", {}).get("schema", {})
            fields = _resolved(schema, answer).get("properties", {})
            if fields:
                parts += ["", "Answer:", "", "| field | value |", "|---|---|"]
                parts += [f"| `{name}` | {_value(schema, field)} |" for name, field in fields.items()]
    named = schema["components"]["schemas"]
    for name in ("Hit", "TokenInfluence"):
        parts += ["", f"## {name}", "", named[name].get("description", ""), "", "| field | value |", "|---|---|"]
        parts += [f"| `{key}` | {_value(schema, field)} |" for key, field in named[name]["properties"].items()]
    return "\n".join(parts) + "\n"


def _resolved(schema: dict[str, Any], of: dict[str, Any]) -> dict[str, Any]:
    name = of.get("$ref", "").rpartition("/")[2]
    return schema["components"]["schemas"][name] if name else of


def _field(schema: dict[str, Any], name: str, field: dict[str, Any], where: str) -> str:
    bounds = {"minimum": ">= {}", "maximum": "<= {}", "maxLength": "at most {} characters"}
    value = ", ".join(
        [_value(schema, field), *(words.format(f"{field[key]:g}") for key, words in bounds.items() if key in field)]
    )
    default = (
        "required" if "default" not in field else f"`{str(field['default']).lower()}`" if field["default"] != "" else ""
    )
    return f"| `{name}` | {where} | {value} | {default} | {field.get('description', '')} |"


def _value(schema: dict[str, Any], field: dict[str, Any]) -> str:
    if several := field.get("anyOf"):
        return " or ".join(_value(schema, one) for one in several)
    if "$ref" in field:
        name = field["$ref"].rpartition("/")[2]
        return f"[{name}](#{name.lower()})"
    if field.get("type") == "array":
        items = field.get("items", {})
        return f"list of {_value(schema, items)}" if items else "list"
    kinds = {"string": "text", "boolean": "true or false", "null": "none", "object": "object"}
    kind: str = field.get("type", "anything")
    return kinds.get(kind, kind)


PAGES = {"configuration.md": configuration, "commands.md": commands, "http.md": service}
OF_ALL = ("--quiet", "--log-level")  # told once


def main() -> None:
    for name, page in PAGES.items():
        (DOCS / name).write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
