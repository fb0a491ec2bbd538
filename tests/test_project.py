"""The project around the code: one copy of it, nothing extra at import, every name documented, versions that agree."""

from __future__ import annotations

import ast
import importlib
import importlib.metadata
import json
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
LAYERS = ("runtime", "actors")
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def sources(*folders: str) -> Iterator[Path]:
    for folder in folders:
        yield from sorted((ROOT / folder).rglob("*.py"))


def imported_names(file: Path) -> Iterator[tuple[int, str]]:
    """The line and the absolute name of each module that a file imports."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"), file)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.lineno, "." * node.level + (node.module or "")


def pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    return dict(line.split("==") for line in lines)


def requirements() -> list[Requirement]:
    extras: dict[str, list[str]] = PROJECT["optional-dependencies"]
    listed = [Requirement(text) for texts in (PROJECT["dependencies"], *extras.values()) for text in texts]
    return [requirement for requirement in listed if requirement.name != PROJECT["name"]]


def distributions_behind(names: list[str]) -> set[str]:
    """The distributions that these requirements bring here, with what those need in turn."""
    found: set[str] = set()
    waiting = [Requirement(name) for name in names]
    while waiting:
        requirement = waiting.pop()
        name = canonicalize_name(requirement.name)
        wanted = requirement.marker is None or requirement.marker.evaluate({"extra": ""})
        if wanted and name not in found:
            found.add(name)
            waiting += [Requirement(text) for text in importlib.metadata.requires(name) or []]
    return found


def front_door() -> ModuleType:
    module = importlib.import_module("ropewalk")
    if not hasattr(module, "__all__"):
        pytest.skip("the front door names nothing yet")
    return module


def test_nothing_imports_a_layer_by_its_bare_name() -> None:
    wrong = [
        f"{file.relative_to(ROOT)}:{line}: {name}"
        for file in sources(*LAYERS, "src", "tests", "examples", "benchmarks", "docs")
        for line, name in imported_names(file)
        if name.split(".")[0] in LAYERS
    ]

    assert wrong == []


def test_every_import_is_absolute() -> None:
    wrong = [f"{file.relative_to(ROOT)}:{line}" for file in sources(*LAYERS) for line, name in imported_names(file) if name.startswith(".")]

    assert wrong == []


@pytest.mark.parametrize("layer", LAYERS)
def test_the_front_door_holds_links_to_the_layers(layer: str) -> None:
    link = ROOT / "src" / "ropewalk" / layer

    assert link.is_symlink()
    assert os.readlink(link) == f"../../{layer}"
    assert (ROOT / layer).is_dir()
    assert not (ROOT / layer).is_symlink()


def test_a_layer_is_loaded_once_and_through_the_front_door() -> None:
    for layer in LAYERS:
        module = importlib.import_module(f"ropewalk.{layer}")

        assert module.__file__ is not None
        assert Path(module.__file__).resolve() == ROOT / layer / "__init__.py"
        assert layer not in sys.modules


def test_every_folder_of_modules_is_a_package() -> None:
    folders = {file.parent for file in sources(*LAYERS)}

    assert sorted(str(folder.relative_to(ROOT)) for folder in folders if not (folder / "__init__.py").is_file()) == []


def loaded_by_import() -> set[str]:
    """The modules that ``import ropewalk`` loads into a new interpreter."""
    program = "import json, sys; before = set(sys.modules); import ropewalk; print(json.dumps(sorted(set(sys.modules) - before)))"
    run = subprocess.run([sys.executable, "-I", "-c", program], capture_output=True, text=True, check=True, timeout=60)
    return set(json.loads(run.stdout))


def test_import_loads_nothing_beyond_the_core_dependencies() -> None:
    tops = {name.split(".")[0] for name in loaded_by_import()} - sys.stdlib_module_names - {"ropewalk"}
    owners = importlib.metadata.packages_distributions()
    allowed = distributions_behind(PROJECT["dependencies"])
    strangers = {top: owners.get(top) for top in tops if not allowed & {canonicalize_name(owner) for owner in owners.get(top, [])}}

    assert strangers == {}


def test_import_leaves_what_takes_long_to_those_who_use_it() -> None:
    """The promise is a quarter of a second; a test of time would be one of the machine, so it is of what is loaded."""
    heavy = {
        "click",
        "docstring_parser",
        "http.client",
        "httpx2",
        "importlib.metadata",
        "openai",
        "rich",
        "sqlite3",
        "structlog",
        "trio",
        "urllib.request",
        "uvloop",
    }

    assert loaded_by_import() & heavy == set()
    assert {"anyio", "attrs", "msgspec"} <= loaded_by_import()  # so that an import that failed to be seen is no success


def test_the_front_door_names_each_thing_once() -> None:
    names = list(front_door().__all__)

    assert names
    assert len(set(names)) == len(names)


def test_every_public_name_can_be_imported_and_says_what_it_promises() -> None:
    module = front_door()
    missing = [name for name in module.__all__ if not hasattr(module, name)]
    silent = [name for name in module.__all__ if name not in missing and not documented(getattr(module, name))]

    assert missing == []
    assert silent == []


def documented(value: object) -> bool:
    """Whether a class or a function of ours has a docstring of its own; other values have nowhere to keep one."""
    if not isinstance(value, type) and not callable(value):
        return True
    if not str(getattr(value, "__module__", "")).startswith("ropewalk"):
        return True
    docstring = vars(value).get("__doc__") if isinstance(value, type) else value.__doc__
    return bool((docstring or "").strip())


def test_the_version_is_the_same_wherever_it_stands() -> None:
    version = PROJECT["version"]

    assert re.fullmatch(r"\d+\.\d+\.\d+((a|b|rc)\d+|\.dev\d+)?", version)
    assert importlib.metadata.version("ropewalk") == version
    assert getattr(importlib.import_module("ropewalk"), "__version__", version) == version


def test_the_newest_chapter_of_the_changelog_is_not_ahead_of_the_version() -> None:
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    chapters = re.findall(r"(?m)^## (\S+) \(", changelog)

    assert "<!-- towncrier release notes start -->" in changelog
    assert chapters[:1] in ([], [PROJECT["version"]])


def test_constraints_pin_names_and_versions_only() -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()

    assert [line for line in lines if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*==[A-Za-z0-9.+!]+", line)] == []
    assert lines == sorted(lines, key=str.lower)


@pytest.mark.parametrize("requirement", requirements(), ids=lambda requirement: str(requirement.name))
def test_what_the_project_asks_for_is_pinned_within_its_bounds(requirement: Requirement) -> None:
    pinned = {canonicalize_name(name): version for name, version in pins().items()}

    assert requirement.specifier.contains(pinned[canonicalize_name(requirement.name)])
