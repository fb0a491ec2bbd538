"""What was said is a list of plain messages, which a conversation may begin with and which you may change.

Run it with `python examples/conversation_history.py`.
"""

from ropewalk import Agent
from ropewalk.testing import ScriptedModel


def show(agent: Agent) -> None:
    for message in agent.messages:
        print(f"{message['role']:>10}: {message['content'][0]['text']}")


def main() -> None:
    agent = Agent(
        # The model plays a script here. Leave model= out, or give it "openai:NAME", to talk to a real one.
        model=ScriptedModel(["You are Ada, and you asked about rope.", "Rope is made in a ropewalk, Ada."]),
        messages=[
            {"role": "user", "content": [{"text": "Hi, I am Ada. What do you know about rope?"}]},
            {"role": "assistant", "content": [{"text": "All there is to know, Ada!"}]},
        ],
        callback_handler=None,  # without this line, an agent prints its answer as it comes
    )

    print("The conversation began before this program did:")
    result = agent("Who am I?")
    show(agent)
    print(f"It ended with {result.stop_reason!r} after {result.metrics.cycle_count} call of the model.")

    print("\nThe last exchange is taken back, and another question asked:")
    del agent.messages[-2:]
    agent("Where is rope made?")
    show(agent)


if __name__ == "__main__":
    main()
