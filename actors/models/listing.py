"""Which models can be named here and now."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator

from ropewalk.actors.models.embedded.packages import INSTALL, MODEL, MODEL_NAME, is_installed

__all__ = ["listing"]


def listing() -> Iterator[tuple[str, str]]:
    """What may be named, each with what it is or what it lacks."""
    is_default = not os.environ.get("ROPEWALK_MODEL")
    if is_installed():
        yield "local", f"{MODEL_NAME} in this process' own engine ({MODEL.licence}){', what Agent() takes' if is_default else ''}"
    else:
        yield "local", f"not installed: run `{INSTALL}`"
    if importlib.util.find_spec("openai") is None:
        yield "openai:NAME", "needs the official client: pip install 'ropewalk[openai]'"
    elif not os.environ.get("OPENAI_API_KEY"):
        yield "openai:NAME", "needs a key in $OPENAI_API_KEY (any server that speaks OpenAI's chat completions: $OPENAI_BASE_URL)"
    else:
        yield "openai:NAME", f"at {os.environ.get('OPENAI_BASE_URL') or 'OpenAI'}"
    yield "MODULE:NAME", "an object of your own with a stream() method (on the command line)"
    if not is_default:
        yield "$ROPEWALK_MODEL", f"is {os.environ['ROPEWALK_MODEL']}, which Agent() takes"
