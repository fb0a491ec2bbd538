"""A tool works on state of yours, and what it did joins the conversation, whether the model called it or you did.

Run it with `python examples/tools_and_direct_calls.py`.
"""

from typing import Any

from ropewalk import Agent, ToolContext, tool
from ropewalk.testing import Reply, ScriptedModel, ToolUse


@tool
async def take(item: str, context: ToolContext, count: int = 1) -> str:
    """Take something from the shelf.

    Args:
        item: what to take
        count: how many
    """
    shelf = context.context  # the live object that was given to the agent; no model ever sees it
    if shelf.get(item, 0) < count:
        raise ValueError(f"only {shelf.get(item, 0)} of {item!r} left")
    shelf[item] -= count
    return f"{count} of {item!r} taken, {shelf[item]} left"


def told(block: dict[str, Any]) -> str:
    match block:
        case {"toolUse": call}:
            return f"calls {call['name']} with {call['input']}"
        case {"toolResult": result}:
            return f"{result['status']}: {result['content'][0]['text']}"
        case _:
            return " ".join(block["text"].split())


def main() -> None:
    calls = Reply(text="One moment. ", tool_uses=[ToolUse("take", {"item": "rope", "count": 2}), ToolUse("take", {"item": "tar", "count": 9})])
    shelf = {"rope": 5, "tar": 1}
    agent = Agent(
        # The model plays a script here. Leave model= out, or give it "openai:NAME", to talk to a real one.
        model=ScriptedModel([calls, "Two ropes are yours; there is not enough tar."]),
        tools=[take],
        context=shelf,
        callback_handler=None,
    )

    result = agent("Two ropes and nine pots of tar, please.")
    print("The model called it twice:", result)
    direct = agent.tool.take(item="rope")
    print("You called it:", direct["content"][0]["text"])
    agent.tool.take(item="rope", record_direct_tool_call=False)
    print("You called it again, off the record; the shelf has", shelf)

    print("\nThe conversation has:")
    for message in agent.messages:
        for block in message["content"]:
            print(f"{message['role']:>10}  {told(block)}")


if __name__ == "__main__":
    main()
