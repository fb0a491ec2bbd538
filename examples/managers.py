"""A conversation manager says how much of a conversation the model is shown, and what happens when that is still too much.

Run it with `python examples/managers.py`.
"""

from collections.abc import Sequence
from typing import Any

from ropewalk import Agent, ContextWindowOverflow, ConversationManager, NullConversationManager, ReductionEnded, SlidingWindowConversationManager
from ropewalk.testing import ScriptedModel

WINDOW = 200  # tokens, which is little: real models have a thousand times as many


def answer(messages: Sequence[Any]) -> str | Exception:
    """Says what it was shown, or that it was too much."""
    tokens = len(str(messages)) // 4
    return ContextWindowOverflow(tokens=tokens, limit=WINDOW) if tokens > WINDOW else f"I was shown {len(messages)}."


def reduced(event: Any) -> None:
    if isinstance(event, ReductionEnded):
        what = f"{event.rung} made it {event.tokens_after}" if event.rung else "nothing made it smaller"
        print(f"    (refused: it was about {event.tokens_before} tokens; {what})")


def talk(title: str, manager: ConversationManager | None, prompts: Sequence[str]) -> None:
    # The model plays a script here. Leave model= out, or give it "openai:NAME", to talk to a real one.
    agent = Agent(model=ScriptedModel(answer), conversation_manager=manager, handlers=[reduced], callback_handler=None)
    print(title)
    for prompt in prompts:
        result = agent(prompt)
        said = str(result) or f"({result.stop_reason})"
        print(f"    {prompt[:12]}  {said:<20}{len(agent.messages):>3} messages are kept")


def main() -> None:
    short = [f"Question {number}. " for number in range(1, 6)]
    long = ["A question. " + "It goes on. " * 25, "One more...  " + "It goes on. " * 25, "The last one"]
    talk("A window of four messages:", SlidingWindowConversationManager(window_size=4), short)
    talk("No manager at all:", NullConversationManager(), short)
    talk("What an agent has when you name none, and a model that refuses:", None, long)
    talk("No manager at all, and a model that refuses:", NullConversationManager(), long)


if __name__ == "__main__":
    main()
