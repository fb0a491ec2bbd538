"""What a turn gives back: its stop reason, its message, and the session's accounts so far."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import attrs

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


@attrs.frozen
class Trace:
    """One cycle of a turn: when it started and ended (seconds since 1970), and the tool calls in it."""

    name: str
    turn_id: str
    start_time: float
    end_time: float
    tools: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return f"<Trace {self.name} of turn {self.turn_id}, {self.end_time - self.start_time:.3f} s>"


@attrs.frozen
class EventLoopMetrics:
    """A session's accounts up to the turn that gave them out; a later turn does not change them.

    `cycle_durations` (seconds) and `traces` are those of the last 256 cycles, the rest are totals for ever.
    `accumulated_usage` holds `inputTokens`, `outputTokens`, `totalTokens`; `accumulated_metrics` holds `latencyMs`.
    """

    cycle_count: int = 0
    tool_metrics: dict[str, ToolMetrics] = attrs.field(factory=dict[str, ToolMetrics])
    cycle_durations: list[float] = attrs.field(factory=list[float])
    traces: list[Trace] = attrs.field(factory=list[Trace])
    accumulated_usage: dict[str, int] = attrs.field(factory=lambda: {"inputTokens": 0, "outputTokens": 0, "totalTokens": 0})
    accumulated_metrics: dict[str, int] = attrs.field(factory=lambda: {"latencyMs": 0})


@attrs.frozen
class AgentResult:
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

    __slots__ = ("_cycle_count", "_durations", "_latency", "_tools", "_traces", "_usage")

    def __init__(self, cycles: int = 0, usage: tuple[int, int, int] = (0, 0, 0)) -> None:
        self._cycle_count = cycles
        self._durations: tuple[float, ...] = ()
        self._traces: tuple[Trace, ...] = ()
        self._tools: dict[str, ToolMetrics] | None = None
        self._usage = usage
        self._latency = 0

    def cycle(self, trace: Trace, seconds: float, usage: tuple[int, int, int], latency: int) -> None:
        """Account for one model call and its tools."""
        self._cycle_count += 1
        self._durations = (*self._durations[-CYCLES_IN_FULL + 1 :], seconds)
        self._traces = (*self._traces[-CYCLES_IN_FULL + 1 :], trace)
        read, written, total = self._usage
        self._usage = (read + usage[0], written + usage[1], total + usage[2])
        self._latency += latency

    def tool(self, name: str, succeeded: bool, seconds: float) -> None:
        """Account for one tool call."""
        tools = self._tools = self._tools if self._tools is not None else {}
        old = tools.get(name) or ToolMetrics(name)
        tools[name] = ToolMetrics(name, old.call_count + 1, old.success_count + succeeded, old.error_count + (not succeeded), old.total_time + seconds)

    def snapshot(self) -> EventLoopMetrics:
        """The accounts as they stand, which nothing changes afterwards."""
        read, written, total = self._usage
        return EventLoopMetrics(
            self._cycle_count,
            dict(self._tools) if self._tools is not None else {},
            list(self._durations),
            list(self._traces),
            {"inputTokens": read, "outputTokens": written, "totalTokens": total},
            {"latencyMs": self._latency},
        )
