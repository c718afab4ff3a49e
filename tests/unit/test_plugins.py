"""Code that a config names: permitted in one place, loaded by one function, and a class of its seam or refused."""

from __future__ import annotations

import importlib
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
from influray.plugins import MARKS, SEAMS, permit, run_directory_of, target_of
from influray.protocols import ConfigError, Scorer, Selector
from influray.registry import SEAMS as TABLES
from influray.registry import make, resolve
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


def foreign(run: Path, folder: Path, key: str, value: object = "evil_module:Evil") -> Path:
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
        "shots": ["--question", "a question", "--answer", "b"],
        "inspect": ["--row", "0"],
        "blame": ["--failing", "wrong.jsonl"],
        "value": ["--data", "wrong.jsonl"],
        "targets": ["--keep", "0.5"],
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
    if name not in ("audit", "compare", "export", "targets"):  # these read results alone
        assert status == 2
        assert "--allow-plugins" in captured.err
        assert KEYS[seam] in captured.err


@pytest.mark.parametrize(
    "key", ["features.featurizer", "features.projector.name", "attribution.scorer", "selector.method"]
)
@pytest.mark.parametrize("verb", ["plan", "run", "query", "mixture"])
def test_no_verb_imports_what_the_cascade_of_a_run_directory_names(
    finished, tmp_path, evil, monkeypatch, capsys, verb, key
):
    shared = foreign(finished, tmp_path / "shared", "cascade.share", 0.5)
    run = foreign(shared, tmp_path / "foreign", f"cascade.{key}")
    (run / "run.json").unlink()
    monkeypatch.setattr("sys.argv", ["influray", *(arguments_of(verb, run) or [])])
    with pytest.raises(SystemExit) as stop:
        main()
    assert not evil.exists(), "the code of the run directory was run"
    assert stop.value.code == 2
    said = capsys.readouterr().err
    assert "--allow-plugins" in said
    assert f"cascade.{key}" in said


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
    other = {"base": "tiny", "trust_remote_code": True}
    run = foreign(finished, tmp_path / "another", "tune.model", other)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"tune\.model\.trust_remote_code runs code of 'tiny'"):
        open_run(run)


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


def install(folder: Path, groups: dict[str, dict[str, str]], name: str = "shelf") -> None:
    """Put the metadata of an installed package with entry points into a folder on Python's path."""
    info = folder / f"{name}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    lines = (f"[{group}]\n" + "".join(f"{n} = {t}\n" for n, t in points.items()) for group, points in groups.items())
    (info / "entry_points.txt").write_text("\n".join(lines))
    importlib.invalidate_caches()


@pytest.mark.parametrize("seam", sorted(KEYS))
def test_the_name_of_an_entry_point_is_held_to_the_same_gate(finished, tmp_path, evil, seam):
    evil.with_name(f"evil_{seam}.py").write_text(EVIL.format(marker=str(evil)))  # under a name that nobody permitted
    install(tmp_path, {f"influray.{seam}": {"short": f"evil_{seam}:Evil"}})
    run = foreign(finished, tmp_path / "foreign", KEYS[seam], "short")
    for entry in (open_run, lambda run: pipeline.plan(run / "config.yaml")):
        with pytest.raises(ConfigError, match=f"{KEYS[seam]} names the plug-in 'short'.*allow_plugins"):
            entry(run)
    with pytest.raises(ConfigError, match="plug-in 'short' was not permitted"):
        resolve(seam, "short", "key")
    assert not evil.exists()
    with pytest.raises(ConfigError, match=f"'short' is no {seam[:-1]}"), influray.allow_plugins():
        resolve(seam, "short", open_run(run) and "key")
    assert evil.exists()


def test_an_entry_point_is_a_method_of_its_seam_alone_and_known_by_name(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    install(tmp_path, {"influray.selectors": {"mine": "tests.unit.test_plugins:Mine [extra]", "bids": "os:system"}})
    assert target_of("selectors", "mine") == "tests.unit.test_plugins:Mine"
    assert target_of("scorers", "mine") is None
    permit(["tests.unit.test_plugins:Mine"])
    assert resolve("selectors", "mine", "key") is Mine
    with pytest.raises(NotImplementedError):
        influray.select([[1.0], [2.0]], ["a"], 1, method="mine")
    assert influray.select([[1.0], [2.0]], ["a"], 1, method="bids").rows.tolist() == [1], "own names come first"
    with pytest.raises(ConfigError, match=r"no selector is called 'mein'; did you mean 'mine'\? \(known: .*mine"):
        resolve("selectors", "mein", "key")
    install(tmp_path, {"influray.selectors": {"mine": "elsewhere:Mine"}}, "other")
    with pytest.raises(ConfigError, match="several selectors.*elsewhere:Mine, tests.unit.test_plugins:Mine"):
        resolve("selectors", "mine", "key")


def test_a_module_in_the_working_directory_is_told_of_and_not_run(tmp_path, monkeypatch):
    marker = tmp_path / "imported"
    (tmp_path / "lying_here.py").write_text(EVIL.format(marker=str(marker)))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [place for place in sys.path if place not in ("", ".")])
    permit(["lying_here:Evil", "lying_nowhere.deep:Evil"])
    with pytest.raises(ConfigError, match=rf"it stands in the working directory.* PYTHONPATH={tmp_path}"):
        resolve("scorers", "lying_here:Evil", "key")
    with pytest.raises(ConfigError, match=r"install it, or name the folder .* PYTHONPATH"):
        resolve("scorers", "lying_nowhere.deep:Evil", "key")
    assert not marker.exists()


class Bare(Selector):
    pass


class Strange(influray.protocols.Featurizer):
    makes = "pictures"  # type: ignore[assignment]

    def compute(self, examples):
        raise NotImplementedError


class Passing(Scorer):
    passes = 2

    def score(self, pool, target, state):
        raise NotImplementedError


class Empty(Scorer):
    def __init__(self):
        pass

    def score(self, pool, target, state):
        raise NotImplementedError


class Structural:
    def select(self, problem):
        raise NotImplementedError


class Flat(influray.protocols.Projector):
    def __init__(self, dimension, parameters, seed, device):
        pass

    def add_slice(self, out_BD, block_Bp, offset):
        raise NotImplementedError


@pytest.mark.parametrize(
    ("seam", "kind", "said"),
    [
        ("selectors", Bare, "the selector '.*:Bare' has no 'select'"),
        ("featurizers", Strange, r"has no 'makes' that is one of vectors, counts, facts \(found 'pictures'\)"),
        ("scorers", Passing, "has no 'sums', which its 2 passes need"),
        ("scorers", Empty, r"made with \(stores\) and then its options, and its __init__ takes \(\)"),
        ("selectors", Structural, "does not derive from influray.protocols.Selector; it has the methods of one"),
        ("projectors", Flat, "sets no `dimension`"),
    ],
)
def test_what_a_class_has_forgotten_is_told_before_it_is_used(seam, kind, said):
    name = f"tests.unit.test_plugins:{kind.__name__}"
    permit([name])
    given = {"projectors": (8, 8, 0, "cpu"), "scorers": (None,)}.get(seam, ())
    with pytest.raises(ConfigError, match=said):
        make(seam, name, {}, *given)
