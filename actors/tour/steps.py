"""The first steps with an `Agent`: each a few lines that are shown as they stand here, run, and compared with what they should print.

A step is a plain function, called with what takes the place of `print`. The model plays a script, so that the steps need
neither a network nor a key and always come out the same; with a real one, only ``model=`` differs.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from contextlib import redirect_stdout
from typing import Any, TypeAlias

import attrs

from ropewalk import Agent, ConversationManager, SlidingWindowConversationManager, tool
from ropewalk.actors.terminal.screen import Screen, source_of
from ropewalk.runtime.supervision import Failure, contain
from ropewalk.testing import Reply, ScriptedModel, ToolUse

__all__ = ["STEPS", "Print", "Step", "show_step"]

Print: TypeAlias = Callable[..., None]


@attrs.frozen
class Step:
    """One step: its title, what it shows, the function, and the lines it must print."""

    title: str
    says: str
    run: Callable[[Print], None]
    prints: tuple[str, ...]


def show_step(step: Step, screen: Screen) -> list[str]:
    """Show a step's lines, run them, and show what they print; returns what was wrong with it, if anything."""
    screen.step(step.title, step.says)
    screen.code(source_of(step.run))
    output = io.StringIO()

    def note(*values: Any) -> None:
        output.write(" ".join(map(str, values)) + "\n")

    with redirect_stdout(output):  # what an agent's own handler prints is to be seen too
        outcome = contain(step.run, note)
    printed = output.getvalue().splitlines()
    screen.came_out(*printed)
    if isinstance(outcome, Failure):
        return [f"The step “{step.title}” failed: {type(outcome.error).__name__}: {outcome.error}"]
    wrong = next((f"{line!r} is not in what it printed" for line in step.prints if line not in printed), None)
    if wrong is None and len(printed) != len(step.prints):
        wrong = f"it printed {len(printed)} lines instead of {len(step.prints)}"
    return [] if wrong is None else [f"The step “{step.title}” came out wrong: {wrong}."]


def one_line(print: Print) -> None:
    """An agent as it comes prints its answer piece by piece."""
    agent = Agent(model=ScriptedModel(["Hello! My model plays a script today."]))
    agent("Hi there!")


def history(print: Print) -> None:
    """Two prompts, four messages."""
    agent = Agent(
        model=ScriptedModel(["Hello Ada!", "Your name is Ada."]),
        callback_handler=None,
    )
    agent("Hi, I am Ada.")
    result = agent("What is my name?")

    print(result)
    print(result.stop_reason, result.metrics.cycle_count)
    for message in agent.messages:
        print(message)


def window(print: Print) -> None:
    """Five prompts, of which the model sees the last few."""
    agent = Agent(
        model=ScriptedModel(lambda shown: f"I was shown {len(shown)}."),
        conversation_manager=SlidingWindowConversationManager(window_size=4),
        callback_handler=None,
    )
    for number in range(1, 6):
        print(agent(f"Prompt {number}"))

    print(len(agent.messages), "are kept, from:", agent.messages[0])


def tool_turn(print: Print) -> None:
    """A call, its result, and the answer are messages like any other."""

    @tool
    def multiply(a: int, b: int) -> int:
        """Multiply two whole numbers."""
        return a * b

    calling = Reply(text="Let me see.", tool_uses=[ToolUse("multiply", {"a": 6, "b": 7})])
    agent = Agent(
        model=ScriptedModel([calling, "It is 42."]),
        tools=[multiply],
        callback_handler=None,
    )
    result = agent("What is 6 times 7?")

    for message in agent.messages:
        print(message["role"], [kind for block in message["content"] for kind in block])
    print(agent.messages[2]["content"][0]["toolResult"]["content"])
    print(result, "Calls:", result.metrics.tool_metrics["multiply"].call_count)


def direct_calls(print: Print) -> None:
    """One call that the model will know of, and one that it will not."""

    @tool
    def fathoms(feet: float) -> str:
        """Convert feet to fathoms."""
        return f"{feet / 6:g} fathoms"

    agent = Agent(model=ScriptedModel(), tools=[fathoms], callback_handler=None)

    print(agent.tool.fathoms(feet=60)["content"])
    print(len(agent.messages), "messages:", agent.messages[-1]["content"])

    print(agent.tool.fathoms(feet=600, record_direct_tool_call=False)["content"])
    print(len(agent.messages), "messages still")


