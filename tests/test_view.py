"""The view as a fold over entries, against lists: edits do what they say, cost what they touch, and lose nothing."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import compress
from typing import Any, SupportsIndex

from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from ropewalk.actors.messages import Message, user
from ropewalk.actors.view import Edit, Entry, Placed, Transcript, View, difference, listed, rearrangement


def entries_of(numbers: Sequence[int]) -> list[Entry]:
    return [Entry(number, user(f"message {number}")) for number in numbers]


def naive(entries: Sequence[Entry], edit: Edit) -> list[Entry]:
    """What an edit says, word by word, on a plain list."""
    left = [entry for entry in entries if entry.number not in edit.removed]
    for placed in edit.inserted:
        numbers = [entry.number for entry in left]
        left.insert(0 if placed.after == 0 else numbers.index(placed.after) + 1, placed.entry)
    return left


def applied(entries: Sequence[Entry], edit: Edit) -> View:
    view = View(entries)
    view.apply(edit)
    assert len(view) == len(view.messages) == len(view.entries)
    assert all(message is entry.message for message, entry in zip(view.messages, view.entries, strict=True))
    return view


def shows(view: View, entries: Sequence[Entry]) -> bool:
    """Whether a view shows these entries: the same numbers in the same order, each with the same object for its message."""
    shown = zip(view.entries, entries, strict=True)
    return len(view) == len(entries) and all(one.number == other.number and one.message is other.message for one, other in shown)


@st.composite
def views(draw: st.DrawFn, max_size: int = 12) -> list[Entry]:
    """Entries in any order of their numbers, as digests make it; now and then two show one message."""
    entries = entries_of(draw(st.lists(st.integers(1, 30), unique=True, max_size=max_size)))
    if len(entries) > 1 and draw(st.sampled_from([False, False, True])):
        entries[-1] = Entry(entries[-1].number, entries[0].message)
    return entries


@st.composite
def wanted_of(draw: st.DrawFn, entries: list[Entry]) -> list[Message]:
    """Messages of these entries, some gone, some moved, some told twice, and new ones, some of which look like old ones."""
    there = [entry.message for entry in entries]
    chosen = st.lists(st.sampled_from(there), max_size=14) if there else st.just([])
    in_order = st.lists(st.booleans(), min_size=len(there), max_size=len(there)).map(lambda stays: list(compress(there, stays)))
    wanted = list(draw(in_order | chosen))
    for number in draw(st.lists(st.integers(1, 30), max_size=3)):
        wanted.insert(draw(st.integers(0, len(wanted))), user(f"message {number}"))
    return wanted


class TestDifference:
    @given(st.data())
    def test_shows_what_was_wanted(self, data: st.DataObject) -> None:
        entries = data.draw(views())
        wanted = data.draw(wanted_of(entries))
        edit = difference(entries, wanted, "edited", 31, "turn")
        view = applied(entries, edit)

        assert len(view.messages) == len(wanted)
        assert all(message is want for message, want in zip(view.messages, wanted, strict=True))
        assert shows(view, naive(entries, edit))
        assert len({entry.number for entry in view.entries}) == len(view.entries)

    @given(st.data())
    def test_keeps_the_entries_of_the_same_objects(self, data: st.DataObject) -> None:
        entries = data.draw(views())
        wanted = data.draw(wanted_of(entries))
        edit = difference(entries, wanted, "edited", 31, "turn")
        view = applied(entries, edit)
        known = {entry.number: entry for entry in entries}

        new = [entry for entry in view.entries if entry.number > 30]
        assert [entry.number for entry in new] == list(range(31, 31 + len(new)))
        assert [placed.entry.turn_id for placed in edit.inserted if placed.entry.number > 30] == ["turn"] * len(new)
        assert all(placed.entry is known[placed.entry.number] for placed in edit.inserted if placed.entry.number <= 30)
        assert all(entry.message is known[entry.number].message for entry in view.entries if entry.number <= 30)
        for message in {id(message): message for message in wanted}.values():
            times, there = sum(want is message for want in wanted), sum(entry.message is message for entry in entries)
            assert sum(entry.message is message for entry in new) == max(0, times - there)

    @given(views())
    def test_of_nothing_is_nothing(self, entries: list[Entry]) -> None:
        edit = difference(entries, [entry.message for entry in entries], "edited", 31)

        assert edit == Edit("edited")
        assert shows(applied(entries, edit), entries)

    @given(st.data())
    def test_leaves_alone_what_keeps_its_order(self, data: st.DataObject) -> None:
        entries = entries_of(range(1, data.draw(st.integers(1, 12))))
        kept = [entry for entry in entries if data.draw(st.booleans())]
        edit = difference(entries, [entry.message for entry in kept], "window", 31)

        assert edit.removed == tuple(entry.number for entry in entries if entry not in kept)
        assert edit.inserted == ()


class TestView:
    @given(st.data())
    def test_an_edit_of_its_own_is_the_difference(self, data: st.DataObject) -> None:
        """Where only the oldest leave, they are all that it names, also where two entries show one message."""
        entries = data.draw(views() | st.integers(0, 12).map(lambda length: entries_of(range(5, 5 + length))))
        window = st.integers(0, len(entries)).map(lambda first: [entry.message for entry in entries[first:]])
        wanted = data.draw(window | wanted_of(entries))
        newest = entries[len(entries) - len(wanted) :] if len(wanted) <= len(entries) else []
        edit = View(entries).edit_to(wanted, "edited", 31, "turn")

        assert [id(message) for message in applied(entries, edit).messages] == list(map(id, wanted))
        if list(map(id, wanted)) == [id(entry.message) for entry in newest]:
            assert edit == Edit("edited", tuple(entry.number for entry in entries[: len(entries) - len(wanted)]))
        else:
            assert edit == difference(entries, wanted, "edited", 31, "turn")

    @given(st.data())
    def test_a_copy_stays_as_it_is(self, data: st.DataObject) -> None:
        entries = data.draw(views() | st.integers(0, 12).map(lambda length: entries_of(range(5, 5 + length))))
        view = View(entries)
        copy = view.copy()
        view.apply(view.edit_to(data.draw(wanted_of(entries)), "edited", 31))
        view.append(Entry(100, user("more")))

        assert shows(copy, entries)
        copy.append(Entry(101, user("other")))
        assert view.entries[-1].number == 100


class TestRearrangement:
    @given(st.data())
    def test_undoes_every_edit(self, data: st.DataObject) -> None:
        """As a turn that failed is undone: what left comes back as the entry it was, what came leaves."""
        entries = data.draw(views())
        edit = difference(entries, data.draw(wanted_of(entries)), "edited", 31)
        view = applied(entries, edit)
        back = rearrangement(view.entries, entries, "failed")
        view.apply(back)

        assert shows(view, entries)

    @given(st.data())
    def test_shows_any_entries_in_any_order(self, data: st.DataObject) -> None:
        entries = data.draw(views())
        others = entries + entries_of(range(31, 34))
        wanted = data.draw(st.permutations(others).flatmap(lambda order: st.integers(0, len(order)).map(lambda end: order[:end])))

        assert shows(applied(entries, rearrangement(entries, wanted, "edited")), wanted)


class TestApply:
    @given(st.data())
    def test_does_what_the_edit_says(self, data: st.DataObject) -> None:
        entries = data.draw(views())
        numbers = [entry.number for entry in entries]
        removed = data.draw(st.lists(st.sampled_from(numbers), unique=True)) if numbers else []
        after = [0, *(number for number in numbers if number not in removed)]
        inserted = []
        for number in data.draw(st.lists(st.integers(31, 40), unique=True, max_size=4)):
            inserted.append(Placed(data.draw(st.sampled_from(after)), Entry(number, user("new"))))
            after.append(number)
        edit = Edit("edited", tuple(removed), tuple(inserted))

        assert shows(applied(entries, edit), naive(entries, edit))

    @given(views(), st.integers(31, 40))
    def test_of_a_number_that_is_not_there_changes_nothing(self, entries: list[Entry], number: int) -> None:
        assert shows(applied(entries, Edit("edited", (number,))), entries)


class CountedList(list[Any]):
    """A list that counts how many of its elements were touched."""

    touched = 0

    def __getitem__(self, place: Any) -> Any:
        self.touched += len(range(*place.indices(len(self)))) if isinstance(place, slice) else 1
        return super().__getitem__(place)

    def __setitem__(self, place: Any, value: Any) -> None:
        length = len(self)
        super().__setitem__(place, value)
        self.touched += len(range(*place.indices(length))) + len(self) - length if isinstance(place, slice) else 1

    def __delitem__(self, place: Any) -> None:
        self.touched += len(range(*place.indices(len(self)))) if isinstance(place, slice) else 1
        super().__delitem__(place)

    def __iter__(self) -> Any:
        for element in super().__iter__():
            self.touched += 1
            yield element

    def __reversed__(self) -> Any:
        for element in super().__reversed__():
            self.touched += 1
            yield element

    def __contains__(self, element: object) -> bool:
        self.touched += len(self)
        return super().__contains__(element)

    def index(self, *arguments: Any) -> int:
        self.touched += len(self)
        return super().index(*arguments)

    def insert(self, place: SupportsIndex, element: Any) -> None:
        self.touched += len(self) - int(place) + 1
        super().insert(place, element)

    def copy(self) -> Any:
        self.touched += len(self)
        return super().copy()


def cost(length: int, edit: Edit | Entry) -> tuple[int, View]:
    """How many elements of a view of this length are touched by an edit, or by an entry at the end."""
    view = View(entries_of(range(1, length + 1)))
    numbers, messages = CountedList(view.numbers), CountedList(view.messages)
    view._numbers, view.messages = numbers, messages
    if isinstance(edit, Edit):
        view.apply(edit)
    else:
        view.append(edit)
    return numbers.touched + messages.touched, view


class TestCost:
    def test_of_a_message_at_the_end_is_the_same_at_every_length(self) -> None:
        entry = Entry(100_001, user("new"))

        assert [cost(length, entry)[0] for length in (1, 100, 10_000)] == [0, 0, 0]

    @given(st.integers(0, 5), st.integers(0, 3))
    def test_of_an_edit_of_the_tail_is_the_same_at_every_length(self, removed: int, inserted: int) -> None:
        def edit(length: int) -> Edit:
            new = [Entry(100_001 + place, user("new")) for place in range(inserted)]
            after = [length - removed, *(entry.number for entry in new)]
            return Edit("failed", tuple(range(length - removed + 1, length + 1)), tuple(map(Placed, after, new)))

        costs = [cost(length, edit(length))[0] for length in (10, 100, 10_000)]

        assert len(set(costs)) == 1
        assert costs[0] <= 4 * (removed + inserted + 2)

    @given(st.integers(1, 8))
    def test_of_a_window_that_slides_is_what_it_leaves_behind(self, removed: int) -> None:
        edit = Edit("window", tuple(range(1, removed + 1)))
        costs = [cost(length, edit)[0] for length in (10, 100, 10_000)]

        assert len(set(costs)) == 1
        assert costs[0] <= 4 * removed

    def test_of_an_edit_at_the_head_is_seen_by_this_measure(self) -> None:
        assert cost(1000, Edit("digest", (1,), (Placed(0, Entry(2000, user("new"))),)))[0] >= 1000

    def test_of_undoing_a_turn_is_the_records_that_it_left(self) -> None:
        """What is written does not grow with the history, whatever the view does."""
        entries = entries_of(range(1, 1001))
        edit = rearrangement(entries, [*entries[:-3], Entry(2000, user("joined"))], "cancelled")

        assert edit.removed == (998, 999, 1000)
        assert [(placed.after, placed.entry.number) for placed in edit.inserted] == [(997, 2000)]


class Histories(RuleBasedStateMachine):
    """A view and a transcript that hear of the same changes; the model is a list, and a dict of all that was ever said."""

    def __init__(self) -> None:
        super().__init__()
        self.view = View()
        self.transcript = Transcript()
        self.shown: list[Entry] = []
        self.said: dict[int, Entry] = {}
        self.why: dict[int, str] = {}
        self.saved: list[Entry] = []

    def entry(self, message: Message | None = None) -> Entry:
        number = len(self.said) + 1
        self.said[number] = made = Entry(number, message or user(f"message {number}"))
        return made

    @rule()
    def say(self) -> None:
        entry = self.entry()
        self.view.append(entry)
        self.shown.append(entry)

    @rule()
    def say_aside(self) -> None:
        entry = self.entry()
        self.transcript.leave(entry.number, "cancelled")
        self.why[entry.number] = "cancelled"

    @rule()
    def join(self) -> None:
        """As a prompt joins the user message a view ends in."""
        if self.shown:
            gone = self.shown.pop()
            self.view.apply(Edit("joined", (gone.number,)))
            self.transcript.join(gone.number, len(self.said) + 1)
            self.why[gone.number] = "joined"
            self.say()

    @rule(data=st.data(), reason=st.sampled_from(["window", "digest"]))
    def change(self, data: st.DataObject, reason: str) -> None:
        wanted = data.draw(wanted_of(self.shown))
        edit = difference(self.shown, wanted, reason, len(self.said) + 1)
        for placed in edit.inserted:
            self.said.setdefault(placed.entry.number, placed.entry)
        self.carry_out(edit)

    @rule()
    def save(self) -> None:
        self.saved = list(self.shown)

    @rule()
    def undo(self) -> None:
        self.carry_out(rearrangement(self.shown, self.saved, "failed"))

    def carry_out(self, edit: Edit) -> None:
        before = self.shown
        self.shown = naive(before, edit)
        self.view.apply(edit)
        self.transcript.apply(edit)
        now = {entry.number for entry in self.shown}
        self.why.update({entry.number: edit.reason for entry in before if entry.number not in now})

    @invariant()
    def the_view_shows_what_the_list_holds(self) -> None:
        assert shows(self.view, self.shown)
        assert self.view.messages == [entry.message for entry in self.shown]
        assert self.view.last == (self.shown[-1] if self.shown else None)
        assert listed(self.view.entries) == tuple({"id": f"e{entry.number}", "message": entry.message} for entry in self.shown)

    @invariant()
    def the_transcript_holds_everything_ever_said(self) -> None:
        told = [self.transcript.shown(entry) for entry in self.said.values()]

        assert [(entry.id, entry.message) for entry in told] == [(f"e{number}", entry.message) for number, entry in self.said.items()]
        assert {entry.id for entry in told if entry.in_view} == {entry.id for entry in self.view.entries}
        for entry in told:
            assert entry.left_because == (None if entry.in_view else self.why[int(entry.id[1:])])


TestHistories = Histories.TestCase
