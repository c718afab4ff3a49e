"""The README's first screen is run as it is written, and prints what it says."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
FIRST_SCREEN = README.split("## First minute")[1].split("\n## ")[0]
ENVIRONMENT = {
    **os.environ,
    "OMP_NUM_THREADS": "1",
    "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
}


def blocks(language: str, text: str = FIRST_SCREEN) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, flags=re.DOTALL)


def commands() -> list[str]:
    lines = [
        line[2:].split("  #")[0].strip()
        for block in blocks("console")
        for line in block.splitlines()
        if line.startswith("$ ")
    ]
    return [line for line in lines if not line.startswith("pip ")]


def test_the_first_screen_has_commands_and_code():
    assert len(commands()) >= 2
    assert len(blocks("python")) == 1


@pytest.mark.ray
@pytest.mark.parametrize("command", commands())
def test_a_command_of_the_first_screen_runs(command, tmp_path):
    done = subprocess.run(
        shlex.split(command), cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True, timeout=540
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.strip()


def test_the_python_of_the_first_screen_prints_what_stands_below_it(tmp_path):
    (code,) = blocks("python")
    (expected,) = blocks("text")
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == expected.strip()


def test_every_command_of_the_readme_is_a_verb():
    help_text = subprocess.run(
        ["influray", "--help"], env=ENVIRONMENT, capture_output=True, text=True, check=True
    ).stdout
    verbs = set(re.findall(r"^  ([a-z]+) ", help_text, flags=re.MULTILINE))
    named = {
        line.split()[2]
        for block in blocks("console", README)
        for line in block.splitlines()
        if line.startswith("$ influray ")
    }
    assert named <= verbs


LINK = re.compile(r"\]\(([^)#\s]+)(#[^)\s]*)?\)")
PAGES = [*sorted(Path(__file__).parent.parent.glob("docs/*.md")), Path(__file__).parent.parent / "README.md"]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_of_a_page_lead_to_files(page):
    targets = [target for target, _ in LINK.findall(page.read_text(encoding="utf-8")) if "://" not in target]
    assert [target for target in targets if not (page.parent / target).exists()] == []


def test_every_page_is_reached_from_the_readme():
    linked = {target for target, _ in LINK.findall(README)}
    assert [page.name for page in PAGES if page.parent.name == "docs" and f"docs/{page.name}" not in linked] == []
