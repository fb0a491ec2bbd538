"""A conversation manager of your own: it keeps the last exchanges as they were said, and one line of each older one.

Run it with `python examples/custom_manager.py`.
"""

from typing import Any

from ropewalk import Agent, ContextWindowOverflow, ConversationManager, ReductionEnded
from ropewalk.testing import ScriptedModel

HEADING = "So far I asked:"


class Minutes(ConversationManager):
    """Whatever it does to the messages, it works on copies: what comes out must be a conversation, or nothing changes."""

    def __init__(self, keep: int = 2) -> None:
        self.keep = keep

    def apply_management(self, messages: list[Any]) -> None:
        """Called after each turn."""
        self._shorten(messages, self.keep)

    def reduce_context(self, messages: list[Any], e: Exception | None = None) -> None:
        """Called when the model refuses the size. The running prompt has to stay, and fewer tokens have to be left."""
        self._shorten(messages, 1)

    def _shorten(self, messages: list[Any], keep: int) -> None:
        # An exchange starts with words of the user; results of tools are inside one, and stay with their calls.
        starts = [place for place, message in enumerate(messages) if message["role"] == "user" and "text" in message["content"][0]]
        if len(starts) > keep:
            asked = [messages[place]["content"][0]["text"] for place in starts[:-keep]]
            lines = [text if text.startswith(HEADING) else f"- {text[:30]}" for text in asked]
            minutes = "\n".join(lines if lines[0].startswith(HEADING) else [HEADING, *lines])
            messages[: starts[-keep]] = [{"role": "user", "content": [{"text": minutes}]}, {"role": "assistant", "content": [{"text": "I remember."}]}]


def answer(messages: Any) -> str | Exception:
    size = sum(len(block["text"]) for message in messages for block in message["content"])
    return ContextWindowOverflow("too long") if size > 300 else f"I was shown {len(messages)}."


def tell(event: Any) -> None:
    if isinstance(event, ReductionEnded):
        print(f"(the model refused about {event.tokens_before} tokens; the {event.rung} made them {event.tokens_after})")


def main() -> None:
    # The model plays a script here. Leave model= out, or give it "openai:NAME", to talk to a real one.
    agent = Agent(model=ScriptedModel(answer), conversation_manager=Minutes(), handlers=[tell], callback_handler=None)
    for prompt in ["What is hemp?", "Who makes rope?", "How long is a ropewalk? " + "Tell me more. " * 15, "And why?", "And where?"]:
        print(f"{prompt[:23]:<23} ->", agent(prompt))

    print("\nWhat is left of it:")
    for message in agent.messages:
        print(f"{message['role']:>10}: " + message["content"][0]["text"].replace("\n", "\n            "))


if __name__ == "__main__":
    main()
