"""What a chat shows of a turn beside the answer: one line for each thing that happened. Pure: an event goes in, a line comes out."""

from __future__ import annotations

from typing import Any, Literal, TypeAlias

import attrs

from ropewalk.actors.events import Event, Gap, ModelRetry, ReductionEnded, ReductionStarted, ToolEnded, ToolProgress, ToolStarted, TurnEnded
from ropewalk.actors.messages import Block
from ropewalk.actors.terminal.printable import in_short

__all__ = ["Mark", "Note", "call_in_short", "duration", "failure_in_words", "note_of", "result_in_short", "seconds"]

Mark: TypeAlias = Literal["going", "good", "bad", "plain"]

INPUT_WIDTH = 60
RESULT_WIDTH = 100
ERROR_WIDTH = 400


@attrs.frozen
class Note:
    """A line about a turn: how it is marked, and its text, printable. `going` is something that a later line is the end of."""

    mark: Mark
    text: str


def note_of(event: Event) -> Note | None:
    """The line that an event is worth, None for most. A failed turn has none: its error is told in full."""
    match event:
        case ToolStarted():
            return Note("going", f"{call_in_short(event.tool_use)} …")
        case ToolProgress():
            return Note("plain", in_short(f"{event.tool_use['name']}: {event.data}", RESULT_WIDTH))
        case ToolEnded():
            good = event.result["status"] == "success"
            return Note("good" if good else "bad", f"{call_in_short(event.tool_use)} → {result_in_short(event.result)} ({duration(event.seconds)})")
        case ReductionStarted():
            return Note("going", f"the conversation has outgrown the model's window ({event.tokens_before:,} tokens or so) and is being made smaller …")
        case ReductionEnded():
            return _reduced(event)
        case ModelRetry():
            withdrawn = "" if event.withdrawn is None else "; the answer begins anew, what stands above of it no longer counts"
            return Note("plain", f"the model is asked again in {duration(event.delay)}: {in_short(event.error, RESULT_WIDTH)}{withdrawn}")
        case Gap():
            return Note("plain", "(some of this came too fast to be shown; /history has all of it)")
        case TurnEnded(stop_reason=str() as reason) if reason != "end_turn":
            return Note("plain", f"({in_short(reason, INPUT_WIDTH)})")
        case _:
            return None


def _reduced(event: ReductionEnded) -> Note:
    if event.rung is None:
        why = "; ".join(event.failures) or "nothing can be left out"
        return Note("bad", in_short(f"the conversation could not be made smaller: {why}", 2 * RESULT_WIDTH))
    sizes = f"{event.tokens_before:,} → {event.tokens_after:,} tokens or so"
    return Note("good", in_short(f"the conversation was made smaller ({event.rung}): {sizes}", RESULT_WIDTH))


def call_in_short(tool_use: Block) -> str:
    """A call as it would be written: ``calculator(expression='1+1')``."""
    given: Any = tool_use["input"]
    arguments = ", ".join(f"{name}={value!r}" for name, value in given.items()) if isinstance(given, dict) else repr(given)
    return f"{in_short(tool_use['name'], INPUT_WIDTH)}({in_short(arguments, INPUT_WIDTH)})"


def result_in_short(result: Block) -> str:
    """A tool's result on one line; what is no text is named by its kind."""
    parts = [str(block["text"]) if "text" in block else str(block["json"]) if "json" in block else f"[{next(iter(block))}]" for block in result["content"]]
    return in_short(" ".join(parts) or "nothing", RESULT_WIDTH)


def failure_in_words(error: BaseException) -> str:
    """What failed a turn, as one sentence without a trace."""
    words = in_short(str(error), ERROR_WIDTH) or "no reason was given"
    cause = error.__cause__
    if cause is None or str(cause) in str(error):
        return f"{type(error).__name__}: {words}"
    return f"{type(error).__name__}: {words} ({in_short(f'{type(cause).__name__}: {cause}', ERROR_WIDTH)})"


def duration(spent: float) -> str:
    """Seconds as people read them: ``3 ms``, ``1.2 s``, ``2 min 5 s``."""
    if spent < 0.9995:
        return f"{spent * 1000:.0f} ms"
    return f"{spent:.1f} s" if spent < 59.95 else seconds(spent)


def seconds(spent: float) -> str:
    """Whole seconds as people read them: ``12 s``, ``2 min 5 s``."""
    minutes, rest = divmod(int(spent), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
