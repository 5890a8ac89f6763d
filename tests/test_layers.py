"""The architecture: which module may import which."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "fitkit"

# From the ground up: a module may import only modules of lower layers, and of its own folder where that is a layer.
LAYERS = [
    ["errors"],
    ["files", "figures", "diagnosis"],
    ["history"],
    ["cross_validation"],
    ["data", "spec"],
    ["data_check"],
    ["engine", "parts"],
    ["trainer"],
    ["run_folder", "progress", "live", "builder", "resume", "changes"],
    ["session", "evaluation"],
    ["folds"],
    ["model", "register"],
    ["after"],
    ["commands"],
    ["cli", "__main__", "__init__"],
]
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}
TABLES = ["sources", "splits", "transforms", "augmentations", "layers", "models", "losses", "metrics", "optimizers"]
TABLES += ["folds", "schedules", "callbacks", "trackers", "rankings"]
MODULES = sorted(PACKAGE.rglob("*.py"))


def imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def home(name):
    """The top module of fitkit that an imported name belongs to: "fitkit.parts.losses" -> "parts"."""
    parts = name.split(".")
    return parts[1] if len(parts) > 1 and parts[1] in LEVEL else "__init__"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_strictly_down(path):
    own = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    if own in ("__init__", "cli", "__main__"):
        return  # the top may import anything
    for name in imports(path):
        if name == "fitkit" or name.startswith("fitkit."):
            other = home(name)
            if name == "fitkit" or (other == "__init__" and name.count(".") == 1):
                continue  # `from fitkit import run_folder` names its module in the next item
            assert other == own or LEVEL[other] < LEVEL[own], f"{own} may not import {name}"


@pytest.mark.parametrize("table", TABLES)
def test_no_table_imports_another_table(table):
    for name in imports(PACKAGE / "parts" / f"{table}.py"):
        assert not any(name.startswith(f"fitkit.parts.{other}") for other in TABLES if other != table), name


def test_the_engine_imports_no_part():
    for path in (PACKAGE / "engine").glob("*.py"):
        assert not any(name.startswith("fitkit.parts") for name in imports(path)), path


@pytest.mark.parametrize("path", sorted((PACKAGE / "spec").glob("*.py")), ids=lambda path: path.name)
def test_reading_and_checking_a_spec_imports_no_torch(path):
    assert not any(name.split(".")[0] == "torch" for name in imports(path))


def test_every_file_and_function_keeps_its_budget():
    for path in MODULES:
        text = path.read_text()
        assert len(text.splitlines()) <= 400, f"{path} is over 400 lines"
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef):
                assert node.end_lineno - node.lineno < 50, f"{path}:{node.lineno} {node.name} is 50 lines or more"
