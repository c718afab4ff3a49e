"""The command line as a process: its version, its shells, and the options that all verbs of a config share."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import typer.main

import influray
from influray.cli.app import app

ROOT = Path(__file__).parents[2]
VERBS = typer.main.get_command(app).commands  # pyright: ignore[reportAttributeAccessIssue]  a group has them
OF_A_CONFIG = ("run", "warmup", "featurize", "score", "select", "tune", "evaluate", "report", "plan", "inspect")


def test_there_is_one_version_and_every_way_in_tells_it():
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert influray.__version__ == version
    done = subprocess.run([sys.executable, "-m", "influray", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == version


def test_python_m_is_the_command():
    done = subprocess.run([sys.executable, "-m", "influray", "plan", "none.yaml"], capture_output=True, text=True)
    assert done.returncode == 2
    assert "ConfigError: none.yaml" in done.stderr


@pytest.mark.parametrize(
    ("words", "offered"), [("influray sel", "select"), ("influray select --cur", "--curve-budget")]
)
def test_a_shell_completes_verbs_and_options(words, offered):
    asked = {"_INFLURAY_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(len(words.split()) - 1)}
    code = "import sys; sys.argv = ['influray']; from influray.cli import main; main()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, **asked})
    assert offered in done.stdout.split()


@pytest.mark.parametrize("verb", OF_A_CONFIG)
def test_verbs_of_a_config_share_their_options(verb):
    names = [option for one in VERBS[verb].params for option in one.opts]
    shared = ["--run-dir", "--set", *(["--address"] if verb not in ("plan", "inspect") else []), "--allow-plugins"]
    assert names[0] == "config"
    assert [name for name in names if name in shared] == shared
    assert VERBS[verb].help