def request_state(print: Print) -> None:
    """A handler counts the pieces of the answer."""

    def count(**event: Any) -> None:
        if "request_state" in event:
            state = event["request_state"]
            state["counter"] = state.get("counter", 0) + 1

    agent = Agent(
        model=ScriptedModel(["An answer that comes in seven pieces."], chunks=7),
        callback_handler=count,
    )
    result = agent("Hi there!")

    print(result.state)


def save_and_restore(print: Print) -> None:
    """Messages are plain dicts, so JSON will do."""
    agent = Agent(
        model=ScriptedModel(["Ahoy! ⚓"]),
        system_prompt="You are an old sailor. 🌊",
        callback_handler=None,
    )
    agent("Good morning 🌞")
    saved = json.dumps({"messages": agent.messages, "system_prompt": agent.system_prompt})

    again = Agent(
        model=ScriptedModel(["Still here. ⚓"]),
        callback_handler=None,
        **json.loads(saved),
    )
    print(again.messages == agent.messages, again.system_prompt)
    print(again("And now?"), len(again.messages), "messages")


def custom_manager(print: Print) -> None:
    """A class with two methods says what is kept."""

    class LastExchange(ConversationManager):
        def apply_management(self, messages: Any) -> None:
            del messages[:-2]

        def reduce_context(self, messages: Any, e: Exception | None = None) -> None:
            del messages[:-1]

    agent = Agent(
        model=ScriptedModel(["One.", "Two.", "Three."]),
        conversation_manager=LastExchange(),
        callback_handler=None,
    )
    for prompt in ("First?", "Second?", "Third?"):
        agent(prompt)

    for message in agent.messages:
        print(message)


STEPS = (
    Step(
        "One line",
        "Agents print what they answer, as it comes; in what follows they are told not to.",
        one_line,
        ("Hello! My model plays a script today.",),
    ),
    Step(
        "A conversation and its history",
        "Every prompt and every answer is a message, a plain dict.",
        history,
        (
            "Your name is Ada.",
            "end_turn 2",
            "{'role': 'user', 'content': [{'text': 'Hi, I am Ada.'}]}",
            "{'role': 'assistant', 'content': [{'text': 'Hello Ada!'}]}",
            "{'role': 'user', 'content': [{'text': 'What is my name?'}]}",
            "{'role': 'assistant', 'content': [{'text': 'Your name is Ada.'}]}",
        ),
    ),
    Step(
        "The sliding window",
        "What the model is shown stays small, whatever is said.",
        window,
        (
            "I was shown 1.",
            "I was shown 3.",
            "I was shown 5.",
            "I was shown 5.",
            "I was shown 5.",
            "4 are kept, from: {'role': 'user', 'content': [{'text': 'Prompt 4'}]}",
        ),
    ),
    Step(
        "A tool",
        "The model asks for a call, gets its result, and goes on; all of it joins the history.",
        tool_turn,
        (
            "user ['text']",
            "assistant ['text', 'toolUse']",
            "user ['toolResult']",
            "assistant ['text']",
            "[{'text': '42'}]",
            "It is 42. Calls: 1",
        ),
    ),
    Step(
        "Direct calls",
        "Your own call of a tool joins the history as four messages, or not at all.",
        direct_calls,
        (
            "[{'text': '10 fathoms'}]",
            "4 messages: [{'text': 'agent.fathoms was called'}]",
            "[{'text': '100 fathoms'}]",
            "4 messages still",
        ),
    ),
    Step(
        "Request state",
        "A dict for each turn, which handlers and tools may change and the model never sees.",
        request_state,
        ("{'counter': 7}",),
    ),
    Step(
        "Save and restore",
        "A history goes through JSON and back.",
        save_and_restore,
        ("True You are an old sailor. 🌊", "Still here. ⚓ 4 messages"),
    ),
    Step(
        "A manager of your own",
        "It gets the messages after each turn, and when they fit the model no more.",
        custom_manager,
        ("{'role': 'user', 'content': [{'text': 'Third?'}]}", "{'role': 'assistant', 'content': [{'text': 'Three.'}]}"),
    ),
)
"""The steps in their order."""
