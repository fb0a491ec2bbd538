"""The chat's own loop: a line is read, and is a command of the chat or a prompt for the model.

The main thread reads, and waits while the answer is streamed in the process' portal. So Ctrl-C reaches it wherever it is:
during an answer it ends the answer's turn, at the prompt it says how to leave.
"""

from __future__ import annotations

import os
import sys

import anyio
import attrs
from rich.console import Console

import ropewalk
from ropewalk.actors.chat.commands import COMMANDS, run_command
from ropewalk.actors.chat.notes import Note, failure_in_words
from ropewalk.actors.chat.page import Page, PlainPage, TerminalPage
from ropewalk.actors.chat.reader import Reader
from ropewalk.actors.chat.tools import DEMONSTRATION_TOOLS
from ropewalk.actors.conversation import SlidingWindowConversationManager
from ropewalk.actors.models.embedded import EmbeddedModel
from ropewalk.actors.portal import portal
from ropewalk.actors.session.handle import Session
from ropewalk.actors.spec import AgentSpec
from ropewalk.actors.terminal.named import find_model, find_tools, name_of_model
from ropewalk.actors.tools import ToolRegistry
from ropewalk.runtime.errors import RopewalkError
from ropewalk.runtime.runtime import Runtime
from ropewalk.runtime.supervision import Failure, attempt

__all__ = ["Chat", "ChatOptions", "run_chat"]

DRAW_SECONDS = 0.08
HOW_TO_LEAVE = "(/quit or Ctrl-D leaves)"


@attrs.frozen(kw_only=True)
class ChatOptions:
    """How a chat is held.

    :param model: the model's name, see `find_model`; None is what `Agent()` takes.
    :param system: the system prompt.
    :param tools: further tools, each as ``MODULE:NAME``.
    :param demonstration_tools: whether there are the built-in ones too, each unless a further tool has its name; None is
        yes, except for the embedded model, which calls them when it should not.
    :param window: how many messages the model is shown at most; None is the library's own number.
    """

    model: str | None = None
    system: str | None = None
    tools: tuple[str, ...] = ()
    demonstration_tools: bool | None = None
    window: int | None = None


def run_chat(options: ChatOptions) -> int:
    """Chat on this process' standard streams until somebody leaves; returns the exit status.

    It is 1 when prompts came from a pipe and one of them failed, else 0. Raises `NoModel` and `InvalidOption` before the
    first prompt is read.
    """
    model, own = find_model(options.model), find_tools(options.tools)
    wanted = not isinstance(model, EmbeddedModel) if options.demonstration_tools is None else options.demonstration_tools
    given = [tool for tool in DEMONSTRATION_TOOLS if wanted and own.find(tool.name) is None]
    spec = AgentSpec(
        name="chat",
        model=model,
        system_prompt=options.system,
        tools=ToolRegistry([given, own]),
        conversation_manager=None if options.window is None else SlidingWindowConversationManager(window_size=options.window),
    )
    page = _page()
    return Chat(spec, name_of_model(options.model, model), page, Reader(list(COMMANDS), styled=isinstance(page, TerminalPage))).run()


def _page() -> Page:
    if not sys.stdout.isatty():
        return PlainPage(sys.stdout, sys.stderr)
    if os.environ.get("NO_COLOR") or os.environ.get("TERM") in (None, "", "dumb", "unknown"):
        return PlainPage(sys.stdout, sys.stdout)
    return TerminalPage(Console(file=sys.stdout, highlight=False, force_terminal=True))


class Chat:
    """One chat: its session, the page it is shown on, and who asks."""

    def __init__(self, spec: AgentSpec, model_name: str, page: Page, reader: Reader) -> None:
        self.spec = spec
        self.model_name = model_name
        self.page = page
        self.reader = reader
        self.failed = 0
        self.session = self.new_session()

    def run(self) -> int:
        """Until somebody leaves; returns the exit status."""
        if self.reader.edits:
            self.page.say(f"Ropewalk {ropewalk.__version__}, model {self.model_name}. /help lists the commands, Ctrl-D leaves.")
            self.page.space()
        while self._step():
            pass
        return 1 if self.failed and not self.reader.interactive else 0

    def new_session(self) -> Session:
        """Begin a conversation without a history."""

        async def begin(runtime: Runtime) -> Session:
            session: Session = await runtime.open(f"chat-{runtime.clock.new_id()}", self.spec)
            return session

        self.session = portal().call(begin)
        return self.session

    def _step(self) -> bool:
        """One line, whatever it is; returns whether to go on."""
        try:
            line = self.reader.read()
            if line is None:
                return False
            if line.startswith("/"):
                return run_command(self, line)
            if line.strip():
                self._ask(line)
        except KeyboardInterrupt:
            if not self.reader.interactive:
                raise
            if not self.reader.interrupted():
                self.page.note(Note("plain", HOW_TO_LEAVE))
                if self.reader.edits:
                    self.page.space()
        return True

    def _ask(self, prompt: str) -> None:
        """Have a prompt answered. Ctrl-C ends its turn and not the program."""
        page, session = self.page, self.session
        if not self.reader.interactive:
            page.asked(prompt)
        with self.reader.silent():
            try:
                page.begin()
                portal().call(lambda runtime: _show_turn(session, prompt, page))
                page.end()
            except KeyboardInterrupt:
                page.end()
                portal().call(lambda runtime: session.cancel())
                page.note(Note("plain", "(cancelled)"))
                if not self.reader.interactive:
                    raise
            except RopewalkError as error:
                page.end()
                page.note(Note("bad", failure_in_words(error)))
                self.failed += 1
            finally:
                page.end()
        if self.reader.edits:
            page.space()


async def _show_turn(session: Session, prompt: str, page: Page) -> None:
    """Send the prompt and show its turn as it happens; raises what failed it. Leaving ends the turn."""

    async def follow() -> None:
        async with session.stream(prompt, on_leave="cancel") as events:
            async for event in events:
                page.show(event)

    async def draw() -> None:
        while True:
            await anyio.sleep(DRAW_SECONDS)
            page.draw()

    if not page.moves:
        return await follow()
    followed: Failure | None = None
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(draw)
        followed = await attempt(follow())
        tasks.cancel_scope.cancel()
    if followed is not None:
        raise followed.error
    return None
