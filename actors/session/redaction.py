"""Taking what was said out of a log: which records say it, and what they say afterwards. Pure.

An entry's words stand in more places than the entry: in the record that its prompt waited under, in a message that joined it,
in what was streamed beside an answer that was cut off, in what a reduction made of it when it left the view. All of that is
found by going through the log once, forwards; what an entry is called, and how its blocks follow one another, stays.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from ropewalk.actors.messages import Block, Message, tool_results
from ropewalk.actors.session.records import Begun, Body, Edited, Opened, Said, Settled
from ropewalk.actors.session.state import SessionState, entries_in
from ropewalk.actors.view import Edit, Entry

__all__ = ["REDACTED", "introduced_in", "is_redacted", "redactions"]

REDACTED = "[redacted]"
OF_CALLERS = frozenset({"added", "called", "replaced"})
"""Edits whose new messages are a caller's words, joined at most with those that were there."""
OF_NOBODY = frozenset({"rewind", "opened", "cancelled", "failed", "stopped", "finished"})
"""Edits that only bring back what was there."""


def is_redacted(messages: Sequence[Message]) -> bool:
    """Whether some of what the messages said was taken out of them."""
    return any(block == {"text": REDACTED} for message in messages for block in message["content"])


def _redacted(block: Block) -> Block:
    """A block of the same sort, which says nothing any more: calls and results keep their ids."""
    if "toolUse" in block:
        return {"toolUse": {**block["toolUse"], "input": {}}}
    if "toolResult" in block:
        return {"toolResult": {**block["toolResult"], "content": [{"text": REDACTED}]}}
    return {"text": REDACTED}


def introduced_in(bodies: Sequence[Body], number: int) -> int:
    """The number of the record that an entry was said in; 0 when there is none."""
    return next((place for place, body in enumerate(bodies, 1) if any(entry.number == number for entry in entries_in(body))), 0)


def redactions(bodies: Sequence[Body], number: int) -> dict[int, Body]:
    """What the records of a log become, by their numbers, when one of its entries is redacted; records that stay as they are are not in it."""
    plan = _Plan(bodies, number)
    return {place: changed for place, body in enumerate(bodies, 1) if (changed := plan.without(body)) is not body}


