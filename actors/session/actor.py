"""The session actor: one incarnation of a conversation, which handles its messages one at a time."""

from __future__ import annotations

import math
from collections.abc import Awaitable
from typing import TYPE_CHECKING, Any

import anyio
import msgspec

from ropewalk.actors.events import InsertedEntry, MessageAdded, Snapshot, ViewChanged
from ropewalk.actors.messages import copy_of
from ropewalk.actors.result import MetricsLedger
from ropewalk.actors.session.direct import (
    AddMessages,
    CallTool,
    Pin,
    Redact,
    Rewind,
    SetMessages,
    call_tool,
    change_history,
    redact,
    show,
    tool_limits,
    wanted_by,
)
from ropewalk.actors.session.driver import TurnDriver
from ropewalk.actors.session.ending import end_unbegun
from ropewalk.actors.session.prompt import Prompt
from ropewalk.actors.session.recovery import cut_off
from ropewalk.actors.session.watchdog import Watchdog
from ropewalk.actors.session.writer import Writer
from ropewalk.actors.tools import ToolLimits
from ropewalk.actors.view import Edit, Entry, listed
from ropewalk.runtime.cell import Cell
from ropewalk.runtime.envelope import Envelope
from ropewalk.runtime.errors import InvalidOption
from ropewalk.runtime.supervision import Failure, attempt, contain
from ropewalk.runtime.surroundings import messages_around

if TYPE_CHECKING:
    from ropewalk.actors.conversation import ConversationManager
    from ropewalk.actors.session.state import OpenTurn, SessionState
    from ropewalk.actors.spec import AgentSpec

__all__ = ["Figures", "SessionActor"]


class Figures(msgspec.Struct, frozen=True, gc=False):
    """Messages in a session's view, settled turns, their model calls and tokens. One object without parts, for many handles keep one."""

    messages: int = 0
    turns: int = 0
    cycles: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    total_tokens: int = 0


