"""Running tool calls: each to exactly one result, several beside each other, all told by the task that asked.

Tools are somebody else's code. Whatever one does (raises, returns nonsense, hangs, is cancelled by itself) costs its own
result and nothing else. What they report on the way is handed to the task that called `run_tools`, so that one task alone
tells a session's story; nothing of it is awaited while a tool's timeout could cut it short.
"""

from __future__ import annotations

import asyncio
import enum
import inspect
import math
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping, Sequence
from functools import partial
from typing import Any, TypeAlias, TypeVar

import anyio
import attrs
import msgspec
from anyio.abc import TaskGroup

from ropewalk.actors.messages import Block
from ropewalk.actors.tools.context import ToolContext
from ropewalk.actors.tools.inputs import read_input
from ropewalk.actors.tools.limits import ToolLimits
from ropewalk.actors.tools.registry import ToolRegistry
from ropewalk.actors.tools.results import (
    call_keys,
    exception_result,
    invalid_input_result,
    missing_result,
    settled,
    success_result,
    timeout_result,
    unknown_tool_result,
    unreadable_input_result,
)
from ropewalk.actors.tools.tool import Tool
from ropewalk.actors.validity import INPUT_DEPTH, MAX_DEPTH, is_dict, is_list
from ropewalk.runtime.errors import WouldDeadlock
from ropewalk.runtime.log import log
from ropewalk.runtime.scopes import CancelScopeLeft, guarded
from ropewalk.runtime.supervision import Failure, attempt, contain

__all__ = ["MakeContext", "run_tool", "run_tools"]

T = TypeVar("T")

MakeContext: TypeAlias = Callable[[Block], ToolContext]
MakeScope: TypeAlias = Callable[[], Any]
Report: TypeAlias = Callable[[Any], Awaitable[object] | None]

_CONTAINERS = (dict, list)
_PLAIN = (str, dict, list, Failure)

PROGRESS_BUFFER = 64
"""How many reports of the tools of one message may wait for the task that tells them; a tool that is further ahead waits."""


class _Odd(enum.Enum):
    """What a call can come to that is neither a value nor an exception."""

    TIMED_OUT = enum.auto()
    NO_ITEM = enum.auto()


# One call -------------------------------------------------------------------------------------------------------------


async def run_tool(
    registry: ToolRegistry,
    tool_use: Block,
    make_context: MakeContext,
    *,
    limits: ToolLimits,
    report: Report | None = None,
) -> Block:
    """Run one call to its ``toolResult`` block. Raises nothing that comes from the tool; cancellation and exits pass.

    :param tool_use: ``{"toolUseId", "name", "input"}``; an input that is a string is the JSON text of one, and gets an error
        result that says so when it cannot be read. The tool sees copies only.
    :param make_context: makes the tool's context from a copy of the tool use.
    :param report: given each item of a generator tool but the last; awaited when it returns an awaitable. What it raises is raised.
    """
    tool_use_id, name = tool_use["toolUseId"], tool_use.get("name")
    tool = registry.get(name) if isinstance(name, str) else None
    if tool is None:
        return unknown_tool_result(tool_use_id, name)
    own = contain(_copied, tool_use)
    if isinstance(own, Failure):
        return invalid_input_result(tool_use_id, own.error)
    given = own.get("input")
    if given is None or isinstance(given, str):
        read = contain(read_input, given or "")
        if isinstance(read, Failure):
            return unreadable_input_result(tool_use_id, given or "", str(read.error))
        own["input"] = given = read
    arguments = contain(_convert, tool, given)
    if isinstance(arguments, Failure):
        return invalid_input_result(tool_use_id, arguments.error, tool.errors)
    context = make_context(own)
    outcome = await _outcome(tool, arguments, context, limits, report)
    if isinstance(outcome, Failure) and isinstance(outcome.error, WouldDeadlock):
        # The program is wrong, and all that would hear of it is a model that can do nothing about it.
        log.warning("tool_would_deadlock", tool=tool.name, session_id=context.session_id, error=str(outcome.error), traceback_of=outcome.error)
    return _block(tool_use_id, tool, outcome)


