"""Code that a config names: permitted in one place, loaded by one function, and a class of its seam or refused."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import click
import pytest
import typer
import yaml

import influray
from influray import pipeline
from influray.cli.app import app, main
from influray.config import dump_config, load_config, parse_config
from influray.plugins import MARKS, SEAMS, permit, run_directory_of
from influray.protocols import ConfigError, Scorer, Selector
from influray.registry import SEAMS as TABLES
from influray.registry import resolve
from influray.runs import open_run
from influray.store.run_directory import RunDirectory
from tests.unit.synthetic_run import build_run
from tests.unit.test_config import tree

KEYS = {
    "featurizers": "features.featurizer",
    "projectors": "features.projector.name",
    "scorers": "attribution.scorer",
    "selectors": "selectors.0.method",
}
EVIL = "import pathlib\npathlib.Path({marker!r}).touch()\nclass Evil:\n    def __init__(self, *a, **k): pass\n"


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    return build_run(tmp_path_factory.mktemp("finished") / "run").path


@pytest.fixture
def evil(tmp_path, monkeypatch) -> Path:
    """A module that leaves a mark when it is imported."""
    marker = tmp_path / "imported"
    (tmp_path / "evil_module.py").write_text(EVIL.format(marker=str(marker)))
    monkeypatch.syspath_prepend(tmp_path)
    sys.modules.pop("evil_module", None)
    return marker


def foreign(run: Path, folder: Path, key: str, value: str = "evil_module:Evil", section: dict | None = None) -> Path:
    """A copy of a run directory whose config names a plug-in."""
    shutil.copytree(run, folder)
    config = yaml.safe_load((folder / "config.yaml").read_text())
    from influray.config_yaml import set_dotted

    set_dotted(config, key, value)
    RunDirectory(folder).write_config(yaml.safe_dump(config))  # run.json tells of it, as that of a real one would
    return folder


def commands() -> dict[str, click.Command]:
    return dict(typer.main.get_command(app).commands)  # type: ignore[attr-defined]


def arguments_of(name: str, run: Path) -> list[str] | None:
    """How a command is told of a run: None where it takes neither a config nor a run."""
    arguments = [p for p in commands()[name].params if p.param_type_name == "argument"]
    places = [str(p.metavar or p.name).upper() for p in arguments]
    if not places or not any(place.startswith(("CONFIG", "RUN")) for place in places):
        return None
    given = [name, str(run / "config.yaml") if places[0].startswith("CONFIG") else str(run)]
    required = {
        "query": ["a question", "--answer", "b"],
        "inspect": ["--row", "0"],
        "export": ["--to", str(run.parent / "exported")],
    }
    given[1] += "/bids" * (name == "export")
    return given + required.get(name, [])


TAKING = sorted(name for name in commands() if arguments_of(name, Path("x")) is not None)


def test_the_verbs_that_take_a_config_or_a_run_are_found():
    assert {"run", "plan", "inspect", "query", "serve", "audit", "index", "compare", "report", "select"} <= set(TAKING)
    assert {"methods", "demo"}.isdisjoint(TAKING)


@pytest.mark.parametrize("name", TAKING)
@pytest.mark.parametrize("seam", sorted(KEYS))
def test_no_verb_imports_what_a_run_directory_names(finished, tmp_path, evil, monkeypatch, capsys, name, seam):
    run = foreign(finished, tmp_path / "foreign", KEYS[seam])
    (run / "run.json").unlink()  # which does not make it the user's own
    monkeypatch.setattr("sys.argv", ["influray", *(arguments_of(name, run) or [])])
    status = 0
    try:
        main()
    except SystemExit as stop:
        status = int(stop.code or 0)
    captured = capsys.readouterr()
    assert not evil.exists(), "the code of the run directory was run"
    assert status in (0, 2), captured.err
    if name not in ("audit", "compare", "export"):  # these read results alone
        assert status == 2
        assert "--allow-plugins" in captured.err
        assert KEYS[seam] in captured.err


@pytest.mark.parametrize("seam", sorted(KEYS))
def test_no_python_entry_imports_what_a_run_directory_names(finished, tmp_path, evil, seam):
    run = foreign(finished, tmp_path / "foreign", KEYS[seam])
    config = run / "config.yaml"
    entries = (
        lambda: influray.open_run(run),
        lambda: influray.open_run(str(run)).query("a", "b"),
        lambda: influray.run(config),
        lambda: influray.run(load_config(config)),
        lambda: influray.run(load_config(config).model_copy(update={"tune": None})),
        lambda: influray.run(load_config(config), {"warmup.epochs": 1}),
        lambda: pipeline.plan(config),
        lambda: pipeline.plan(config, run_dir=tmp_path / "elsewhere"),
        lambda: pipeline.inspect(config, row=0),
        lambda: pipeline.curves(config),
        lambda: pipeline.index(run),
    )
    for entry in entries:
        with pytest.raises(ConfigError, match="allow_plugins"):
            entry()
    with pytest.raises(ConfigError, match="was not permitted"):
        resolve(seam, "evil_module:Evil", "key")
    influray.select(run / "attribution", None, 5, method="less")
    assert not evil.exists()


@pytest.mark.parametrize("seam", sorted(KEYS))
def test_with_the_flag_it_is_imported_and_refused_where_it_is_no_class_of_the_seam(
    finished, tmp_path, evil, monkeypatch, capsys, seam
):
    run = foreign(finished, tmp_path / "foreign", KEYS[seam])
    monkeypatch.setattr("sys.argv", ["influray", "plan", str(run / "config.yaml"), "--allow-plugins"])
    with pytest.raises(SystemExit) as stop:
        main()
    assert (stop.value.code, evil.exists()) == (2, True)
    assert f"'evil_module:Evil' is no {seam[:-1]}: it does not derive from" in " ".join(capsys.readouterr().err.split())
    with pytest.raises(ConfigError, match="allow_plugins"):
        open_run(run)  # the trust ended with the command


def test_a_run_that_trusts_model_code_is_not_trusted_either(finished, tmp_path):
    run = foreign(finished, tmp_path / "foreign", "model.trust_remote_code", True)  # type: ignore[arg-type]
    for entry in (open_run, lambda run: pipeline.plan(run / "config.yaml")):
        with pytest.raises(ConfigError, match=r"model\.trust_remote_code runs code"):
            entry(run)


def test_what_the_user_spells_out_is_hers(finished, tmp_path):
    run = foreign(finished, tmp_path / "foreign", "attribution.scorer")
    resolved = pipeline.resolve(run / "config.yaml", {"attribution.scorer": "inner_product"})
    assert resolved.config.attribution.scorer == "inner_product"
    own = pipeline.resolve(finished / "config.yaml", {"selectors.0.method": "tests.unit.test_plugins:Mine"})
    assert resolve("selectors", own.config.selectors[0].method, "key") is Mine
    mine = tmp_path / "mine.yaml"
    mine.write_text(dump_config(parse_config(tree(selectors=[{"name": "a", "method": "a.b:C", "budget": 1}]))))
    assert pipeline.resolve(mine).config.selectors[0].method == "a.b:C", "a config of her own may name code"


@pytest.mark.parametrize("mark", [mark.replace("*", "bids") for mark in MARKS])
def test_one_mark_of_a_run_directory_is_enough(tmp_path, mark):
    config = tmp_path / "run" / "config.yaml"
    (tmp_path / "run" / mark).parent.mkdir(parents=True, exist_ok=True)
    config.write_text("x: 1")
    assert run_directory_of(config) is None
    (tmp_path / "run" / mark).touch()
    assert run_directory_of(config) == tmp_path / "run"
    (tmp_path / "link.yaml").symlink_to(config)
    assert run_directory_of(tmp_path / "link.yaml") == tmp_path / "run"


class Mine(Selector):
    def select(self, problem):
        raise NotImplementedError


class Metaclassed(type):
    def __getattr__(cls, name):
        raise RuntimeError("asked")


class Sly(metaclass=Metaclassed):
    pass


class Halfway(Scorer):
    """Has all that the protocol gives, and nothing of its own."""


def function(problem):
    raise SystemExit("called")


@pytest.mark.parametrize("seam", sorted(SEAMS))
@pytest.mark.parametrize(
    "name",
    [
        "functools:partial", "subprocess:Popen", "os:system", "builtins:exec", "importlib:import_module",
        "selectors:DefaultSelector", "tests.unit.test_plugins:function", "tests.unit.test_plugins:Sly",
        "tests.unit.test_plugins:Halfway", "tests.unit.test_plugins:KEYS", "influray.config:load_config",
        "influray.config:Config", "numpy:ndarray", ":", "a:", ":b", "a:b:c", "..a:B", "a/b:C", "a b:C", "a-b:C",
    ],
)  # fmt: skip
def test_what_is_no_class_of_the_seam_is_refused_by_name_also_where_it_is_permitted(seam, name):
    permit([name])
    with pytest.raises(ConfigError, match=r"^some\.key: ") as caught:
        resolve(seam, name, "some.key")
    assert repr(name) in str(caught.value)


@pytest.mark.parametrize("seam", sorted(SEAMS))
def test_every_method_of_the_tables_would_pass_as_a_plug_in_of_its_seam_and_no_other(seam):
    for other, table in TABLES.items():
        for entry in table.values():
            permit([entry.target])
            if other == seam:
                assert isinstance(resolve(seam, entry.target, "key"), type)
            else:
                with pytest.raises(ConfigError, match=f"is no {seam[:-1]}.*; it is a {other[:-1]}"):
                    resolve(seam, entry.target, "key")


def test_an_import_that_fails_is_a_message(tmp_path, monkeypatch):
    (tmp_path / "broken_plugin.py").write_text("raise RuntimeError('no licence')")
    monkeypatch.syspath_prepend(tmp_path)
    permit(["broken_plugin:X"])
    with pytest.raises(ConfigError, match=r"'broken_plugin:X' cannot be imported: RuntimeError: no licence"):
        resolve("scorers", "broken_plugin:X", "attribution.scorer")
