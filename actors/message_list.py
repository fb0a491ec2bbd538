"""The list that `agent.messages` is: copies of the view, whose mutators change the conversation itself."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Self, SupportsIndex, TypeVar

from ropewalk.actors.messages import Message

if TYPE_CHECKING:
    from ropewalk.actors.agent import Agent

__all__ = ["MessageList"]

T = TypeVar("T")


class MessageList(list[Message]):
    """An agent's messages as they were when the list was asked for: copies, with the keys ``role`` and ``content`` only.

    A mutator works on the conversation as it is then, through the door that repairs what it can, and the list shows what came
    of it. Raises `SessionBusy` during a turn and `InvalidConversation` for what cannot be repaired; then nothing has changed.
    What is changed inside a message stays a change of the copy.
    """

    def __init__(self, agent: Agent, messages: Iterable[Message]) -> None:
        super().__init__(messages)
        self._agent = agent

    def __reduce__(self) -> tuple[Any, ...]:
        """Copied and pickled as a plain list: a copy belongs to no agent."""
        return list, (list(self),)

    def _change(self, change: Callable[[list[Message]], T]) -> T:
        value, messages = self._agent.change_messages(change)
        super().__setitem__(slice(None), messages)
        return value

    def append(self, message: Message, /) -> None:
        """Add a message at the end of the conversation."""
        self._change(lambda messages: messages.append(message))

    def extend(self, added: Iterable[Message], /) -> None:
        """Add messages at the end of the conversation."""
        listed = list(added)
        self._change(lambda messages: messages.extend(listed))

    def insert(self, index: SupportsIndex, message: Message, /) -> None:
        """Put a message before the one at `index`."""
        self._change(lambda messages: messages.insert(index, message))

    def pop(self, index: SupportsIndex = -1, /) -> Message:
        """Take a message out and return it."""
        return self._change(lambda messages: messages.pop(index))

    def remove(self, message: Message, /) -> None:
        """Take the first message out that equals this one."""
        self._change(lambda messages: messages.remove(message))

    def clear(self) -> None:
        """Take all messages out."""
        self._change(lambda messages: messages.clear())

    def sort(self, *, key: Callable[[Message], Any] | None = None, reverse: bool = False) -> None:
        """Put the messages in another order; the result has to be a conversation."""
        self._change(lambda messages: messages.sort(key=key, reverse=reverse))  # type: ignore[arg-type]

    def reverse(self) -> None:
        """Put the messages in reverse order; the result has to be a conversation."""
        self._change(lambda messages: messages.reverse())

    def __setitem__(self, index: Any, value: Any, /) -> None:
        given = list(value) if isinstance(index, slice) else value
        self._change(lambda messages: messages.__setitem__(index, given))

    def __delitem__(self, index: SupportsIndex | slice, /) -> None:
        self._change(lambda messages: messages.__delitem__(index))

    def __iadd__(self, added: Iterable[Message], /) -> Self:  # type: ignore[override, misc]
        self.extend(added)
        return self

    def __imul__(self, times: SupportsIndex, /) -> Self:
        self._change(lambda messages: messages.__imul__(times))
        return self
