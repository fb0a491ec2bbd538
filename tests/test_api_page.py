"""The page of the API names what there is, says rightly what is awaited, and gives each event its fields."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Any

import attrs
import msgspec
import pytest

import ropewalk
from ropewalk import Agent, Event, Runtime, Session, Turn
from ropewalk.actors import events

PAGE = (Path(__file__).parent.parent / "docs/api.md").read_text(encoding="utf-8")
ATTRIBUTES: dict[type[Any], set[str]] = {Runtime: {"events", "report"}}
"""Of those that `__init__` sets, what is for everybody."""


def section(name: str) -> str:
    """The text under a heading, up to the next of its rank or above."""
    found = re.search(rf"^(#+) {name}\n(.*?)(?=^#{{1,2}} |\Z)", PAGE, re.MULTILINE | re.DOTALL)
    assert found, f"the page has no chapter {name}"
    return found[2].split("\n### ")[0] if name != "Turn" else found[2]


def rows(name: str) -> dict[str, str]:
    """What the table's first column names, each with what the second says of it."""
    lines = re.findall(r"^\| (`.*?) \| ([^|]+) \|", section(name), re.MULTILINE)
    return {re.split(r"\W", member.removeprefix("agent("))[0]: how for members, how in lines for member in re.findall(r"`(.+?)`", members)}


def public(kind: type[Any]) -> dict[str, Any]:
    """The public members of a class and of its bases here."""
    return {name: getattr(kind, name) for name in dir(kind) if not name.startswith("_") and not hasattr(object, name)}


@pytest.mark.parametrize("kind", [Runtime, Session, Turn, Agent], ids=lambda kind: str(kind.__name__))
def test_every_public_member_is_on_the_page_and_nothing_else(kind: type[Any]) -> None:
    text, named, there = section(kind.__name__), rows(kind.__name__), public(kind)

    assert [name for name in there if not re.search(rf"`{name}\b", text)] == []
    assert named.keys() - there.keys() - ATTRIBUTES.get(kind, set()) - {"prompt"} == set()


@pytest.mark.parametrize("kind", [Runtime, Session, Turn, Agent], ids=lambda kind: str(kind.__name__))
def test_the_page_says_what_is_awaited(kind: type[Any]) -> None:
    named = rows(kind.__name__)
    for name, member in public(kind).items():
        if name in named:
            awaited = inspect.iscoroutinefunction(member)
            read = inspect.isasyncgenfunction(member) or name in ("stream", "stream_async", "transcript") or (kind, name) == (Turn, "events")
            said = named[name]
            assert ("async" in said) == read, f"{kind.__name__}.{name} is said to be used so: {said}"
            assert said.startswith("sync") != (awaited or read) or "; await" in said, f"{kind.__name__}.{name} is said to be used so: {said}"
            assert ("await" in said) >= awaited, f"{kind.__name__}.{name} is said to be used so: {said}"


def test_every_event_is_on_the_page_with_its_fields() -> None:
    common = set(Event.__struct_fields__)
    kinds = [kind for name in events.__all__ if issubclass(kind := getattr(events, name), Event) and kind is not Event]
    lines = re.findall(r"^\| `(\w+)` \|([^|]*)\|", section("Events"), re.MULTILINE)

    assert sorted(name for name, _ in lines) == sorted(kind.__name__ for kind in kinds)
    for kind in kinds:
        own = [field for field in kind.__struct_fields__ if field not in common]
        assert re.findall(r"`(\w+)`", dict(lines)[kind.__name__]) == own, kind.__name__
    assert all(f"`{field}`" in section("Events") for field in common)


def test_what_is_returned_is_on_the_page_with_its_fields() -> None:
    for record in (ropewalk.AgentResult, ropewalk.InsertedEntry):
        assert issubclass(record, msgspec.Struct)
        assert [field for field in record.__struct_fields__ if f"`{field}`" not in PAGE] == []
    assert [field.name for field in attrs.fields(ropewalk.SessionInfo) if f"`{field.name}`" not in PAGE] == []
