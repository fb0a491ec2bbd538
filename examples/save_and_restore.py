"""A conversation is saved as JSON with its system prompt, and goes on from there in another program, emoji and all.

Run it with `python examples/save_and_restore.py`.
"""

import json
from pathlib import Path
from tempfile import TemporaryDirectory

from ropewalk import Agent
from ropewalk.testing import ScriptedModel


def save(agent: Agent, file: Path) -> None:
    saved = {"system_prompt": agent.system_prompt, "messages": agent.messages}
    file.write_text(json.dumps(saved, ensure_ascii=False), encoding="utf-8")


def restore(file: Path, model: ScriptedModel) -> Agent:
    saved = json.loads(file.read_text(encoding="utf-8"))
    return Agent(model=model, callback_handler=None, **saved)


def main() -> None:
    # The model plays a script here. Leave model= out, or give it "openai:NAME", to talk to a real one.
    agent = Agent(model=ScriptedModel(["Ahoy, Zoë! ⚓"]), system_prompt="You are an old sailor. 🌊", callback_handler=None)
    agent("Good morning, I am Zoë 🌞")

    with TemporaryDirectory() as folder:
        file = Path(folder) / "conversation.json"
        save(agent, file)
        print(file.read_text(encoding="utf-8"))

        model = ScriptedModel(["You are Zoë, who says good morning. 🌞"])
        again = restore(file, model)
        print("\nRestored. Who am I?", again("Who am I?"))

    request = model.requests[0]
    print(f"The model was shown {len(request.messages)} messages, after {request.system_prompt!r}")


if __name__ == "__main__":
    main()
