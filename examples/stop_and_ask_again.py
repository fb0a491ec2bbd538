"""A long answer is stopped in the middle, and the next question goes on from what came of it.

Run it with `python examples/stop_and_ask_again.py`.
"""

import anyio

from ropewalk import AgentSpec, Runtime, TextDelta
from ropewalk.testing import Reply, ScriptedModel

LONG = "Rope is made in a ropewalk, a lane as long as the rope is to be. First the hemp is combed, then it is spun, then it is laid."

# The model plays a script here. Leave model= out, or give it "openai:NAME", to talk to a real one.
model = ScriptedModel([Reply(text=LONG, pace=0.02), "In a ropewalk.", Reply(text="Hemp is a plant, of which", pace=0.02)])
assistant = AgentSpec(name="assistant", model=model)


async def main() -> None:
    async with Runtime() as runtime:
        session = await runtime.open("user-42", assistant)

        # The reader has had enough: leaving the block cancels the turn, because of on_leave="cancel".
        heard = ""
        async with session.stream("How is rope made?", on_leave="cancel") as events:
            async for event in events:
                if isinstance(event, TextDelta):
                    heard += event.text
                    if len(heard) > 30:
                        break
        stopped = await events.turn.result()  # what the turn came to, here once it is settled
        print(f"left:     {stopped.stop_reason}, heard {heard!r}")
        print("shorter: ", await session.ask("In three words, please."))

        # Somebody else may stop it too: session.cancel() is back when the turn is settled.
        turn = await session.submit("And what is hemp?")
        async for _ in turn.events(kinds={TextDelta}):
            print("stopped: ", await session.cancel(), (await turn.result()).stop_reason)

        for message in await session.messages():
            print(f"{message['role']:>10}: {message['content'][0]['text']}")


if __name__ == "__main__":
    anyio.run(main)
