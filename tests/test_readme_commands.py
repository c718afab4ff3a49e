"""What the README and the pages tell a newcomer to type runs as it is written, and what they name and link is there."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from jobs.check_site import outside

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
DOCS = sorted(ROOT.glob("docs/*.md"))
FIRST_SCREEN = README.split("## First minute")[1].split("\n## ")[0]
ENVIRONMENT = {
    **os.environ,
    "OMP_NUM_THREADS": "1",
    "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
}


def page(name: str) -> str:
    return (ROOT / "docs" / name).read_text(encoding="utf-8")


def blocks(language: str, text: str = FIRST_SCREEN) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, flags=re.DOTALL)


def commands(text: str) -> list[str]:
    lines = [
        re.split(r"\s{2,}#", line[2:])[0].strip()
        for block in blocks("console", text)
        for line in block.splitlines()
        if line.startswith("$ ")
    ]
    return [line for line in lines if not line.startswith("pip ")]


# In the order of the pages, each once: those of one page go on with what those before them made.
RUN = list(
    dict.fromkeys(
        line for text in (FIRST_SCREEN, page("install.md"), page("getting-started.md")) for line in commands(text)
    )
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("newcomer")


def test_the_pages_of_a_newcomer_have_commands_and_code():
    assert len(commands(FIRST_SCREEN)) >= 3
    assert len(commands(page("getting-started.md"))) >= 8
    assert len(blocks("python")) == 1


@pytest.mark.ray
@pytest.mark.endurance
@pytest.mark.parametrize("command", RUN)
def test_a_command_of_a_newcomer_runs(command, folder):
    # bash: one of them holds $(..)
    done = subprocess.run(
        ["bash", "-c", command], cwd=folder, env=ENVIRONMENT, capture_output=True, text=True, timeout=540
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.strip() or command.startswith("python ")


@pytest.mark.ray
@pytest.mark.endurance
def test_what_the_page_of_the_run_directory_says_is_there(folder):
    (code,) = blocks("python", page("run-directory.md"))
    subprocess.run([sys.executable, "-c", code], cwd=folder, env=ENVIRONMENT, check=True, timeout=120)
    run = folder / "runs" / "demo-small"
    named = re.findall(r"^\| (`.*?`) \|", page("run-directory.md"), flags=re.MULTILINE)
    assert len(named) > 12
    for cell in named:
        for name in re.findall(r"`(.*?)`", cell):
            if name in ("index/", "cascade/", "validate/"):
                continue  # where one was asked for
            options = re.search(r"\{(.*?)\}", name)
            for option in options[1].split(",") if options else [""]:
                path = name.replace(options[0], option) if options else name
                path = path.replace("NAME", "bids").replace("seed-S", "seed-0").replace("checkpoint-K", "checkpoint-1")
                assert (run / path).exists(), path


def test_the_python_of_the_first_screen_prints_what_stands_below_it(tmp_path):
    (code,) = blocks("python")
    (expected,) = blocks("text")
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == expected.strip()


def test_every_command_of_readme_and_pages_is_a_verb_with_those_options():
    import typer.main

    from influray.cli.app import app

    verbs = typer.main.get_command(app).commands  # pyright: ignore[reportAttributeAccessIssue]
    lines = []
    for path in [*DOCS, ROOT / "README.md"]:
        text = path.read_text(encoding="utf-8")
        lines += [
            (path.name, line.removeprefix("$ "))
            for kind in ("console", "bash")
            for block in blocks(kind, text)
            for line in block.splitlines()
        ]
    typed = [(name, line.split("#")[0]) for name, line in lines if re.match(r"influray [a-z]", line)]
    assert len(typed) > 40
    for name, line in typed:
        verb = line.split()[1]
        assert verb in verbs, (name, line)
        known = {option for one in verbs[verb].params for option in (*one.opts, *one.secondary_opts)}
        assert set(re.findall(r"(?<= )--?[a-z][a-z-]*", re.sub(r'"[^"]*"', "", line))) <= known, (name, line)


def test_the_readme_names_every_extra_and_is_short():
    import tomllib

    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for text in (README, page("install.md")):
        assert [name for name in extras if name != "dev" and f"`{name}`" not in text] == []
    assert set(
        re.findall(r"influray\[([\w,]+)\]", " ".join(path.read_text() for path in (ROOT / "influray").rglob("*.py")))
    ) <= set(extras)
    assert len(README.splitlines()) <= 150


LINK = re.compile(r"\]\(([^)#\s]+)(#[^)\s]*)?\)")


@pytest.mark.parametrize("path", [*DOCS, ROOT / "README.md"], ids=lambda path: path.name)
def test_links_of_a_page_lead_to_files(path):
    targets = [target for target, _ in LINK.findall(path.read_text(encoding="utf-8")) if "://" not in target]
    assert [target for target in targets if not (path.parent / target).exists()] == []


def test_every_page_is_reached_from_the_first_one_and_stands_in_the_menu():
    linked = {target for target, _ in LINK.findall(page("index.md"))} | {"index.md"}
    assert [path.name for path in DOCS if path.name not in linked] == []

    def named(entry):
        return (
            [entry]
            if isinstance(entry, str)
            else [name for one in (entry.values() if isinstance(entry, dict) else entry) for name in named(one)]
        )

    menu = named(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"])
    assert sorted(menu) == [path.name for path in DOCS]
    assert len(set(LINK.findall(README))) > 10


def test_what_the_troubleshooting_page_quotes_is_said_by_the_code():
    said = []
    for path in (ROOT / "influray").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                said.append(
                    "".join(str(part.value) if isinstance(part, ast.Constant) else "{}" for part in node.values)
                )
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                said.append(node.value)
    quoted = re.findall(r"^### `(.*)`$", page("troubleshooting.md"), flags=re.MULTILINE)
    assert len(quoted) > 15
    code = "\n".join(said)
    assert [words for words in quoted if words not in code] == []


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ('<a href="https://example.org">x</a><link rel="canonical" href="https://x.org/">', 0),
        ('<script src="//cdn.example.org/x.js"></script>', 1),
        ('<link rel="stylesheet" href="https://fonts.example.org/css">', 1),
        ('<link rel="preconnect" href="https://fonts.example.org">', 1),
        ('<img src="https://example.org/x.png" srcset="https://example.org/y.png 2x">', 2),
        ('<p style="background: url(https://example.org/x.png)"></p><img src="x.png">', 1),
    ],
)
def test_a_page_that_asks_the_network_is_refused(tmp_path, text, found):
    (tmp_path / "page.html").write_text(text)
    assert len(outside(tmp_path)) == found
    (tmp_path / "style.css").write_text("@import '//example.org/x.css';")
    assert len(outside(tmp_path)) == found + 1
