"""The commands of a chat: lines that begin with a slash, which are for the chat and never reach the model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TypeAlias

from ropewalk.actors.chat.notes import Note, call_in_short, result_in_short
from ropewalk.actors.messages import Block, Message
from ropewalk.actors.portal import portal
from ropewalk.actors.session.handle import SessionStatistics
from ropewalk.actors.terminal.printable import in_short

if TYPE_CHECKING:
    from ropewalk.actors.chat.chat import Chat
    from ropewalk.actors.chat.page import Page

__all__ = ["COMMANDS", "run_command", "show_history", "status_rows", "unknown"]

NO_TOOLS = "There are no tools: --tool MODULE:NAME gives one of your own, --tools the built-in calculator and current_time."

Rows: TypeAlias = Sequence[tuple[str, str]]


def run_command(chat: Chat, line: str) -> bool:
    """Do what the line asks of the chat; returns whether the chat goes on."""
    name = line.split(maxsplit=1)[0]
    if name == "/quit":
        return False
    command = COMMANDS.get(name)
    if command is None:
        chat.page.say(unknown(name))
    else:
        command[1](chat)
    if chat.reader.edits:
        chat.page.space()
    return True


def unknown(name: str) -> str:
    """What is said to a command that is none."""
    there_are = ", ".join(COMMANDS)
    return f"There is no command {in_short(name, 60)}; there are {there_are}. A prompt that begins with a slash is written with a space before it."


def _help(chat: Chat) -> None:
    chat.page.say(_aligned([(name, about) for name, (about, _) in COMMANDS.items()]))
    chat.page.say("Ctrl-C ends an answer, Ctrl-D leaves.")


def _status(chat: Chat) -> None:
    chat.page.say(_aligned(status_rows(chat.model_name, chat.session.id, chat.session.statistics())))


def status_rows(model_name: str, session_id: str, statistics: SessionStatistics) -> Rows:
    """What a session is and has done, for people."""
    read, written, total = statistics.input_tokens, statistics.output_tokens, statistics.total_tokens
    return [
        ("model", model_name),
        ("session", session_id),
        ("status", statistics.status),
        ("turns", f"{statistics.turns:,}"),
        ("messages", f"{statistics.messages:,}"),
        ("tokens", f"{total:,} ({read:,} read, {written:,} written)" if total else "none reported"),
    ]


def _history(chat: Chat) -> None:
    session = chat.session
    messages = portal().call(lambda runtime: session.messages())
    if messages:
        if chat.reader.edits:
            chat.page.space()
        show_history(messages, chat.page)
    else:
        chat.page.say("Nothing has been said.")


def show_history(messages: Sequence[Message], page: Page) -> None:
    """Show a conversation as it was shown when it was held."""
    calls: dict[str, Block] = {}
    for message in messages:
        for block in message["content"]:
            if "text" in block:
                (page.prompt if message["role"] == "user" else page.answer)(block["text"])
            elif "toolUse" in block:
                calls[block["toolUse"]["toolUseId"]] = block["toolUse"]
            elif "toolResult" in block:
                page.note(_called(calls, block["toolResult"]))
            elif "reasoningContent" in block:
                page.answer(str(block["reasoningContent"].get("reasoningText", {}).get("text", "[redacted]")), "reasoning")
            else:
                page.say(f"[{next(iter(block))}]")


def _called(calls: dict[str, Block], result: Block) -> Note:
    call = calls.get(result["toolUseId"])
    before = "a tool" if call is None else call_in_short(call)
    return Note("good" if result.get("status", "success") == "success" else "bad", f"{before} → {result_in_short(result)}")


def _tools(chat: Chat) -> None:
    rows = [(tool["name"], in_short(tool["description"].strip().partition("\n")[0], 200)) for tool in chat.spec.tools.specs]
    chat.page.say(_aligned(rows) if rows else NO_TOOLS)


def _new(chat: Chat) -> None:
    chat.new_session()
    chat.page.say("A new conversation; the model knows nothing of the one before.")


def _quit(chat: Chat) -> None:
    """Leaving is the loop's business."""


def _aligned(rows: Rows) -> str:
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:<{width}}  {text}" for name, text in rows)


COMMANDS: dict[str, tuple[str, Callable[[Chat], None]]] = {
    "/help": ("these lines", _help),
    "/status": ("the session: its model, turns, messages and tokens", _status),
    "/history": ("what the model is shown of the conversation", _history),
    "/tools": ("what the model may call", _tools),
    "/new": ("a new conversation", _new),
    "/quit": ("leave", _quit),
}
