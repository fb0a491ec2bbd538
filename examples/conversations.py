"""Eight hundred real conversations at once, each a session with tools of its own, each checked to the last letter.

The conversations come from the public function-calling leaderboard: people talk over several turns with a model that
works a file system, books flights, trades shares, files tickets, drives a car. A scripted model plays the calls known
to be right, one to a cycle, so that what is left to be right or wrong is the runtime's part: every prompt answered, every
tool called once and in order, nobody's state touched by a neighbour. The same calls made by hand say what must come out.

    python examples/conversations.py [--sets base,long_context] [--backend trio|asyncio] [--limit N]
"""

from __future__ import annotations

import math
import sys
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import anyio
import attrs
import click
from rich.box import SIMPLE
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from conversation_data import (
    FOLDER,
    SETS,
    Answer,
    Conversation,
    ConversationsMissing,
    Function,
    Turn,
    admitting,
    load_conversations,
    make_instances,
    perform,
    play_directly,
    public_state,
)
from ropewalk import AgentSpec, NullConversationManager, RopewalkError, Runtime, Tool, ToolContext
from ropewalk.testing import Reply, ScriptedModel, ToolUse

__all__ = ["Fault", "Report", "SetResult", "make_agent", "make_tools", "run_conversations"]

SHOWN_FAULTS = 10

Message = dict[str, Any]


@attrs.frozen
class Fault:
    """What a session did otherwise than the same calls made by hand."""

    conversation_id: str
    text: str


@attrs.frozen
class SetResult:
    """What came of the conversations of one set, or of all.

    `tool_errors` counts the calls whose tool says they failed, `equal` the conversations without a fault. `seconds` runs
    from the common start to the end of the set's last turn; `p50` and `p99` are seconds from asking to having the
    result, while every other session is asking too.
    """

    name: str
    conversations: int
    turns: int
    calls: int
    tool_errors: int
    equal: int
    seconds: float
    p50: float
    p99: float


@attrs.frozen
class Report:
    """The result of each set, of all together, and every fault."""

    sets: tuple[SetResult, ...]
    total: SetResult
    faults: tuple[Fault, ...]

    @property
    def all_equal(self) -> bool:
        """Whether every session ended as the same calls made by hand, and there was one at all."""
        return self.total.conversations > 0 and not self.faults


@attrs.define
class _Played:
    """A session's part of the run, filled in as it goes."""

    conversation: Conversation
    instances: Mapping[str, Any]
    latencies: list[float] = attrs.field(factory=list)
    finished_at: float = 0.0
    messages: Sequence[Message] = ()
    failure: str | None = None


def make_tools(conversation: Conversation) -> tuple[dict[str, Any], list[Tool]]:
    """New instances of the conversation's classes, by class name, and the tools that work on them."""
    instances = make_instances(conversation)
    inputs: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for call in conversation.calls:
        inputs[call.name].append(call.input)
    functions = [function for involved in conversation.tool_classes for function in involved.functions]
    return instances, [_make_tool(function, instances, inputs[function.name]) for function in functions if function.name not in conversation.excluded]


def _make_tool(function: Function, instances: Mapping[str, Any], known_inputs: Sequence[Mapping[str, Any]]) -> Tool:
    # Async although nothing is awaited: a sync tool would run in a worker thread. These calls take microseconds, less
    # than the way there and back; and some of the classes write to their module (the calculator sets the precision
    # of the whole process), which is safe only while no other call can come between the writing and the answer.
    async def call(arguments: dict[str, Any], context: ToolContext) -> str:
        answer = perform(instances, function.name, arguments)
        if answer.failed:
            raise ValueError(answer.text)
        return answer.text

    return Tool(function.name, function.description, admitting(function.input_schema, known_inputs), call)


def _closing_text(turn: Turn) -> str:
    return f"Done: {', '.join(call.name for call in turn.calls)}." if turn.calls else "I cannot do that yet: something I need is missing."


def _replies(turn: Turn) -> list[Reply | str]:
    # One call to a cycle: a cycle's calls run side by side, and these build on each other (`cd`, then `ls`).
    calls: list[Reply | str] = [Reply(tool_uses=[ToolUse(call.name, call.input)]) for call in turn.calls]
    return [*calls, _closing_text(turn)]


