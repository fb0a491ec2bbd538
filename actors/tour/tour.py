"""The tour's order: its parts one after the other, what each measured in one table, and whether all was as it should be."""

from __future__ import annotations

import importlib.util
import platform
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, Literal, TypeAlias, TypeVar

import anyio
import attrs

import ropewalk
from ropewalk.actors.errors import NoModel
from ropewalk.actors.models.embedded.packages import model_file
from ropewalk.actors.terminal.figures import Figures
from ropewalk.actors.terminal.screen import Screen
from ropewalk.actors.tour import embedded, survival
from ropewalk.actors.tour.conversations import Missing, load, show_conversations
from ropewalk.actors.tour.crowd import PAUSES, show_crowd
from ropewalk.actors.tour.overflow import show_overflow
from ropewalk.actors.tour.steps import STEPS, show_step
from ropewalk.runtime.supervision import Failure, contain

__all__ = ["TourOptions", "run_tour"]

T = TypeVar("T")

BackendName: TypeAlias = Literal["asyncio", "trio"]


@attrs.frozen(kw_only=True)
class TourOptions:
    """How the tour is taken.

    :param backend: the event loop of everything but the first part, whose agents have their own thread.
    :param sessions: how many stream at once; up to 100 of them outlive their process.
    :param pace: seconds between two pieces of an answer then.
    :param limit: how many conversations of each set are played; None is all.
    :param conversations: whether any are.
    :param model: whether the embedded model is shown.
    :param folder: where the conversations are installed; None is where the Makefile puts them.
    """

    backend: BackendName = "asyncio"
    sessions: int = 5000
    pace: float = 0.25
    limit: int | None = None
    conversations: bool = True
    model: bool = True
    folder: Path | None = None


def run_tour(options: TourOptions, screen: Screen | None = None) -> list[str]:
    """Take the tour; returns what was missing or wrong, in sentences. An empty list means that all came out as it should."""
    return _Tour(options, screen or Screen()).run()


