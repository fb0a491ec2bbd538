"""A live view of many conversations: a handler keeps a row for each session, and rich draws them while the answers stream in.

Run it with `python examples/terminal_view.py`.
"""

from collections.abc import Iterable

import anyio
from rich.live import Live
from rich.table import Column, Table
from rich.text import Text

from ropewalk import AgentSpec, Event, ModelError, Runtime, Session, TextDelta, ToolStarted, Turn, TurnEnded, tool
from ropewalk.testing import Reply, ScriptedModel, ToolUse


class Board:
    """A handler of events, and a table: called in line with each event, drawn by rich whenever it likes."""

    def __init__(self, names: Iterable[str]) -> None:
        self.now = dict.fromkeys(names, "")
        self.text = dict.fromkeys(names, "")

    def __call__(self, event: Event) -> None:
        match event:
            case TextDelta():
                self.now[event.session_id] = "[yellow]answers"
                self.text[event.session_id] += event.text
            case ToolStarted():
                self.now[event.session_id] = f"[magenta]calls {event.tool_use['name']}"
            case TurnEnded():
                self.now[event.session_id] = f"[green]{event.stop_reason}" if event.stop_reason else f"[red]failed: {event.error}"
            case _:
                pass

    def __rich__(self) -> Table:
        table = Table("session", Column("now", width=18), Column("answer", width=40))
        for name, text in self.text.items():
            table.add_row(name, self.now[name], Text(text[-40:]))
        return table


@tool
async def measure() -> str:
    """Measure the ropewalk."""
    await anyio.sleep(0.6)
    return "365 m"


async def main() -> None:
    # The models play scripts here. Leave model= out, or give it "openai:NAME", to talk to a real one.
    scripts = {
        "Ada": [Reply(text="Rope is laid from strands, and strands are laid from yarns.", pace=0.1)],
        "Bob": [Reply(text="Let me measure it.", tool_uses=[ToolUse("measure")], pace=0.1), Reply(text=" It is 365 m long.", pace=0.1)],
        "Cy": [Reply(text="This will take a very long time to say, and so " * 20, pace=0.1)],
        "Dee": [Reply(text="It all began when", pace=0.2, error=ModelError("the provider went away"))],
    }
    board = Board(scripts)
    with Live(board, refresh_per_second=12):
        async with Runtime() as runtime:  # leaving it lets everybody come to their end
            runtime.add_handler(board, kinds={TextDelta, ToolStarted, TurnEnded})
            turns = dict[str, Turn]()
            for name, script in scripts.items():
                session: Session = await runtime.open(name, AgentSpec(name=name, model=ScriptedModel(script), tools=[measure]))
                turns[name] = await session.submit("What is a ropewalk?")
            await anyio.sleep(1.5)
            await turns["Cy"].cancel()


if __name__ == "__main__":
    anyio.run(main)
