"""What a turn gives back: its stop reason, its message, and the session's accounts so far."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import attrs
import msgspec

from ropewalk.actors.messages import Message, text_of

__all__ = ["AgentResult", "EventLoopMetrics", "MetricsLedger", "ToolMetrics", "Trace"]

CYCLES_IN_FULL = 256


@attrs.frozen
class ToolMetrics:
    """What calls of one tool came to: counts, and `total_time` in seconds."""

    name: str
    call_count: int = 0
    success_count: int = 0
    error_count: int = 0
    total_time: float = 0.0


class Trace(msgspec.Struct, frozen=True, gc=False):
    """One cycle of a turn: when it started and ended (seconds since 1970), and the names of the tools called in it."""

    cycle: int
    turn_id: str
    start_time: float
    end_time: float
    tools: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """What the cycle is called, such as ``Cycle 1``; they count in each turn."""
        return f"Cycle {self.cycle}"

    def __repr__(self) -> str:
        return f"<Trace {self.name} of turn {self.turn_id}, {self.end_time - self.start_time:.3f} s>"


class Cycles:
    """The cycles of a session, in order: a `Trace` of each, packed.

    Every session keeps hundreds of them and hardly anybody looks, so they are no objects until somebody does.
    """

    __slots__ = ("_count", "_packed")

    def __init__(self) -> None:
        self._count = 0
        self._packed = bytearray()  # the elements of a MessagePack array, without its head

    def __len__(self) -> int:
        return self._count

    def append(self, trace: Trace) -> None:
        """One cycle more."""
        self._packed += _pack((trace.cycle, trace.turn_id, trace.start_time, trace.end_time, trace.tools))
        self._count += 1

    def traces(self, first: int, until: int) -> list[Trace]:
        """The cycles from a place on, before another."""
        head = b"\xdd" + self._count.to_bytes(4, "big")
        return [Trace(*cycle) for cycle in _unpack(head + self._packed)[first:until]]


_pack = msgspec.msgpack.Encoder().encode
_unpack = msgspec.msgpack.Decoder(list[tuple[int, str, float, float, tuple[str, ...]]]).decode


class EventLoopMetrics:
    """A session's accounts up to the turn that gave them out; a later turn does not change them.

    `cycle_durations` (seconds) and `traces` are those of the last 256 cycles, the rest are totals for ever.
    `accumulated_usage` holds `inputTokens`, `outputTokens`, `totalTokens`; `accumulated_metrics` holds `latencyMs`;
    `tool_metrics` a `ToolMetrics` for each tool by name. What is read is made when it is read: most results are not asked.
    """

    __slots__ = ("_cycles", "_latency", "_tools", "_until", "_usage", "cycle_count")

    def __init__(
        self,
        cycle_count: int = 0,
        tools: Mapping[str, ToolMetrics] | None = None,
        cycles: Cycles | None = None,
        until: int = 0,
        usage: tuple[int, int, int] = (0, 0, 0),
        latency: int = 0,
    ) -> None:
        self.cycle_count = cycle_count
        self._tools = tools
        self._cycles = cycles  # grows at its end as the session goes on; ours are those before `until`
        self._until = until
        self._usage = usage
        self._latency = latency

    @property
    def tool_metrics(self) -> dict[str, ToolMetrics]:
        return dict(self._tools or {})

    @property
    def cycle_durations(self) -> list[float]:
        return [trace.end_time - trace.start_time for trace in self._recent()]

    @property
    def traces(self) -> list[Trace]:
        return self._recent()

    @property
    def accumulated_usage(self) -> dict[str, int]:
        read, written, total = self._usage
        return {"inputTokens": read, "outputTokens": written, "totalTokens": total}

    @property
    def accumulated_metrics(self) -> dict[str, int]:
        return {"latencyMs": self._latency}

    def _recent(self) -> list[Trace]:
        return [] if self._cycles is None else self._cycles.traces(max(0, self._until - CYCLES_IN_FULL), self._until)

    def __repr__(self) -> str:
        return (
            f"EventLoopMetrics(cycle_count={self.cycle_count!r}, tool_metrics={self.tool_metrics!r}, cycle_durations={self.cycle_durations!r}, "
            f"traces={self.traces!r}, accumulated_usage={self.accumulated_usage!r}, accumulated_metrics={self.accumulated_metrics!r})"
        )

    def __eq__(self, other: object) -> bool:
        return isinstance(other, EventLoopMetrics) and repr(self) == repr(other)

    __hash__ = None  # type: ignore[assignment]


class AgentResult(msgspec.Struct, frozen=True):
    """What a turn came to.

    `message` is the turn's last assistant message (without content when there was none), `state` its request state,
    `interrupts` what tools asked of people. `str()` is the message's text.
    """

    stop_reason: str
    message: Message
    metrics: EventLoopMetrics
    state: dict[str, Any]
    interrupts: Sequence[Any] = ()

    def __str__(self) -> str:
        return text_of(self.message)


class MetricsLedger:
    """A session's accounts as they are kept: totals, and the last 256 cycles in full."""

    __slots__ = ("_cycle_count", "_cycles", "_latency", "_tools", "_usage")

    def __init__(self, cycles: int = 0, usage: tuple[int, int, int] = (0, 0, 0)) -> None:
        self._cycle_count = cycles
        self._cycles: Cycles | None = None
        self._tools: dict[str, ToolMetrics] | None = None
        self._usage = usage
        self._latency = 0

    def cycle(self, trace: Trace, usage: tuple[int, int, int], latency: int) -> None:
        """Account for one model call and its tools."""
        self._cycle_count += 1
        if self._cycles is None:
            self._cycles = Cycles()
        elif len(self._cycles) >= 2 * CYCLES_IN_FULL:
            # New ones: snapshots hold on to the old, which nothing changes any more.
            earlier, self._cycles = self._cycles, Cycles()
            for kept in earlier.traces(CYCLES_IN_FULL, 2 * CYCLES_IN_FULL):
                self._cycles.append(kept)
        self._cycles.append(trace)
        read, written, total = self._usage
        self._usage = (read + usage[0], written + usage[1], total + usage[2])
        self._latency += latency

    def tool(self, name: str, succeeded: bool, seconds: float) -> None:
        """Account for one tool call."""
        old = (self._tools or {}).get(name) or ToolMetrics(name)
        new = ToolMetrics(name, old.call_count + 1, old.success_count + succeeded, old.error_count + (not succeeded), old.total_time + seconds)
        self._tools = {**(self._tools or {}), name: new}

    def snapshot(self) -> EventLoopMetrics:
        """The accounts as they stand, which nothing changes afterwards."""
        until = 0 if self._cycles is None else len(self._cycles)
        return EventLoopMetrics(self._cycle_count, self._tools, self._cycles, until, self._usage, self._latency)
