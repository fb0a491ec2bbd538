"""A service that keeps one agent for each person between their requests: nothing is saved and nothing is loaded.

Run it with `python examples/keep_the_agent.py`.
"""

from concurrent.futures import ThreadPoolExecutor

from ropewalk import Agent, AgentResult
from ropewalk.testing import ScriptedModel

# The model plays a script here. Leave model= out, or give it "openai:NAME", to talk to a real one.
model = ScriptedModel(lambda messages: f"That was your question number {(len(messages) + 1) // 2}.")


class Desk:
    """Answers anybody's questions, from any thread."""

    def __init__(self) -> None:
        self.agents: dict[str, Agent] = {}

    def agent_of(self, person: str) -> Agent:
        """The person's own agent, made when they first come. Two threads that ask at once get the same one."""
        return self.agents.get(person) or self.agents.setdefault(person, Agent(model=model, callback_handler=None))

    def ask(self, person: str, prompt: str) -> AgentResult:
        """One request. An agent that is still answering another one lets it wait, so that no two of them mix."""
        return self.agent_of(person)(prompt)


def main() -> None:
    desk = Desk()
    requests = [(f"person-{number % 50}", f"Question {number}") for number in range(500)]

    with ThreadPoolExecutor(max_workers=16) as threads:
        results = list(threads.map(lambda request: desk.ask(*request), requests))

    print(f"{len(results)} requests of {len(desk.agents)} people were answered by 16 threads, at once.")
    agent = desk.agent_of("person-7")
    print(f"The agent of person-7 has {len(agent.messages)} messages. It said last:", agent.messages[-1]["content"][0]["text"])
    last = desk.ask("person-7", "And now?")
    print("Asked once more, it says:", last)
    print(f"Its accounts: {last.metrics.cycle_count} calls of the model, {last.metrics.accumulated_usage['totalTokens']} tokens.")


if __name__ == "__main__":
    main()
