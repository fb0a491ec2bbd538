"""The model in the box, at work: an answer as it comes, tools it decides for, a conversation it refuses as too long, and sixteen at once."""

from __future__ import annotations

import gc
from collections.abc import AsyncIterator, Awaitable, Callable, Generator, Sequence
from contextlib import aclosing, contextmanager
from typing import Any

import anyio

from ropewalk import AgentSpec, ContextWindowOverflow, EmbeddedModel, ReductionEnded, Runtime, Session, TextDelta
from ropewalk.actors.messages import Message, assistant, text_of, user
from ropewalk.actors.terminal.printable import in_short, printable
from ropewalk.actors.terminal.screen import Screen, source_of
from ropewalk.actors.tool_check import REQUESTS, TOOLS, ask_all, in_words, show_choices
from ropewalk.actors.tour.chats import CAPITALS, show_chats
from ropewalk.runtime.clock import Clock

__all__ = ["SAYS", "TITLE", "show_embedded"]

TITLE = "A model in the box"
SAYS = (
    "A small language model runs beside your program, in a process of its own that the runtime starts, watches and ends: "
    "SmolLM2, 135 million parameters, under llama.cpp. It knows little, but it is real: what it writes, chooses and refuses is its own."
)
MOST_SECONDS = 300
"""Of each step. On two cores that nobody else uses each takes a few."""
SHORT = {"max_tokens": 40}
BRIEF = "You answer in one short sentence."
FITS = 256
MUST_CHOOSE = 7
SHOWN_WIDTH = 200


async def show_embedded(screen: Screen) -> list[str]:
    """Show it; returns what was wrong, if anything."""
    problems: list[str] = []
    now = Clock().stopwatch

    async def step(title: str, says: str, run: Callable[..., Awaitable[list[str]]], *arguments: Any) -> None:
        began = now()
        screen.step(title, says)
        with anyio.fail_after(MOST_SECONDS):
            problems.extend(f"{title} came out wrong: {problem}." for problem in await run(screen, *arguments))
        screen.took(now() - began)

    model = EmbeddedModel(params=SHORT)
    with settled_heap():
        async with Runtime() as runtime:
            await step("The engine", "It is started when it is first asked.", _start, runtime, model)
            await step("A streamed answer", "Each piece is shown as soon as the model has written it.", _answer, runtime, model)
            await step("A tool turn", "Four tools are registered, and the model decides which to call, and with what.", _tool_turn, runtime, model)
            await step("Which tool", "Eight plain requests; here no tool is run.", _choices, model)
            await step("An overflow", f"An engine that has room for {FITS} tokens is asked to go on with a longer conversation.", _overflow, runtime)
            await step("All at once", f"{len(CAPITALS)} conversations, two turns each, on the engine's {model.slots} slots.", show_chats, runtime, model)
    return problems


