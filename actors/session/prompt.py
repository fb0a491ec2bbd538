"""A prompt: what a user said, checked at the door, on its way to its one outcome."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from ropewalk.actors.errors import InvalidConversation, InvalidPrompt, InvalidRequestState
from ropewalk.actors.messages import Message
from ropewalk.actors.validity import MAX_DEPTH, copied, door
from ropewalk.runtime.backend import ANY_BACKEND, Wakeup
from ropewalk.runtime.envelope import Envelope
from ropewalk.runtime.outcome import Outcome

if TYPE_CHECKING:
    from ropewalk.actors.result import AgentResult
    from ropewalk.actors.session.stream import TurnStream

__all__ = ["Prompt", "prompt_messages", "request_state_of"]

FORMS = "text, a list of content blocks such as [{'text': '...'}], or a list of messages that ends with the user's"


class Prompt(Envelope):
    """One accepted message of a user.

    `messages` end in the user's own words; `owned` says that the work ends when nobody waits for it any more; `left` that
    nobody does. `key` is what it is known by if it is sent again, and `forget` ends that. `sent` says that it came into the mailbox,
    `abandoned` that it never will, `recorded` that the journal was told of it while it waited. `accepted` is settled once the prompt is
    durable, or with the error that it ended with before. `turn_id` is known once its turn has begun, which may have been in another process.
    """

    __slots__ = (
        "abandoned",
        "accepted",
        "context_object",
        "forget",
        "key",
        "left",
        "messages",
        "owned",
        "prompt_id",
        "recorded",
        "request_state",
        "sent",
        "streams",
        "turn_id",
    )

    outcome: Outcome[AgentResult]

    def __init__(
        self,
        prompt_id: str,
        messages: list[Message],
        request_state: dict[str, Any],
        context_object: Any,
        *,
        owned: bool,
        key: str | None = None,
        new_wakeup: Callable[[], Wakeup] = ANY_BACKEND.wakeup,
    ) -> None:
        super().__init__(None, awaited=owned, new_wakeup=new_wakeup)
        self.key = key
        self.prompt_id = prompt_id
        self.messages = messages
        self.request_state = request_state
        self.context_object = context_object
        self.owned = owned
        self.left = False
        self.turn_id: str | None = None
        self.accepted: Outcome[None] | None = None
        self.forget: Callable[[], object] | None = None
        self.sent = False
        self.recorded = False
        self.abandoned = False
        self.streams: tuple[TurnStream, ...] = ()

    def attach(self, stream: TurnStream) -> None:
        """Have a stream end when this prompt has its outcome."""
        self.streams += (stream,)
        self.outcome.then = self.note_outcome

    def note_outcome(self) -> None:
        """There is an outcome: whoever waits to hear that the prompt was accepted, or watches its turn, waits no more."""
        if self.accepted is not None and not self.accepted.settled:
            if self.outcome.error is None:
                self.accepted.settle(None)
            else:
                self.accepted.fail(self.outcome.error)
        if self.forget is not None:
            self.forget()
            self.forget = None
        for stream in self.streams:
            stream.end()
        self.streams = ()  # each of them holds this prompt: together they would be garbage only the collector finds


def prompt_messages(prompt: object) -> list[Message]:
    """The messages a prompt stands for, as copies. Raises `InvalidPrompt`."""
    if isinstance(prompt, str):
        if not prompt:
            raise InvalidPrompt(f"the prompt is empty; a prompt is {FORMS}")
        return [{"role": "user", "content": [{"text": str(prompt)}]}]
    if not isinstance(prompt, Sequence) or not prompt or not all(isinstance(part, dict) for part in prompt):
        raise InvalidPrompt(f"a prompt is {FORMS}, not {prompt!r:.200}")
    try:
        parts: list[dict[str, Any]] = copied(list(prompt))
        messages: list[Message] = parts if "role" in parts[0] else [{"role": "user", "content": parts}]
        if any("toolResult" in block for block in _blocks(messages[0])):
            raise InvalidPrompt("a prompt does not begin with toolResult blocks: the calls of this session are answered by its tools")
        checked = door(messages)
    except InvalidConversation as error:
        raise InvalidPrompt(f"{error}; a prompt is {FORMS}") from None
    if not checked or checked[-1]["role"] != "user":
        raise InvalidPrompt(f"the last message of a prompt is the user's; a prompt is {FORMS}")
    if any("toolUse" in block for block in _blocks(checked[-1])):
        raise InvalidPrompt("a user's message holds no toolUse blocks: only the model calls tools")
    return checked


def _blocks(message: dict[str, Any]) -> list[dict[str, Any]]:
    content = message.get("content")
    return [block for block in content if isinstance(block, dict)] if isinstance(content, list) else []


def request_state_of(given: object) -> dict[str, Any]:
    """A copy of a request state, for one turn. Raises `InvalidRequestState` for what JSON cannot hold, naming where it is."""
    if given is None:
        return {}
    if not isinstance(given, dict):
        raise InvalidRequestState(f"request_state is a dict of JSON values, not {given!r:.200}")
    state: dict[str, Any] = _json(given, "request_state", MAX_DEPTH)
    return state


def _json(value: Any, path: str, levels: int) -> Any:
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        if value != value or value in (float("inf"), float("-inf")):
            raise InvalidRequestState(f"{path} is {value}, which JSON cannot hold")
        return value
    if levels < 0:
        raise InvalidRequestState(f"request_state is nested deeper than {MAX_DEPTH} levels, at {path:.200}...")
    if isinstance(value, dict):
        for key in value:
            if not isinstance(key, str):
                raise InvalidRequestState(f"{path} has the key {key!r}; keys of JSON objects are text")
        return {key: _json(inner, f"{path}[{key!r}]", levels - 1) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_json(inner, f"{path}[{place}]", levels - 1) for place, inner in enumerate(value)]
    raise InvalidRequestState(f"{path} is a {type(value).__name__}, which JSON cannot hold; live objects go into context=")