class _Plan:
    """What is to be redacted: `instead` says of each entry what it says afterwards, `turns` and `prompts` whose records may hold its words too."""

    def __init__(self, bodies: Sequence[Body], number: int) -> None:
        self.said: dict[int, Message] = {}
        for body in bodies:
            for entry in entries_in(body):
                self.said.setdefault(entry.number, entry.message)
        self.secret: list[Block] = self.said[number]["content"]
        self.instead: dict[int, Message] = {}
        self.same = self._same_words(bodies, number)
        self.turns: set[str] = set()
        self.prompts: set[str] = set()
        for one in self.same:
            self.instead[one] = self._scrubbed(self.said[one])
        state = SessionState()
        for body in bodies:
            edit = body.edit if isinstance(body, Edited | Settled) else None
            if edit is not None:
                self._follow(edit, state)
            if any(entry.number in self.same for entry in entries_in(body)):
                self._note(body)
            state.apply(body)
        for body in bodies:
            if isinstance(body, Begun) and body.turn_id in self.turns:
                self.prompts.update(body.prompt_ids)

    def _same_words(self, bodies: Sequence[Body], number: int) -> set[int]:
        """The entries that hold the words of one as they are: those joined with it, before and after, and what was said beside it at its turn's end."""
        groups: list[set[int]] = []
        for body in bodies:
            if isinstance(body, Begun) and body.joins:
                groups.append({body.joins, body.entries[0].number})
            elif isinstance(body, Settled) and body.aside:
                groups.append({entry.number for entry in (*body.entries, *body.aside)})
            elif isinstance(body, Edited) and body.edit.reason in OF_CALLERS:
                groups += [{gone, placed.entry.number} for gone in body.edit.removed for placed in body.edit.inserted if self._share(gone, placed.entry)]
        found = {number}
        while grown := [group for group in groups if group & found and not group <= found]:
            found.update(*grown)
        return found

    def _share(self, gone: int, entry: Entry) -> bool:
        before = self.said.get(gone, {"content": []})["content"]
        return any(block in before for block in entry.message["content"])

    def _follow(self, edit: Edit, state: SessionState) -> None:
        """What a reduction made of entries that say nothing any more says nothing of them either."""
        if edit.reason in OF_CALLERS or edit.reason in OF_NOBODY or self.instead.keys().isdisjoint(edit.removed):
            return
        kept = [block for entry in state.view.entries for block in self.instead.get(entry.number, entry.message)["content"]]
        answered = {result["toolUseId"] for entry in state.view.entries if entry.number not in self.instead for result in tool_results(entry.message)}
        answered -= {result["toolUseId"] for entry in state.view.entries if entry.number in self.instead for result in tool_results(entry.message)}
        for placed in edit.inserted:
            entry = placed.entry
            if entry.number >= state.next_entry:
                content = [block if block in kept or self._is_shortened(block, answered) else _redacted(block) for block in entry.message["content"]]
                self.instead[entry.number] = {"role": entry.message["role"], "content": content}

    def _is_shortened(self, block: Block, answered: set[str]) -> bool:
        """Whether a block is what a reduction left of a result that says nothing of the secret: a result stays the one of its call."""
        if "toolResult" not in block or block["toolResult"]["toolUseId"] not in answered:
            return False
        says = str(block)
        return not any(word in says for word in map(str, self.secret)) and not any(one.get("text") and one["text"] in says for one in self.secret)

    def _note(self, body: Body) -> None:
        turn_id = getattr(body, "turn_id", None)
        self.turns.update(entry.turn_id for entry in entries_in(body) if entry.number in self.same and entry.turn_id is not None)
        if turn_id is not None:
            self.turns.add(turn_id)

    def _scrubbed(self, value: Any) -> Any:
        """The value without the secret blocks, wherever in it they stand."""
        if isinstance(value, dict):
            if value in self.secret:
                return _redacted(value)
            for block in self.secret:
                for name in ("toolUse", "toolResult"):
                    if value == block.get(name):
                        return _redacted({name: value})[name]
            return {key: self._scrubbed(inner) for key, inner in value.items()}
        if isinstance(value, list | tuple):
            return type(value)(map(self._scrubbed, value))
        return value

    def without(self, body: Body) -> Body:
        """The record as it is to be, the same object where nothing in it changes."""
        changed: Any = self._with_entries(body)
        prompt_id = getattr(body, "prompt_id", None)
        if prompt_id in self.prompts or getattr(body, "turn_id", None) in self.turns:
            changed = msgspec.structs.replace(changed, **{name: self._scrubbed_field(getattr(changed, name)) for name in changed.__struct_fields__})
        return body if changed == body else changed

    def _scrubbed_field(self, value: Any) -> Any:
        if isinstance(value, msgspec.Struct) or (isinstance(value, tuple) and any(isinstance(inner, msgspec.Struct) for inner in value)):
            return value  # entries, which are known by their numbers
        return self._scrubbed(value)

    def _with_entries(self, value: Any) -> Any:
        if isinstance(value, Opened):
            return msgspec.structs.replace(value, messages=tuple(self.instead.get(entry.number, entry.message) for entry in value.entries))
        if isinstance(value, Said) and value.malformed and value.entry.number in self.instead:
            value = msgspec.structs.replace(value, malformed=dict.fromkeys(value.malformed, REDACTED))
        if isinstance(value, Entry):
            return msgspec.structs.replace(value, message=self.instead.get(value.number, value.message))
        if isinstance(value, msgspec.Struct):
            fields: Mapping[str, Any] = {name: self._with_entries(getattr(value, name)) for name in value.__struct_fields__}
            return msgspec.structs.replace(value, **fields)
        if isinstance(value, tuple):
            return tuple(map(self._with_entries, value))
        return value