@contextmanager
def settled_heap() -> Generator[None]:
    """What is there now is no garbage, so the collector need not go through it meanwhile: that would stop the event loop for some 30 ms."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


async def _start(screen: Screen, runtime: Runtime, model: EmbeddedModel) -> list[str]:
    with screen.bar(None, "the engine is being started"):
        await runtime.service(model, model.serving)
    screen.came_out(f"a process that writes {model.slots} answers at once, each with {model.context_window:,} tokens of room, on {model.threads} threads")
    return []


async def ask_for_capital(runtime: Runtime, model: EmbeddedModel, show: Callable[[str], None]) -> Session:
    """Shows the answer as it comes."""
    spec = AgentSpec(model=model, system_prompt=BRIEF)
    session: Session = await runtime.open("first", spec)
    async with session.stream("What is the capital of Spain?") as events:
        async for event in events:
            if isinstance(event, TextDelta):
                show(event.text)
    return session


async def _answer(screen: Screen, runtime: Runtime, model: EmbeddedModel) -> list[str]:
    screen.code(_shown(ask_for_capital).replace("BRIEF", f'"{BRIEF}"'))
    heard: list[str] = []
    with screen.streamed() as show:

        def hear(piece: str) -> None:
            heard.append(piece)
            show(printable(piece))

        session = await ask_for_capital(runtime, model, hear)
    messages = await session.messages()
    counted = await model.count_tokens(messages[:1], system_prompt=BRIEF)
    taken = session.statistics().input_tokens
    screen.came_out(f"{len(heard)} pieces; the request has {counted} tokens by the engine's own count, and {taken} in the usage it reports")
    return [
        *_unless("".join(heard) == text_of(messages[-1]), "the pieces are not the answer that the session remembers"),
        *_unless(len(heard) > 1, "the answer came in one piece"),
        *_unless("Madrid" in "".join(heard), f"the capital of Spain is not in {''.join(heard)!r}"),
        *_unless(counted == taken, f"the request was counted as {counted} tokens and took {taken}"),
    ]


async def ask_about_weather(runtime: Runtime, model: EmbeddedModel) -> Session:
    """A turn in which a tool is needed."""
    spec = AgentSpec(model=model, tools=TOOLS)
    session: Session = await runtime.open("second", spec)
    await session.ask("What is the weather in Berlin?")
    return session


async def _tool_turn(screen: Screen, runtime: Runtime, model: EmbeddedModel) -> list[str]:
    screen.code(_shown(ask_about_weather).replace("TOOLS", f"[{', '.join(tool.name for tool in TOOLS)}]"))
    with screen.bar(None, "the model is choosing"):
        messages = await (await ask_about_weather(runtime, model)).messages()
    for message in messages:
        screen.came_out(f"{message['role']}: {'; '.join(in_short(_told(block), SHOWN_WIDTH) for block in message['content'])}")
    calls = [(block["toolUse"]["name"], block["toolUse"]["input"]) for message in messages for block in message["content"] if "toolUse" in block]
    return [
        *_unless(calls == [("get_weather", {"city": "Berlin"})], f"it called {calls}"),
        *_unless([message["role"] for message in messages] == ["user", "assistant"] * 2, f"there are {len(messages)} messages"),
        *_unless(
            "21" in text_of(messages[-1]) or "sunny" in text_of(messages[-1]), f"the last answer leaves out what the tool gave: {text_of(messages[-1])!r}"
        ),
    ]


def _told(block: dict[str, Any]) -> str:
    if "toolUse" in block:
        given = ", ".join(f"{name}={value!r}" for name, value in block["toolUse"]["input"].items())
        return f"calls {block['toolUse']['name']}({given})"
    if "toolResult" in block:
        return " ".join(part.get("text", "") for part in block["toolResult"]["content"])
    return str(block.get("text", ""))


async def _choices(screen: Screen, model: EmbeddedModel) -> list[str]:
    with screen.bar(len(REQUESTS), "the model is choosing") as bar:
        choices = await ask_all(model, TOOLS, REQUESTS, lambda done: bar.show(done, len(REQUESTS), f"{done} of {len(REQUESTS)} requests"))
    show_choices(screen, choices)
    screen.came_out(in_words(choices))
    right = sum(choice.is_right for choice in choices)
    return _unless(right >= MUST_CHOOSE, f"only {right} of {len(choices)} requests called the right tool")


class Noted(EmbeddedModel):
    """Keeps the refusals that pass through it."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.refusals: list[ContextWindowOverflow] = []

    async def stream(self, messages: Sequence[Message], **options: Any) -> AsyncIterator[dict[str, Any]]:
        """The answer of the model."""
        try:
            async with aclosing(super().stream(messages, **options)) as chunks:  # type: ignore[type-var]
                async for chunk in chunks:
                    yield chunk
        except ContextWindowOverflow as refusal:
            self.refusals.append(refusal)
            raise


async def ask_too_much(runtime: Runtime, model: EmbeddedModel, history: list[Message]) -> Session:
    """A prompt after more than fits."""
    session: Session = await runtime.open("third", AgentSpec(model=model), messages=history)
    await session.ask("What is rope made of?")
    return session


async def _overflow(screen: Screen, runtime: Runtime) -> list[str]:
    screen.code(f"model = EmbeddedModel(slots=1, context={FITS})", _shown(ask_too_much))
    model = Noted(slots=1, context=FITS, params=SHORT)
    history = [message for number in range(8) for message in (user(f"Read page {number} of the log."), assistant(f"Page {number}: {'all is well, ' * 14}"))]
    ended: list[ReductionEnded] = []
    runtime.add_handler(ended.append, kinds={ReductionEnded}, sessions="third")
    with screen.bar(None, "another engine is being started, and asked"):
        session = await ask_too_much(runtime, model, history)
        counted = await model.count_tokens([*history, user("What is rope made of?")])
    messages, taken = await session.messages(), session.statistics().input_tokens
    if not model.refusals or not ended:
        return ["the engine did not refuse it"]
    refusal, reduced = model.refusals[0], ended[-1]
    screen.came_out(
        f"the engine refuses it: {in_short(str(refusal), SHOWN_WIDTH)}",
        f"the error's figures: {refusal.tokens} tokens, of which {refusal.limit} fit; asked to count them, the engine says {counted}",
        f"ReductionEnded: rung {reduced.rung!r}; of {len(history)} messages {len(messages) - 2} are still shown, {taken} tokens by the engine's count",
        f"then it answers: {in_short(text_of(messages[-1]), SHOWN_WIDTH)}",
    )
    return [
        *_unless(
            (refusal.tokens, refusal.limit) == (counted, FITS), f"the refusal names {refusal.tokens} tokens and {refusal.limit}, not {counted} and {FITS}"
        ),
        *_unless(reduced.rung is not None and reduced.tokens_after < reduced.tokens_before, "nothing was taken away"),
        *_unless(0 < taken <= FITS, f"the request that was answered took {taken} tokens"),
        *_unless(bool(text_of(messages[-1]).strip()), "the answer is empty"),
    ]


def _shown(function: Any) -> str:
    """The lines of a function that matter."""
    return source_of(function).replace("session: Session =", "session =").replace("\nreturn session", "")


def _unless(holds: bool, problem: str) -> list[str]:
    return [] if holds else [problem]
