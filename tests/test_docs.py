"""What the documents show runs as it stands."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
PAGES = ["README.md", "docs/chat.md", "docs/models.md", "docs/testing.md"]
LINK = re.compile(r"\]\((?!https?:)([^)#]+)(#[^)]*)?\)")


def snippets() -> list[Any]:
    found: list[Any] = []
    for page in PAGES:
        blocks = re.findall(r"^```python\n(.*?)^```$", (ROOT / page).read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
        found += [pytest.param(block, id=f"{page}-{number}") for number, block in enumerate(blocks, 1)]
    return found


@pytest.mark.parametrize("snippet", snippets())
def test_a_snippet_runs_as_it_stands(snippet: str, tmp_path: Path) -> None:
    script = tmp_path / "snippet.py"
    script.write_text(snippet, encoding="utf-8")

    done = subprocess.run([sys.executable, "-W", "error", str(script)], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)

    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("page", [*PAGES, "docs/design.md", "CONTRIBUTING.md", "examples/README.md"])
def test_links_lead_somewhere(page: str) -> None:
    for target, _ in LINK.findall((ROOT / page).read_text(encoding="utf-8")):
        assert (ROOT / page).parent.joinpath(target).exists(), f"{page} links to {target}"