class _Tour:
    def __init__(self, options: TourOptions, screen: Screen) -> None:
        self.options = options
        self.screen = screen
        self.problems: list[str] = []
        self.figures: dict[str, Figures] = {}

    def run(self) -> list[str]:
        """All parts, whatever becomes of one of them."""
        self._greet()
        parts = [self._embedded, self._steps, self._overflow, self._survival, self._conversations, self._crowd]
        if not self.options.conversations:
            parts.remove(self._conversations)
        if not self.options.model:
            parts.remove(self._embedded)
        for part in parts:
            outcome = contain(part)
            if isinstance(outcome, Failure):
                what = "it took too long" if isinstance(outcome.error, TimeoutError) else f"{type(outcome.error).__name__}: {outcome.error}"
                self._note([f"The part “{part.__name__.strip('_')}” broke off: {what}."])
        self._close()
        return self.problems

    def _greet(self) -> None:
        loop = f"{self.options.backend} on uvloop" if self._backend_options() else self.options.backend
        self.screen.say(f"Ropewalk {ropewalk.__version__}: conversations with language models, each an actor.", style="bold")
        asked = "the only model asked is the one in the box" if self.options.model else "no model is asked"
        self.screen.say(f"What follows is run as you watch and checked, on Python {platform.python_version()} with {loop}; {asked}, and no key is needed.")

    def _embedded(self) -> None:
        with self.screen.part(embedded.TITLE, embedded.SAYS):
            try:
                model_file()
            except NoModel as missing:
                self._note([f"The model in the box is left out: {missing}; in a checkout, `make embedded` does that."])
                return
            self._conclude(
                self._in_loop(embedded.show_embedded, self.screen),
                "It answered, called its tools, refused what was too long, and talked with all at once, as well as a model of its size does.",
            )

    def _steps(self) -> None:
        with self.screen.part(
            "First steps", "An agent is a plain object. From here on models play a script, so that all comes out the same; the code is what runs."
        ):
            wrong = [problem for step in STEPS for problem in show_step(step, self.screen)]
            self._conclude(wrong, f"All {len(STEPS)} steps printed what they should.")

    def _overflow(self) -> None:
        says = (
            "A history that the model refuses as too long is made smaller, as a supervised step beside the mailbox. "
            "Here the agent's own manager hangs: that costs its half second, and the ladder of shipped rungs goes on without it."
        )
        with self.screen.part("An overflow", says):
            self._conclude(self._in_loop(show_overflow, self.screen), "The turn got its answer, the waiting prompt got its own, and no entry was lost.")

    def _survival(self) -> None:
        sessions = min(survival.SESSIONS, self.options.sessions)
        with self.screen.part(survival.TITLE, survival.SAYS):
            wrong = self._in_loop(survival.show_survival, self.screen, sessions, self.options.backend)
            self._conclude(wrong, "Every accepted message was answered once, no payment was made twice, and what nobody can know was told.")

    def _conversations(self) -> None:
        says = (
            "Conversations of the public function-calling leaderboard, each a session with tools of its own: file systems, bookings, "
            "trades, tickets. The model plays the calls that are known to be right, all sessions at once."
        )
        with self.screen.part("Real conversations", says):
            try:
                with self.screen.bar(None, "the conversations are being read"):
                    example, conversations = load(self.options.folder, self.options.limit)
            except Missing as missing:
                self._note([str(missing)])
                return
            figures, wrong = self._in_loop(show_conversations, self.screen, example, conversations)
            self.figures["conversations"] = figures
            self._conclude(wrong, f"All {len(conversations):,} sessions ended exactly like the same calls made by hand.")

    def _crowd(self) -> None:
        count = self.options.sessions
        with self.screen.part("A crowd", f"{count:,} sessions in one runtime, each streaming an answer of its own, piece by piece, to a reader of its own."):
            figures, wrong = self._in_loop(show_crowd, self.screen, count, self.options.pace)
            self.figures["crowd"] = figures
            self._conclude(wrong, f"All {count:,} readers heard their own answer, whole, and their sessions remember it.")

    def _close(self) -> None:
        if self.figures:
            self._show_figures()
        self.screen.heading("What next")
        self.screen.console.print()
        self.screen.came_out(
            "README.md tells the rest in a few pages; docs/design.md says why.",
            "make test runs what proves all this; make bench sets it beside bare loops.",
            "examples/ has programs to start from; make run ARGS='--backend trio' takes this tour on trio.",
        )
        if self.problems:
            self.screen.bad(f"Not all is as it should be, after {self.screen.elapsed:.0f} s.")
        else:
            self.screen.good(f"All is as it should be, after {self.screen.elapsed:.0f} s.")

    def _show_figures(self) -> None:
        self.screen.heading("In figures")
        self.screen.table(("", *self.figures), _rows(list(self.figures.values())))
        self.screen.say(
            f"Latency: from prompt to the turn's end; {PAUSES * self.options.pace * 1000:,.0f} ms of the crowd's are its model's own pauses. "
            "CPU: of the whole process, readers, models and tools too. "
            "Bytes: what the runtime keeps of an idle session, its history and its journal in memory with it."
        )

    def _conclude(self, wrong: Sequence[str], right: str) -> None:
        if wrong:
            self._note(wrong)
        else:
            self.screen.good(right)

    def _note(self, problems: Sequence[str]) -> None:
        for problem in problems:
            self.screen.bad(problem)
        self.problems += problems

    def _backend_options(self) -> dict[str, Any]:
        fast = self.options.backend == "asyncio" and importlib.util.find_spec("uvloop") is not None
        return {"use_uvloop": True} if fast else {}

    def _in_loop(self, work: Callable[..., Awaitable[T]], *arguments: Any) -> T:
        return anyio.run(work, *arguments, backend=self.options.backend, backend_options=self._backend_options())


def _rows(figures: Sequence[Figures]) -> list[list[str]]:
    rows: list[tuple[str, Callable[[Figures], str]]] = [
        ("sessions at once", lambda one: f"{one.sessions:,}"),
        ("turns", lambda one: f"{one.turns:,}"),
        ("turns a second", lambda one: f"{one.turns / one.seconds:,.0f}" if one.seconds else "-"),
        ("latency p50, ms", lambda one: f"{one.p50 * 1000:,.0f}"),
        ("latency p99, ms", lambda one: f"{one.p99 * 1000:,.0f}"),
        ("CPU per turn, µs", lambda one: f"{one.cpu / one.turns * 1e6:,.0f}" if one.turns else "-"),
        ("bytes per idle session", lambda one: f"{one.session_bytes:,.0f}"),
    ]
    return [[name, *(shown(one) for one in figures)] for name, shown in rows]
