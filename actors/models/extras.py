"""What the extras of Ropewalk bring that models need, and which of it this environment lacks."""

from __future__ import annotations

import importlib.util

__all__ = ["missing_for_openai"]

OPENAI_PACKAGES = ("openai", "httpx2")


def missing_for_openai() -> str:
    """What is missing for models behind OpenAI's API, and how to get it, in words that follow "run"; empty when all is there."""
    missing = [package for package in OPENAI_PACKAGES if importlib.util.find_spec(package) is None]
    return f"`pip install 'ropewalk[openai]'` first, for {' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} not installed" if missing else ""