def _copied(value: Any, depth: int = 0) -> Any:
    """JSON data in containers of its own: what stands in a history is never handed to a tool that could change it."""
    if depth > MAX_DEPTH:
        raise ValueError(f"nested deeper than {INPUT_DEPTH} levels")
    if is_dict(value):
        return {key: _copied(inner, depth + 1) if type(inner) in _CONTAINERS else inner for key, inner in value.items()}
    return [_copied(inner, depth + 1) if type(inner) in _CONTAINERS else inner for inner in value] if is_list(value) else value


def _convert(tool: Tool, tool_input: Any) -> dict[str, Any]:
    if not is_dict(tool_input):
        raise msgspec.ValidationError(f"Expected `object`, got `{type(tool_input).__name__}`")
    return tool.convert(tool_input)


def _block(tool_use_id: str, tool: Tool, outcome: Any) -> Block:
    if isinstance(outcome, Failure):
        return exception_result(tool_use_id, outcome.error, tool.errors)
    if outcome is _Odd.TIMED_OUT:
        return timeout_result(tool_use_id, tool.name, tool.timeout or 0.0)
    if outcome is _Odd.NO_ITEM:
        return missing_result(tool_use_id, tool.name)
    return success_result(tool_use_id, outcome)


async def _outcome(tool: Tool, arguments: dict[str, Any], context: ToolContext, limits: ToolLimits, report: Report | None) -> Any:
    """What a call comes to: a value, a `Failure` or an `_Odd`."""
    scope = _scopes(tool, limits)
    place = limits.place_for(tool)
    if place is None:
        return await _followed(contain(tool.call, arguments, context), context, scope, report)
    try:
        entered = await _contact(place.enter(), context, scope)
        if entered is not None:
            return entered
        if place.threaded:
            value = await _contact(place.in_thread(tool.call, arguments, context), context, scope)
        else:
            value = contain(tool.call, arguments, context)
        return await _followed(value, context, scope, report)
    finally:
        place.leave()


def _scopes(tool: Tool, limits: ToolLimits) -> MakeScope:
    """Makes the scopes of one call: all of them end when the tool's time is up."""
    backend = limits.backend
    return backend.scope if tool.timeout is None else partial(backend.scope, deadline=backend.now() + tool.timeout)


async def _followed(value: Any, context: ToolContext, scope: MakeScope, report: Report | None) -> Any:
    """What a call returned, awaited if it is awaitable and iterated if it is then iterable, whatever kind of callable returned it."""
    if type(value) in _PLAIN:
        return value
    if inspect.isawaitable(value):
        value = await _contact(value, context, scope)
    if type(value) not in _PLAIN and isinstance(value, AsyncIterator):
        items: AsyncIterator[Any] = value
        value = await _last_item(items, context, scope, report)
    return value


async def _last_item(items: AsyncIterator[Any], context: ToolContext, scope: MakeScope, report: Report | None) -> Any:
    last: Any = _Odd.NO_ITEM
    try:
        while True:
            item = await _contact(_next(items), context, scope)
            if isinstance(item, Failure) and isinstance(item.error, StopAsyncIteration):
                return last
            if isinstance(item, Failure | _Odd):
                return item
            if last is not _Odd.NO_ITEM:
                await _tell(report, last)
            last = item
    finally:
        await _contact(_closed(items), context, scope)


async def _next(items: AsyncIterator[Any]) -> Any:
    return await items.__anext__()


async def _closed(items: Any) -> None:
    if hasattr(items, "aclose"):
        await items.aclose()


async def _contact(work: Awaitable[T], context: ToolContext, scope: MakeScope) -> T | Failure | _Odd:
    """Await a piece of a tool's work until the deadline; never raises but cancellation that is meant for us, and exits."""
    try:
        with guarded(scope()):
            try:
                return await attempt(work)
            except anyio.get_cancelled_exc_class():
                if not _being_cancelled():
                    return Failure(RuntimeError("the tool cancelled its own work"))
                context.cancel_flag.raised = True
                raise
            except BaseExceptionGroup as group:
                # A tool that fails while it is being cancelled has a group of both; only the cancellation is ours to pass on.
                cancelled, rest = group.split(anyio.get_cancelled_exc_class())
                context.cancel_flag.raised = True
                raise cancelled if cancelled is not None and isinstance(rest, ExceptionGroup) else group from None
    except CancelScopeLeft as left:
        return Failure(left)
    return _Odd.TIMED_OUT