class SessionActor:
    """A conversation in memory. `driver` works on the running turn, None between turns; `manager` is the spec's, or the one that took its place."""

    __slots__ = ("_ledger", "cell", "driver", "manager", "manager_failures", "spec", "writer")

    def __init__(self, spec: AgentSpec, cell: Cell, writer: Writer) -> None:
        self.spec = spec
        self.cell = cell
        self.writer = writer
        self.driver: TurnDriver | None = None
        self.manager: ConversationManager = spec.conversation_manager
        self.manager_failures = 0
        self._ledger: MetricsLedger | None = None

    @property
    def state(self) -> SessionState:
        """What the journal knows of this session."""
        return self.writer.state

    @property
    def ledger(self) -> MetricsLedger:
        """The session's accounts."""
        if self._ledger is None:
            self._ledger = MetricsLedger(self.state.cycles, self.state.usage)
        return self._ledger

    def account_for(self, turn: OpenTurn) -> None:
        """Take what an open turn came to in other processes into the accounts; its end is yet to be recorded."""
        read, written, total = self.state.usage
        more = turn.usage
        self._ledger = MetricsLedger(self.state.cycles + turn.cycles, (read + more[0], written + more[1], total + more[2]))

    def summary(self) -> Figures:
        """What the session's handle shows when this incarnation is gone."""
        state = self.state
        return Figures(len(state.view), state.turns, state.cycles, *state.usage)

    @property
    def status(self) -> str:
        """What the session does now: idle, running or reducing; in doubt is idle after a turn with a tool call whose outcome nobody knows."""
        if self.driver is not None:
            return self.driver.status
        return "in doubt" if self.state.in_doubt else "idle"

    @property
    def tool_limits(self) -> ToolLimits:
        """The bounds on tool calls that all sessions of this runtime share."""
        return tool_limits(self.cell.runtime)

    @property
    def model_limiter(self) -> anyio.CapacityLimiter:
        """The bound on model calls that all sessions of this spec in this runtime share; there is none where `model_concurrency` is None."""
        return self.cell.runtime.resource((self.spec, "model"), lambda: anyio.CapacityLimiter(self.spec.model_concurrency or math.inf))

    @property
    def watchdog(self) -> Watchdog:
        """What notices that a model has fallen silent."""
        runtime = self.cell.runtime
        return runtime.resource(Watchdog, lambda: Watchdog(runtime))

    async def receive(self, envelope: Envelope) -> Any:
        """Handle one message: a prompt becomes a turn, the others are done at once."""
        try:
            if isinstance(envelope, Prompt) and not envelope.left:
                await TurnDriver(self, envelope).run()
                reply = None
            else:
                reply = await self._handle(envelope)
            if self.writer.is_snapshot_due:
                await self.writer.keep_snapshot()
            return reply
        except SystemExit as left:  # of a tool called directly, or of a handler: the asker's, and it comes where nothing is half done
            envelope.outcome.fail(left)
            return None

    async def _handle(self, envelope: Envelope) -> Any:
        if isinstance(envelope, Prompt):
            from ropewalk.actors.session.acceptance import settle_unbegun

            said = cut_off(self, envelope)
            await self.writer.commit_whole()
            settle_unbegun(self, envelope, said)
            await self.writer.commit_whole()
            return None
        match envelope.body:
            case CallTool() as call:
                return await call_tool(self, call)
            case AddMessages() | SetMessages() as change:
                wanted = contain(wanted_by, change, self.state.view.messages)
                if not isinstance(wanted, Failure):
                    return await show(self, wanted, "added" if isinstance(change, AddMessages) else "replaced")
                envelope.outcome.fail(wanted.error)  # turned down, and the session goes on as it was
                return None
            case Rewind() | Pin() as change:
                changed = await attempt(change_history(self, change))
                if isinstance(changed, Failure):
                    if not isinstance(changed.error, InvalidOption):
                        raise changed.error
                    envelope.outcome.fail(changed.error)
                return None
            case Redact() as change:
                return await redact(self, change)
            case other:
                raise TypeError(f"a session does not know the message {other!r:.200}")

    async def passivate(self) -> None:
        """Have the journal hold, and readers hear of, all there is: the incarnation is about to be let go."""
        await self.writer.commit_whole()
        await self.writer.keep_snapshot()

    def cancel(self) -> None:
        """End what is being handled; a turn keeps what was streamed, as if it had been cancelled."""
        current = self.cell.current
        if isinstance(current, Prompt):
            current.left = True  # one whose turn has not begun
        if self.driver is not None:
            self.driver.cancel()
        elif current is not None and isinstance(current.body, CallTool):
            current.body.scope.cancel()

    def turned_away(self, envelope: Envelope) -> None:
        """A prompt that waited will have no turn; a journal that fails now is noticed by whoever writes next."""
        if not isinstance(envelope, Prompt):
            return
        cut_off(self, envelope)
        if self.state.is_waiting(envelope.prompt_id):
            end_unbegun(self, envelope.prompt_id, "failed", envelope.streams)
        contain(self.writer.flush)

    def untold(self) -> Awaitable[None] | None:
        """What to wait for before a snapshot tells no more than readers have heard. Code of the turn itself must not wait for that."""
        if any(cell is self.cell for cell, _ in messages_around()):
            return None
        return self.writer.untold()

    def snapshot(self) -> Snapshot:
        """The session as it is now, for a reader that comes late."""
        driver = self.driver
        if driver is not None and driver.result is not None and not self.writer.is_behind:
            driver = None  # its end has been told, and only what is no part of it is still waited for
        view, partial = listed(self.state.view.entries), "" if driver is None else driver.partial_text
        turn_id, request_state = (None, None) if driver is None else (driver.turn_id, driver.request_state)
        status = "idle" if driver is None else driver.status
        return self.writer.publisher.as_of_now(Snapshot, turn_id, request_state, view, partial, status)

    def announce_edit(self, edit: Edit, turn_id: str | None, request_state: dict[str, Any] | None) -> None:
        """Have a change of the view published once it is durable."""
        if edit.removed or edit.inserted:
            inserted = tuple(
                InsertedEntry(f"e{placed.after}" if placed.after else None, placed.entry.id, copy_of(placed.entry.message)) for placed in edit.inserted
            )
            self.writer.announce(ViewChanged, turn_id, request_state, edit.reason, tuple(f"e{number}" for number in edit.removed), inserted)

    def announce_entry(self, entry: Entry, request_state: dict[str, Any] | None, replaces: int = 0) -> None:
        """Have a message at the end of the view published once it is durable."""
        writer = self.writer
        message = copy_of(entry.message) if writer.publisher.wanted(MessageAdded) else entry.message
        writer.announce(MessageAdded, entry.turn_id, request_state, f"e{entry.number}", message, f"e{replaces}" if replaces else None)
