"""Nothing of a pool, a path or a name steers the terminal of who reads about it, whichever verb prints it."""

from __future__ import annotations

import io
import logging
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import typer
from hypothesis import given
from hypothesis import strategies as st
from rich.text import Text

from influray.cli import app as cli
from influray.cli import printing
from influray.cli.printing import Screen, _Visible, table
from influray.formatting import visible
from influray.progress import open_progress
from influray.runs import Run
from tests.unit import asked_run

ESCAPES = "\x1b[2J\x1b]0;owned\x07\x9b31m\x08\r\x7f"
HOSTILE = f"{ESCAPES}\u202eevil\u2066\u200b\u2028\U000e0041"
COLOUR = re.compile("\x1b\\[[0-9;]*m")  # what the consoles themselves write on a terminal
STEERING = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\U000e0000-\U000e007f]")
# What makes a verb quote something hostile without starting anything; "" is a file that is not there, the default.
ARGUMENTS = {
    "init": ["", "--pool", "", "--target", ""],
    "methods": [],
    "demo": ["--size", HOSTILE],
    "inspect": ["", "--row", "0"],
    "export": ["", "--to", "exported"],
    "blame": ["", "--failing", ""],
    "targets": ["", "--keep", "1"],
    "value": ["", "--data", ""],
}
COMMANDS = sorted(typer.main.get_command(cli.app).commands)  # pyright: ignore[reportAttributeAccessIssue]  a group has them


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Run:
    """A run some of whose rows are hostile in text, id and source."""
    folder = tmp_path_factory.mktemp("printed")
    chat = asked_run.chat
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(asked_run, "HOSTILE", [f"{HOSTILE} {i}" for i in range(3)])
        patch.setattr(asked_run, "HOSTILE_SOURCE", f"{HOSTILE} source")
        patch.setattr(asked_run, "chat", lambda name, *rest: chat(name + (HOSTILE if "hostile" in name else ""), *rest))
        return asked_run.build_asked_run(folder)


@pytest.fixture(params=["pipe", "terminal"])
def printed(request, monkeypatch, capsys) -> Any:
    """Carry out a command line and return its status and what it printed, on a terminal without colours."""

    def carry_out(*argv: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["influray", *argv])
        for name in ("stdout", "stderr"):
            monkeypatch.setattr(sys, name, getattr(sys, name))  # main() replaces them
        for console in (printing.out, printing.err):
            monkeypatch.setattr(console, "_file", None)
            monkeypatch.setattr(console, "_force_terminal", request.param == "terminal")
        status = 0
        try:
            cli.main()
        except SystemExit as stop:
            status = int(stop.code or 0)
        text = "".join(capsys.readouterr())
        return status, COLOUR.sub("", text) if request.param == "terminal" else text

    return carry_out


@pytest.mark.parametrize("verb", COMMANDS)
def test_no_verb_quotes_a_path_that_steers_the_terminal(verb, printed, tmp_path):
    path = str(tmp_path / f"{HOSTILE}.yaml")
    status, text = printed(verb, *(part or path for part in ARGUMENTS.get(verb, [""])))
    assert status == (0 if verb == "methods" else 2), text
    assert not STEERING.findall(text)
    if verb != "methods":
        assert "[U+001B]" in text or "\\x1b" in text


@pytest.mark.parametrize(
    "argv",
    [
        ["inspect", "{config}", "--row", "25"],
        ["inspect", "{config}", "--id", f"hostile-1{HOSTILE}"],
        ["query", "{run}", "--like", f"hostile-1{HOSTILE}", "-k", "5"],
        ["query", "{run}", "--like", f"hostile-1{HOSTILE}", "-k", "5", "--json", "-"],
        ["shots", "{run}", "--like", "t-sum-50", "-k", "20"],
        ["shots", "{run}", "--like", f"hostile-1{HOSTILE}", "--json", "-"],
        ["audit", "{run}"],
        ["targets", "{run}", "--keep", "0.5"],
        ["mixture", "{run}"],
        ["compare", "{run}/bids", "{run}/random"],
        ["plan", "{config}"],
        ["plan", "{config}", "--json"],
        ["plan", "{config}", "--set", f"data.pool={HOSTILE}"],
        ["run", "{config}", f"--{HOSTILE}"],
    ],
    ids=lambda argv: " ".join(argv[:1] + argv[2:3])[:20].encode("ascii", "replace").decode(),
)
def test_no_verb_prints_a_row_that_steers_the_terminal(argv, printed, run):
    names = {"{config}": str(run.directory.config_path), "{run}": str(run.directory.path)}
    filled = [re.sub(r"\{\w+\}", lambda found: names[found[0]], part) for part in argv]
    status, text = printed(*filled)
    assert status in (0, 2), text
    assert not STEERING.findall(text)
    assert text
    if argv[0] in ("inspect", "query", "shots") and "--json" not in argv:
        assert status == 0
        assert "[U+001B][2J" in text


@given(st.text(alphabet=st.characters(codec=None, exclude_categories=()), max_size=40))
def test_whatever_is_printed_logged_or_raised_nothing_steers(text):
    for terminal in (False, True):
        file = io.StringIO()
        screen = Screen(file=file, force_terminal=terminal, width=200, highlight=False)
        screen.print(text, markup=False)
        screen.print(Text(text), table(text, rows=[[text]]))
        _Visible(file).write(text)
        assert not STEERING.findall(COLOUR.sub("", file.getvalue()))
        file.getvalue().encode()  # no half of a pair is left
    assert visible(visible(text)) == visible(text)
    assert "\n" not in visible(text, lines=False)


def test_joiners_tabs_and_ends_of_lines_stay_and_a_cell_is_one_line():
    assert visible("a\tb\r\nc\u200dd\u200ce") == "a\tb\nc\u200dd\u200ce"
    file = io.StringIO()
    Screen(file=file, width=80).print(table("head", rows=[["two\nlines"]]))
    assert "two[U+000A]lines" in file.getvalue()


def test_a_terminal_keeps_the_carriage_return_of_other_packages_bars():
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal, pipe = Terminal(), io.StringIO()
    for stream in (terminal, pipe):
        _Visible(stream).write("50%\r\x1b[A")
    assert terminal.getvalue() == "50%\r[U+001B][A"
    assert pipe.getvalue() == "50%[U+000D][U+001B][A"


def test_logs_of_a_run_show_them_too(tmp_path: Path):
    file = io.StringIO()
    with open_progress(tmp_path, Screen(file=file, width=200)) as progress, progress.step("score"):
        logging.getLogger("influray.x").warning("row %s", HOSTILE)
    for text in (file.getvalue(), (tmp_path / "driver.log").read_text()):
        assert "[U+001B][2J" in text
        assert not STEERING.findall(text)
