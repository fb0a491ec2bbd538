"""What users name on a command line: a model, and tools of their own."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Iterable
from typing import Any

from ropewalk.actors.models import Model
from ropewalk.actors.models.protocol import resolve
from ropewalk.actors.tools import ToolRegistry
from ropewalk.runtime.errors import InvalidOption
from ropewalk.runtime.supervision import Failure, contain

__all__ = ["PROVIDERS", "find_model", "find_object", "find_tools", "name_of_model"]

PROVIDERS = ("local", "openai", "anthropic", "bedrock")
"""What a model's name may begin with that is no module of the user's."""


def find_model(name: str | None) -> Model:
    """The model a command's ``--model`` names: a provider's, or an object of a module; None is what `Agent()` takes.

    Raises `NoModel` when a turn would find none, `InvalidOption` for a name of nothing.
    """
    if name is None or ":" not in name or name.partition(":")[0] in PROVIDERS:
        return resolve(name)
    found = find_object(name, "--model")
    if isinstance(found, type | str) or found is None:
        raise InvalidOption(f"--model {name}: this is {found!r:.200}; name an object with a stream() method, such as {name.partition(':')[0]}:model")
    return resolve(found)


def name_of_model(name: str | None, model: Model) -> str:
    """What to call the model in front of people."""
    return name or os.environ.get("ROPEWALK_MODEL") or type(model).__name__


def find_tools(names: Iterable[str]) -> ToolRegistry:
    """The tools that ``--tool MODULE:NAME`` names; a list of tools is taken whole. Raises `InvalidOption`, `InvalidTool` and `DuplicateTool`."""
    return ToolRegistry([find_object(name, "--tool") for name in names])


def find_object(name: str, option: str) -> Any:
    """The object that ``MODULE:NAME`` names, the module looked for here and where Python looks. Raises `InvalidOption`."""
    module_name, _, path = name.partition(":")
    if not module_name or not path:
        raise InvalidOption(f"{option} {name}: name a module and an object in it, such as my_module:{'model' if option == '--model' else 'my_tool'}")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    found: Any = contain(importlib.import_module, module_name)
    if isinstance(found, Failure):
        raise InvalidOption(f"{option} {name}: the module {module_name} cannot be imported ({type(found.error).__name__}: {found.error})") from found.error
    for part in path.split("."):
        if not hasattr(found, part):
            raise InvalidOption(f"{option} {name}: there is no {path} in {module_name}")
        found = getattr(found, part)
    return found
