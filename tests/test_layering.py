"""Imports point down only, ray stays in runtime and ask, and siblings of a seam do not know each other."""

from __future__ import annotations

import ast
import functools
import graphlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent / "influray"
# From the bottom up. A part may import from its own line and from those above it in this list.
LAYERS = [
    {"protocols"},
    {"config_messages"},
    {"plugins", "options"},
    {"registry", "interrupts", "formatting", "extras"},
    {"config_yaml"},
    {"config_base"},
    {"config_data", "config_model", "config_select", "config_validate"},
    {"config"},
    {"store"},
    {"data"},
    {"model"},
    {"evaluation"},
    {"features", "scorers", "selectors"},
    {"testing"},
    {"job_status"},
    {"progress"},
    {"runtime"},
    {"report"},
    {"ask"},
    {"steps"},
    {"validation"},
    {"planning"},
    {"runs"},
    {"pipeline"},
    {"miniature", "real_example"},
    {"cli"},
    {"__main__"},
]
LEVEL = {part: level for level, parts in enumerate(LAYERS) for part in parts}
SEAMS = {"scorers", "selectors", "features"}  # one file a method there: methods share helpers, not each other


def modules() -> list[Path]:
    return sorted(ROOT.rglob("*.py"))


@functools.cache
def imports(path: Path) -> set[str]:
    return imported(ast.parse(path.read_text()))


def imported(tree: ast.AST) -> set[str]:
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module)
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT.parent).with_suffix("").parts).removesuffix(".__init__")


def while_running(tree: ast.AST) -> ast.AST:
    """The tree without what is imported for the type checker alone."""
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            node.body = [ast.Pass()]
    return tree


def part_of(path: Path) -> str:
    relative = path.relative_to(ROOT)
    return relative.parts[0] if len(relative.parts) > 1 else relative.stem


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_down(path: Path):
    part = part_of(path)
    if part == "__init__":
        return  # its names are imported when they are used
    assert part in LEVEL, f"{path.name} belongs to no layer: give it one in LAYERS"
    for name in imports(path):
        pieces = name.split(".")
        if pieces[0] != "influray" or len(pieces) < 2 or pieces[1] not in LEVEL:
            continue
        other = pieces[1]
        if other == part:
            continue
        assert LEVEL[other] < LEVEL[part], f"{path.relative_to(ROOT)} imports {name}: {other} is not below {part}"


def test_no_circle_of_imports():
    """Those within functions included."""
    names = {name_of(path): path for path in modules()}
    graph = {}
    for name, path in names.items():
        found = imported(while_running(ast.parse(path.read_text()))) & names.keys()
        graph[name] = {other for other in found if not f"{name}.".startswith(f"{other}.")}  # nor the folders it is in
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        pytest.fail(f"a circle of imports: {' <- '.join(error.args[1])}")


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(ROOT)))
def test_ray_is_imported_in_runtime_and_ask_only(path: Path):
    if part_of(path) in ("runtime", "ask"):
        return
    assert not {name for name in imports(path) if name.split(".")[0] == "ray"}, f"{path.name} imports ray"


def test_methods_of_a_seam_do_not_import_each_other():
    import influray.registry as registry

    methods = {entry.target.split(":")[0] for table in registry.SEAMS.values() for entry in table.values()}
    for path in modules():
        module = "influray." + str(path.relative_to(ROOT).with_suffix("")).replace("/", ".")
        if module in methods:
            others = (methods - {module}) & imports(path)
            assert not others, f"{module} imports the method {others}"


def test_every_registry_entry_can_be_resolved():
    import influray.registry as registry

    for seam, table in registry.SEAMS.items():
        for name in table:
            assert registry.resolve(seam, name, "key") is not None


def test_importing_the_package_imports_nothing_heavy():
    import subprocess
    import sys

    code = "import influray, influray.config, influray.cli, sys; print([m for m in ('torch','transformers','ray','faiss','pandas') if m in sys.modules])"
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
    )


def test_files_stay_readable():
    long = {str(p.relative_to(ROOT)): n for p in modules() if (n := len(p.read_text().splitlines())) > 400}
    assert not long, f"over 400 lines: {long}"


def test_the_page_of_the_architecture_names_what_is_there():
    import re

    page = (ROOT.parent / "docs" / "architecture.md").read_text()
    named = set(re.findall(r"`(influray/[\w/]+\.py)`", page))
    assert len(named) > 15
    assert not [name for name in named if not (ROOT.parent / name).is_file()]
    code = "\n".join(path.read_text() for path in modules())
    names = set(re.findall(r"`([A-Z]\w+)`", page))
    assert {"ShardPool", "Step", "ExampleGradients"} <= names
    assert not [name for name in names if not re.search(rf"^(class {name}\b|{name}\b.* = )", code, re.M)]
    route = page.split("## From `influray run`")[1].split("\n## ")[0].split("\nThe other steps")[0]
    assert len(set(re.findall(r"`(influray/[\w/]+\.py)`", route))) <= 6
    rooms = set(re.findall(r"^\| `(\w+)", page, re.M))
    assert {path.name for path in ROOT.iterdir() if path.is_dir() and path.name[0] != "_"} <= rooms
