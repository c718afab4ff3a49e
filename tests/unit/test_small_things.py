"""What a user meets first: a run as Python shows it, what the console says, the order of the verbs, a hub that is gone."""

from __future__ import annotations

import json
import logging
import socket
import threading
import time

import numpy as np
import pytest
import typer.main
from rich.console import Console
from typer.testing import CliRunner

from influray.cli.app import ORDER, app
from influray.data import hub
from influray.progress import open_progress, show_from
from influray.protocols import ArtifactMismatch, ConfigError
from influray.runs import open_run
from tests.unit.synthetic_run import build_run

VERBS = typer.main.get_command(app).commands  # pyright: ignore[reportAttributeAccessIssue]  a group has them


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return open_run(build_run(tmp_path_factory.mktemp("small")).path)


def test_an_attribution_is_its_matrix_as_an_array(run):
    attribution = run.attribution()
    blocks = np.concatenate([block for _, block in attribution.blocks()])
    assert np.array_equal(np.asarray(attribution), blocks)
    assert np.asarray(attribution).dtype == np.float32
    assert np.asarray(attribution, dtype=np.float64).shape == attribution.shape
    with pytest.raises(ValueError, match="copy"):
        np.asarray(attribution, copy=False)


def test_a_run_is_shown_on_one_line(run):
    assert "\n" not in repr(run)
    assert len(repr(run)) < 300
    assert all(selector.name in repr(run) for selector in run.config.selectors)


def test_a_selection_that_the_config_has_not_names_those_it_has(run):
    name = run.config.selectors[0].name
    with pytest.raises(ConfigError, match=rf"none called '{name}x'; did you mean '{name}'\? \(known: {name}"):
        run.selection(f"{name}x")


def test_a_selection_that_is_not_made_yet_says_what_makes_it(tmp_path):
    made = open_run(build_run(tmp_path).path)
    name = made.config.selectors[0].name
    (made.directory.selection(name) / "manifest.json").unlink()
    with pytest.raises(ArtifactMismatch, match="influray select"):
        made.selection(name)


def test_ranks_begin_at_one(run):
    from influray.store.selection import read_table

    ranks = read_table(run.directory.selection(run.config.selectors[0].name))["rank"].to_pylist()
    assert ranks == list(range(1, len(ranks) + 1))


@pytest.mark.parametrize("verb", sorted(VERBS))
def test_every_verb_takes_quiet_and_log_level(verb):
    options = {option for one in VERBS[verb].params for option in one.opts}
    assert {"--quiet", "-q", "--log-level"} <= options
    assert "--step" not in options, "what only the code passes"


def test_the_help_lists_verbs_in_the_order_of_use():
    listed = [
        line.split()[0] for line in CliRunner().invoke(app, ["--help"]).output.split("Commands:")[1].splitlines()[1:]
    ]
    listed = [name for name in listed if name in VERBS]
    assert listed == [name for name in ORDER if name in VERBS]
    assert set(VERBS) <= set(ORDER), "a new verb has its place in ORDER"


@pytest.mark.parametrize(
    ("level", "terminal", "shown"),
    [
        ("debug", False, "diw"),
        ("info", False, "iw"),
        ("warning", False, "w"),
        ("error", False, ""),
        ("warning", True, "w"),
    ],
)
def test_the_console_shows_a_run_from_its_level_on(tmp_path, level, terminal, shown):
    console = Console(record=True, width=100, force_terminal=terminal)
    ours = logging.getLogger("influray.test")
    number = logging.getLevelNamesMapping()[level.upper()]
    with show_from(number), open_progress(tmp_path, console) as progress, progress.step("select"):
        ours.debug("debugged")
        ours.info("informed")
        ours.warning("warned")
    text = console.export_text()
    assert ("debugged" in text) == ("d" in shown)
    assert ("informed" in text) == ("i" in shown)
    assert ("warned" in text) == ("w" in shown)
    assert ("select" in text) == (level == "debug"), "no bar either"
    log = (tmp_path / "driver.log").read_text()
    assert "informed" in log
    assert "warned" in log


def test_numbers_go_to_standard_output_alone(run, tmp_path):
    for arguments in (
        ["compare", str(run.directory.path), "--json", "-"],
        ["audit", str(run.directory.path), "--json", "-"],
    ):
        result = CliRunner().invoke(app, [*arguments, "--quiet"])
        if result.exception is not None:
            raise result.exception
        assert isinstance(json.loads(result.stdout), dict)
    again = CliRunner().invoke(app, ["compare", str(run.directory.path), "--json", str(tmp_path / "n.json")])
    assert again.exit_code == 0
    assert json.loads((tmp_path / "n.json").read_text())


def test_an_unknown_level_is_refused(run):
    result = CliRunner().invoke(app, ["compare", str(run.directory.path), "--log-level", "loud"])
    assert isinstance(result.exception, ConfigError)
    assert "--log-level: found 'loud', expected debug, info, warning or error" in str(result.exception)


class TestHub:
    @pytest.fixture(autouse=True)
    def _asked_anew(self, monkeypatch):
        from huggingface_hub import constants

        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        asked = hub.unreachable
        asked.cache_clear()
        yield
        asked.cache_clear()

    def test_one_that_never_answers_is_given_up_after_the_time_for_it(self, monkeypatch, caplog):
        from huggingface_hub import constants

        with socket.create_server(("127.0.0.1", 0)) as silent:  # takes the connection and says nothing
            monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
            monkeypatch.setattr(hub, "ANSWER_SECONDS", 0.3)
            assert hub.unreachable()
        assert "does not answer: only what is on this machine is used" in caplog.text

    def test_one_that_refuses_is_given_up_at_once_and_a_model_of_it_is_a_readable_error(self, monkeypatch):
        from huggingface_hub import constants

        from influray.config_model import ModelConfig
        from influray.model.loading import load_tokenizer, model_digest

        with socket.create_server(("127.0.0.1", 0)) as gone:
            port = gone.getsockname()[1]
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{port}")
        for load in (load_tokenizer, model_digest):
            with pytest.raises(ConfigError, match=r"model\.base: 'nobody/nothing'"):
                load(ModelConfig(base="nobody/nothing"))

    def test_one_that_answers_is_asked_once(self, monkeypatch):
        from huggingface_hub import constants

        with socket.create_server(("127.0.0.1", 0)) as server:
            monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.getsockname()[1]}")
            answering = threading.Thread(target=_answer, args=(server,), daemon=True)
            answering.start()
            assert not hub.unreachable()
            answering.join()
        assert not hub.unreachable(), "the server is gone, and nobody asks"

    def test_a_data_set_of_a_hub_that_is_gone_is_an_error(self, monkeypatch):
        from influray.protocols import DataError

        monkeypatch.setattr(hub, "unreachable", lambda: True)
        with pytest.raises(DataError, match="hf://a/b: the hub does not answer"):
            hub.origin("hf://a/b")

    def test_offline_nothing_is_asked(self, monkeypatch):
        from huggingface_hub import constants

        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
        monkeypatch.setattr(constants, "ENDPOINT", "http://nowhere.invalid")
        before = time.monotonic()
        assert not hub.unreachable()
        assert time.monotonic() - before < hub.ANSWER_SECONDS


def _answer(server: socket.socket) -> None:
    connection, _ = server.accept()
    with connection:
        connection.recv(4096)
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
