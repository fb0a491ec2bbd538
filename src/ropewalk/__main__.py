"""The command ``ropewalk``, also as ``python -m ropewalk``."""

from __future__ import annotations

__all__ = ["main"]


def main() -> None:
    """Run the command line; ends the process with its exit status."""
    from ropewalk.actors.cli import main as run

    run()


if __name__ == "__main__":
    main()