def make_agent(conversation: Conversation) -> tuple[dict[str, Any], AgentSpec]:
    """An agent that plays this conversation once, and the instances its tools work on."""
    instances, tools = make_tools(conversation)
    model = ScriptedModel([reply for turn in conversation.turns for reply in _replies(turn)])
    return instances, AgentSpec(name=conversation.id, model=model, tools=tools, conversation_manager=NullConversationManager())


async def run_conversations(conversations: Sequence[Conversation], *, on_progress: Callable[[int, int], None] | None = None) -> Report:
    """Play all the conversations at once in one runtime, then compare each with the same calls made by hand.

    `on_progress(turns_done, turns_in_all)` is called after each turn. A session that fails is a fault of the report and
    disturbs no other.
    """
    in_all = sum(len(conversation.turns) for conversation in conversations)
    done = 0

    def turn_done() -> None:
        nonlocal done
        done += 1
        if on_progress is not None:
            on_progress(done, in_all)

    agents = [make_agent(conversation) for conversation in conversations]
    played = [_Played(conversation, instances) for conversation, (instances, _) in zip(conversations, agents, strict=True)]
    started_at = anyio.current_time()
    async with Runtime() as runtime, anyio.create_task_group() as sessions:
        for part, (_, spec) in zip(played, agents, strict=True):
            sessions.start_soon(_play, runtime, spec, part, turn_done)
    return _report(played, started_at)


async def _play(runtime: Runtime, spec: AgentSpec, part: _Played, turn_done: Callable[[], None]) -> None:
    try:
        session = await runtime.open(part.conversation.id, spec)
        for turn in part.conversation.turns:
            asked_at = anyio.current_time()
            await session.ask(turn.prompt)
            part.finished_at = anyio.current_time()
            part.latencies.append(part.finished_at - asked_at)
            turn_done()
        part.messages = await session.messages()
    except RopewalkError as error:
        part.failure = f"turn {len(part.latencies) + 1} of {len(part.conversation.turns)}: {type(error).__name__}: {error}"


def _report(played: Sequence[_Played], started_at: float) -> Report:
    faults = {part.conversation.id: text for part in played if (text := _fault(part)) is not None}
    names = list(dict.fromkeys(part.conversation.set for part in played))
    sets = tuple(_summary(name, [part for part in played if part.conversation.set == name], faults, started_at) for name in names)
    return Report(sets, _summary("all", played, faults, started_at), tuple(Fault(*item) for item in faults.items()))


def _summary(name: str, played: Sequence[_Played], faults: Mapping[str, str], started_at: float) -> SetResult:
    latencies = sorted(latency for part in played for latency in part.latencies)
    results = [result for part in played for result in _tool_results(part.messages)]
    return SetResult(
        name=name,
        conversations=len(played),
        turns=len(latencies),
        calls=len(results),
        tool_errors=sum(result["status"] == "error" for result in results),
        equal=sum(part.conversation.id not in faults for part in played),
        seconds=max((part.finished_at - started_at for part in played), default=0.0),
        p50=_percentile(latencies, 0.50),
        p99=_percentile(latencies, 0.99),
    )


def _percentile(ordered: Sequence[float], share: float) -> float:
    return ordered[math.ceil(share * len(ordered)) - 1] if ordered else 0.0


def _tool_results(messages: Sequence[Message]) -> list[Message]:
    return [block["toolResult"] for message in messages for block in message["content"] if "toolResult" in block]


def _fault(part: _Played) -> str | None:
    """What is wrong with a session's part, None when nothing is."""
    if part.failure is not None:
        return part.failure
    instances, answers = play_directly(part.conversation)
    expected, found = _expected_history(part.conversation, answers), _numbered(part.messages)
    for position, (right, message) in enumerate(zip(expected, found, strict=False)):
        if right != message:
            return f"message {position} should be {right!s:.300} and is {message!s:.300}"
    if len(expected) != len(found):
        return f"the history should have {len(expected)} messages and has {len(found)}"
    state, right_state = public_state(part.instances), public_state(instances)
    different = [f"{name}.{key}" for name, values in right_state.items() for key, value in values.items() if state[name].get(key) != value]
    return f"the tools ended in another state: {', '.join(different)}" if different else None


