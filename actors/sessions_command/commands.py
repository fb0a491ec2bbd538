"""The commands as they are written on the command line. What they need is imported by each, so that others start at once."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Awaitable, Callable, Generator
from contextlib import contextmanager
from typing import IO, Any, TypeVar

import click

from ropewalk.actors.usage import usage_errors

__all__ = ["sessions"]

T = TypeVar("T")

NARROWEST, WIDEST = 40, 120

journal_option = click.option(
    "--journal",
    "path",
    required=True,
    envvar="ROPEWALK_JOURNAL",
    show_envvar=True,
    metavar="PATH",
    type=click.Path(),
    help="The SQLite file that the sessions are kept in.",
)


@click.group()
def sessions() -> None:
    """List, show, export, import, fork, delete and check sessions.

    They are those in a journal, which may be looked at while a program works with it.
    """


@sessions.command("list")
@journal_option
def list_sessions(path: str) -> None:
    """When each session was last used, how many messages were said in it, whether a turn is unfinished, its agent and its id."""
    from ropewalk.actors.sessions_command.work import list_all

    _run(list_all, path, click.echo)


@sessions.command()
@click.argument("session")
@journal_option
def show(path: str, session: str) -> None:
    """Everything that was ever said in a session, and what the model is shown no more."""
    from ropewalk.actors.sessions_command.work import show_one

    width = min(max(shutil.get_terminal_size().columns, NARROWEST), WIDEST)
    _run(show_one, path, session, width, click.echo)


@sessions.command()
@click.argument("session")
@click.argument("file", type=click.Path(dir_okay=False, allow_dash=True), default="-")
@journal_option
def export(path: str, session: str, file: str) -> None:
    """A session as JSON lines, into a new FILE or to standard output."""
    from ropewalk.actors.sessions_command.work import export_one

    if file == "-":
        _run(export_one, path, session, lambda line: click.echo(line, nl=False))
        return
    written: list[IO[str]] = []

    def write(line: str) -> None:
        if not written:  # not before there is something to write: a session that is not there leaves no file
            written.append(open(file, "x", encoding="utf-8", newline="\n"))  # noqa: SIM115 - closed below
        written[0].write(line)

    with _files():
        try:
            _run(export_one, path, session, write)
        finally:
            for opened in written:
                opened.close()
    click.echo(f"{session} is in {file}.", err=True)


@sessions.command("import")
@click.argument("file", type=click.Path(dir_okay=False, allow_dash=True), default="-")
@click.option("--as", "session", metavar="ID", help="The id it gets.  [default: the one it had]")
@journal_option
def import_(path: str, file: str, session: str | None) -> None:
    """A session from FILE, or from standard input, as `export` wrote it. It is brought in whole or not at all."""
    from ropewalk.actors.sessions_command.work import import_one

    with _files():
        if file == "-":
            lines = sys.stdin.readlines()
        else:
            with open(file, encoding="utf-8", errors="replace", newline="\n") as opened:
                lines = opened.readlines()
    click.echo(f"{_run(import_one, path, lines, session)} is in {path}.")


@sessions.command()
@click.argument("session")
@click.argument("new")
@click.option("--at", metavar="ENTRY", help="The entry its past ends with, one that a turn ended with.  [default: the last such]")
@journal_option
def fork(path: str, session: str, new: str, at: str | None) -> None:
    """Begin a session NEW with the past of another, which is shared and not copied."""
    from ropewalk.actors.sessions_command.work import fork_one

    _run(fork_one, path, session, new, at)
    click.echo(f"{new} goes on from {session}.")


@sessions.command()
@click.argument("session")
@click.option("--yes", is_flag=True, help="Do not ask.")
@journal_option
def delete(path: str, session: str, yes: bool) -> None:
    """Delete a session, and all that was said in it, for good."""
    from ropewalk.actors.sessions_command.work import delete_one

    if not yes:
        click.confirm(f"Delete {session} and all that was said in it?", abort=True)
    _run(delete_one, path, session)
    click.echo(f"{session} is deleted.")


@sessions.command()
@journal_option
def check(path: str) -> None:
    """Look whether the file, each record in it, and what the records say is sound. The status is 1 when something is not."""
    from ropewalk.actors.sessions_command.work import check_all

    problems = _run(check_all, path, click.echo)
    if problems:
        raise click.ClickException("\n".join(problems))
    click.echo("All of it is sound.")


def _run(work: Callable[..., Awaitable[T]], *arguments: Any) -> T:
    import anyio

    with usage_errors():
        return anyio.run(work, *arguments)


@contextmanager
def _files() -> Generator[None]:
    """What the file system refuses, as a sentence."""
    try:
        yield
    except FileExistsError as error:
        raise click.ClickException(f"there is a file {error.filename} already; name one that is not there yet") from error
    except OSError as error:
        raise click.ClickException(f"{error.filename}: {error.strerror}") from error
