"""The page about testing names all that the scripted model takes and keeps."""

from __future__ import annotations

import inspect
from pathlib import Path

import attrs
import pytest

from ropewalk.testing import Reply, Request, ScriptedModel, ToolUse

PAGE = (Path(__file__).parent.parent / "docs/testing.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("kind", [Reply, Request, ToolUse], ids=lambda kind: str(kind.__name__))
def test_every_field_is_on_the_page(kind: type[attrs.AttrsInstance]) -> None:
    assert [field.name for field in attrs.fields(kind) if f"`{field.name}" not in PAGE and f"{field.name}=" not in PAGE and f"({field.name}" not in PAGE] == []


def test_every_option_and_attribute_of_the_scripted_model_is_on_the_page() -> None:
    options = [name for name, option in inspect.signature(ScriptedModel).parameters.items() if option.kind is option.KEYWORD_ONLY]
    kept = [name for name in vars(ScriptedModel([])) | {"calls": 0} if not name.startswith("_") and name not in options]

    assert [name for name in options if f"{name}=" not in PAGE] == []
    assert [name for name in kept if f"`model.{name}`" not in PAGE] == []