def _expected_history(conversation: Conversation, answers: Sequence[Answer]) -> list[Message]:
    """Every message the session must hold. Calls are numbered, since their ids are the model's to choose."""
    history: list[Message] = []
    remaining = enumerate(answers)
    for turn in conversation.turns:
        history.append({"role": "user", "content": [{"text": turn.prompt}]})
        for call in turn.calls:
            number, answer = next(remaining)
            status, text = ("error", f"Error: {answer.text}") if answer.failed else ("success", answer.text)
            history.append({"role": "assistant", "content": [{"toolUse": {"toolUseId": number, "name": call.name, "input": call.input}}]})
            history.append({"role": "user", "content": [{"toolResult": {"toolUseId": number, "status": status, "content": [{"text": text}]}}]})
        history.append({"role": "assistant", "content": [{"text": _closing_text(turn)}]})
    return history


def _numbered(messages: Sequence[Message]) -> list[Message]:
    """The messages with each call's id replaced by its place among the ids: a result that answers another call shows."""
    numbers: dict[str, int] = {}

    def numbered(block: Message) -> Message:
        for kind in ("toolUse", "toolResult"):
            if kind in block:
                body = block[kind]
                return {kind: {**body, "toolUseId": numbers.setdefault(body["toolUseId"], len(numbers))}}
        return block

    return [{**message, "content": [numbered(block) for block in message["content"]]} for message in messages]


def _table(report: Report) -> Table:
    caption = (
        "Equal: state, answers and history are those of the same calls made by hand.\nms: from asking to the result of a turn, while all the others ask too."
    )
    table = Table(title="Real conversations, all at once", caption=caption, show_footer=True, box=SIMPLE, padding=(0, 1, 0, 0))
    columns = ("set", "sessions", "turns", "calls", "failed", "equal", "s", "p50 ms", "p99 ms")
    for name, total in zip(columns, _cells(report.total), strict=True):
        table.add_column(name, total, justify="left" if name == "set" else "right", no_wrap=True)
    for row in report.sets:
        table.add_row(*_cells(row))
    return table


def _cells(row: SetResult) -> tuple[str, ...]:
    counts = (row.conversations, row.turns, row.calls, row.tool_errors, row.equal)
    return (row.name, *(f"{count:,}" for count in counts), f"{row.seconds:.1f}", f"{row.p50 * 1000:,.0f}", f"{row.p99 * 1000:,.0f}")


def _run_with_progress(conversations: Sequence[Conversation], backend: str, console: Console) -> Report:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("turns"), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        bar = progress.add_task(f"{len(conversations)} conversations")

        async def run() -> Report:
            return await run_conversations(conversations, on_progress=lambda done, in_all: progress.update(bar, completed=done, total=in_all))

        return anyio.run(run, backend=backend)


@click.command()
@click.option("--sets", default=",".join(SETS), show_default=True, help="Which sets to play, separated by commas.")
@click.option("--backend", type=click.Choice(["asyncio", "trio"]), default="asyncio", show_default=True, help="The event loop to run on.")
@click.option("--limit", type=click.IntRange(min=1), default=None, help="Play only so many conversations of each set.")
@click.option("--folder", type=click.Path(path_type=Path), default=FOLDER, help="Where the package is installed.")
def main(sets: str, backend: str, limit: int | None, folder: Path) -> None:
    """Play the leaderboard's conversations, each as a session, and compare with the same calls made by hand."""
    console = Console()
    try:
        names = dict.fromkeys(name.strip() for name in sets.split(","))
        conversations = [conversation for name in names for conversation in load_conversations(folder, [name])[:limit]]
    except (ConversationsMissing, ValueError) as error:
        raise click.ClickException(str(error)) from error
    report = _run_with_progress(conversations, backend, console)
    console.print(_table(report))
    for fault in report.faults[:SHOWN_FAULTS]:
        console.print(f"{fault.conversation_id}: {fault.text}", markup=False, highlight=False)
    if len(report.faults) > SHOWN_FAULTS:
        console.print(f"... and {len(report.faults) - SHOWN_FAULTS} more.")
    sys.exit(0 if report.all_equal else 1)


if __name__ == "__main__":
    main()
