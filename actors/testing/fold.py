"""What a reader of events knows: the view, the status and the answer so far, folded from events alone."""

from __future__ import annotations

from ropewalk.actors.events import (
    Event,
    MessageAdded,
    ReductionEnded,
    ReductionStarted,
    SessionActivated,
    Snapshot,
    TextDelta,
    TurnEnded,
    TurnPaused,
    TurnResumed,
    TurnStarted,
    ViewChanged,
)
from ropewalk.actors.messages import Message

__all__ = ["EventFold"]


class EventFold:
    """A picture of one session, kept up to date by giving it each event: ``for event in events: fold.take(event)``.

    Law: folding a snapshot and every event after it gives the same picture as folding every event from the beginning.
    """

    def __init__(self) -> None:
        self.view: dict[str, Message] = {}
        self.status = "idle"
        self.partial = ""

    def take(self, event: Event) -> None:
        """Take one event in; kinds that say nothing of the picture change nothing."""
        match event:
            case Snapshot(view=view, partial=partial, status=status):
                self.view = {entry["id"]: entry["message"] for entry in view}
                self.partial, self.status = partial, status
            case SessionActivated():
                self.status, self.partial = "idle", ""
            case TurnStarted() | TurnResumed() | ReductionEnded():
                self.status, self.partial = "running", ""
            case ReductionStarted():
                self.status, self.partial = "reducing", ""
            case TurnPaused():
                self.status = "paused"
            case TurnEnded():
                self.status, self.partial = "idle", ""
            case TextDelta(text=text):
                self.partial += text
            case MessageAdded(entry_id=entry_id, message=message, replaces=replaces):
                if replaces is not None:
                    self.view.pop(replaces, None)
                self.view[entry_id] = message
                self.partial = ""
            case ViewChanged():
                self._change(event)
            case _:
                pass

    def _change(self, event: ViewChanged) -> None:
        entries = [(entry_id, message) for entry_id, message in self.view.items() if entry_id not in event.removed]
        for inserted in event.inserted:
            names = [entry_id for entry_id, _ in entries]
            place = 0 if inserted.after is None else names.index(inserted.after) + 1
            entries.insert(place, (inserted.entry_id, inserted.message))
        self.view = dict(entries)

    def picture(self) -> tuple[list[tuple[str, Message]], str, str]:
        """The view with its entry ids, the status, and the text of the answer so far."""
        return list(self.view.items()), self.status, self.partial
