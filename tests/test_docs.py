"""What the documents show runs as it stands."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ropewalk.actors.models.embedded.packages import is_installed
from ropewalk.actors.tool_check import REQUESTS

ROOT = Path(__file__).parent.parent
PAGES = ["README.md", "docs/api.md", "docs/chat.md", "docs/durability.md", "docs/journals.md", "docs/models.md", "docs/services.md", "docs/testing.md"]
LINK = re.compile(r"\]\((?!https?:)([^)#]+)(#[^)]*)?\)")


def snippets() -> list[Any]:
    found: list[Any] = []
    for page in PAGES:
        blocks = re.findall(r"^```python\n(.*?)^```$", (ROOT / page).read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
        found += [pytest.param(block, id=f"{page}-{number}") for number, block in enumerate(blocks, 1)]
    return found


@pytest.mark.parametrize("snippet", snippets())
def test_a_snippet_runs_as_it_stands(snippet: str, tmp_path: Path) -> None:
    if "EmbeddedModel" in snippet and not is_installed():
        pytest.skip("the embedded model is not installed: run `make embedded`")
    script = tmp_path / "snippet.py"
    script.write_text(snippet, encoding="utf-8")
    environment = {**os.environ, "ROPEWALK_MODEL": "local" if "EmbeddedModel" in snippet else "none"}

    done = subprocess.run([sys.executable, "-W", "error", str(script)], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60, check=False)

    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("page", [*PAGES, "docs/design.md", "CONTRIBUTING.md", "examples/README.md"])
def test_links_lead_somewhere(page: str) -> None:
    for target, _ in LINK.findall((ROOT / page).read_text(encoding="utf-8")):
        assert (ROOT / page).parent.joinpath(target).exists(), f"{page} links to {target}"


def test_the_pictures_fetch_nothing_and_name_no_machine() -> None:
    pictures = sorted((ROOT / "docs").glob("*.svg"))
    assert pictures
    for picture in pictures:
        drawn = picture.read_text(encoding="utf-8")
        assert re.findall(r"https?://[^\"' )]+", drawn) in ([], ["http://www.w3.org/2000/svg"]), picture
        assert "@font-face" not in drawn, picture
        assert str(Path.home()) not in drawn, picture


def test_the_recorded_table_is_of_the_requests_there_are() -> None:
    page = (ROOT / "docs/models.md").read_text(encoding="utf-8")
    table = page.split("<!-- record: check -->")[1].split("<!-- end of record: check -->")[0]
    assert sum(line.strip()[:1] in ("✓", "~", "✗") for line in table.splitlines() if line.strip()) == len(REQUESTS)
    assert all(request.text.split(" ")[0] in table for request in REQUESTS)
