"""A prompt that was accepted survives its process, and is paid for once: it is sent with a key, the program is killed, and the next one goes on.

Run it with `python examples/survives.py`.
"""

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import anyio

from ropewalk import AgentSpec, Runtime, ToolContext, tool
from ropewalk.testing import Reply, ScriptedModel, ToolUse


def payments() -> list[str]:
    """The keys of the calls that were paid for."""
    till = Path("till.txt")
    return till.read_text(encoding="utf-8").split() if till.exists() else []


@tool(replay="key")
def pay(amount: int, context: ToolContext) -> str:
    """Pay an amount. The till knows a payment again by its key, so the call may be run again when its process died."""
    if context.idempotency_key not in payments():
        Path("till.txt").write_text(" ".join([*payments(), context.idempotency_key]), encoding="utf-8")
    if sys.argv[1] == "first":
        print("  the payment is made, and the process is killed", flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
    return f"paid {amount}"


def reply(messages: Sequence[dict[str, Any]]) -> Reply | str:
    """Call the tool, then say what it gave: the script goes by what it is shown, as a model does."""
    result = messages[-1]["content"][0].get("toolResult")
    return Reply(tool_uses=[ToolUse("pay", {"amount": 12})]) if result is None else f"Done: {result['content'][0]['text']}."


# The model plays a script here. Leave model= out, or give it "openai:NAME", to talk to a real one.
clerk = AgentSpec(name="clerk", model=ScriptedModel(reply), tools=[pay])


async def order() -> None:
    async with Runtime(journal="clerk.db", specs=[clerk]) as runtime:
        recovered = (await runtime.recover()).recovered
        print(f"  unfinished work in {len(recovered)} sessions")
        session = await runtime.open("user-42", clerk)
        turn = await session.submit("Pay for the rope.", key="order-17")
        print("  accepted, and already answered" if turn.done else "  accepted")
        print(" ", await turn.result())
        print(f"  {len(payments())} payment, in {len(await session.messages())} messages")


def main() -> None:
    with TemporaryDirectory() as folder:
        os.chdir(folder)
        for name in ("first", "second", "third"):
            print(f"The {name} process:", flush=True)
            subprocess.run([sys.executable, __file__, name], check=name != "first")


if __name__ == "__main__":
    anyio.run(order) if len(sys.argv) > 1 else main()