def _being_cancelled() -> bool:
    """Whether a cancellation that arrived is meant for this task: a task the tool awaited may have been cancelled instead."""
    task = contain(asyncio.current_task)
    if isinstance(task, asyncio.Task):
        return task.cancelling() > 0
    return anyio.current_effective_deadline() == -math.inf


async def _tell(callback: Callable[..., Awaitable[object] | None] | None, *arguments: Any) -> None:
    if callback is not None:
        told = callback(*arguments)
        if told is not None:
            await told


# The calls of one message ---------------------------------------------------------------------------------------------


async def run_tools(
    registry: ToolRegistry,
    tool_uses: Sequence[Block],
    make_context: MakeContext,
    *,
    outcomes: MutableMapping[str, Block],
    limits: ToolLimits,
    started: Callable[[Block], Awaitable[object] | None] | None = None,
    ended: Callable[[Block, Block, float], Awaitable[object] | None] | None = None,
    report: Callable[[Block, Any], Awaitable[object] | None] | None = None,
) -> list[Block]:
    """Run the calls of one message beside each other, those that have no outcome yet; the results of all in request order.

    The callbacks, sync or async, are called in the caller's task only, one at a time; what one raises stops the calls that
    still run and is raised. A single call runs in the caller's task itself.

    :param outcomes: filled with each result the moment it is there, under the keys of `call_keys`; after a cancellation,
        `settled` makes the list of results from it. It may then hold results that `ended` was not told of.
    :param started: told the tool use before the tool is called.
    :param ended: told the tool use, its result, and the seconds from call to result.
    :param report: told the tool use and each item of a generator tool but the last.
    """
    keys = call_keys(tool_uses)

    now = limits.backend.now

    async def call(key: str, tool_use: Block, tell: Report | None) -> tuple[Block, float]:
        begun = now()
        outcomes[key] = block = await run_tool(registry, tool_use, make_context, limits=limits, report=tell)
        return block, now() - begun

    calls = [(key, tool_use) for key, tool_use in zip(keys, tool_uses, strict=True) if key not in outcomes]
    if len(calls) == 1:
        [(key, tool_use)] = calls
        await _tell(started, tool_use)
        block, seconds = await call(key, tool_use, report and partial(report, tool_use))
        await _tell(ended, tool_use, block, seconds)
    elif calls:
        await _run_together(call, calls, _Listener(started, ended, report))
    return settled(tool_uses, outcomes)  # a tool that cancelled the task it ran in took its result along


_TimedCall: TypeAlias = Callable[[str, Block, Report | None], Awaitable[tuple[Block, float]]]


@attrs.frozen
class _Listener:
    started: Callable[[Block], Awaitable[object] | None] | None
    ended: Callable[[Block, Block, float], Awaitable[object] | None] | None
    report: Callable[[Block, Any], Awaitable[object] | None] | None


async def _run_together(call: _TimedCall, calls: list[tuple[str, Block]], listener: _Listener) -> None:
    """Run each call in a task of its own, and tell the listener of them in this one."""
    sender, receiver = anyio.create_memory_object_stream[tuple[bool, tuple[Any, ...]]](PROGRESS_BUFFER)

    async def run(key: str, tool_use: Block) -> None:
        async def hand_over(data: Any) -> None:
            await sender.send((False, (tool_use, data)))

        try:
            block, seconds = await call(key, tool_use, listener.report and hand_over)
        except SystemExit as left:  # let out of a task of its own, it would end the event loop
            exits.append(left)
            group.cancel_scope.cancel()
            return
        await sender.send((True, (tool_use, block, seconds)))

    async def conduct(group: TaskGroup) -> None:
        for key, tool_use in calls:
            await _tell(listener.started, tool_use)
            group.start_soon(run, key, tool_use)
        left = len(calls)
        while left:
            is_end, arguments = await receiver.receive()
            left -= is_end
            await _tell(listener.ended if is_end else listener.report, *arguments)

    failed: Failure | None = None
    exits: list[SystemExit] = []
    with sender, receiver:
        async with anyio.create_task_group() as group:
            # Raised after the group has ended, a listener's exception comes out as it is, not wrapped in a group.
            failed = await attempt(conduct(group))
            if failed is not None:
                group.cancel_scope.cancel()
    if exits:
        raise exits[0]
    if failed is not None:
        raise failed.error
