"""Request state is a dict for one turn: you give it, handlers and tools change it, the result brings it back, no model sees it.

Run it with `python examples/request_state.py`.
"""

from typing import Any

from ropewalk import Agent, ToolContext, tool
from ropewalk.testing import Reply, ScriptedModel, ToolUse


@tool
async def price(item: str, context: ToolContext) -> str:
    """What an item costs.

    Args:
        item: its name
    """
    context.request_state["looked_up"] = [*context.request_state.get("looked_up", ()), item]
    return f"{item}: 12 {context.request_state['currency']}"


def count(**event: Any) -> None:
    """A callback handler: it gets the request state with each piece of an answer."""
    if "data" in event:
        state = event["request_state"]
        state["pieces"] = state.get("pieces", 0) + 1


def main() -> None:
    agent = Agent(
        # The model plays a script here. Leave model= out, or give it "openai:NAME", to talk to a real one.
        model=ScriptedModel([Reply(text="Let me look.", tool_uses=[ToolUse("price", {"item": "rope"})]), "Rope costs 12 EUR a fathom.", "You are welcome!"]),
        tools=[price],
        callback_handler=count,
    )

    given = {"currency": "EUR"}
    first = agent("What does rope cost?", request_state=given)
    second = agent("Thank you!")

    print("You gave:       ", given)
    print("The first turn: ", first.state)
    print("The second turn:", second.state)


if __name__ == "__main__":
    main()
