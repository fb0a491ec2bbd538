"""The log an actor is recovered from: the interface, and an implementation in memory."""

from ropewalk.runtime.journal.interface import Claim, Commit, Journal, JournalStatistics, Record, Snapshot
from ropewalk.runtime.journal.memory import Fault, MemoryJournal

__all__ = ["Claim", "Commit", "Fault", "Journal", "JournalStatistics", "MemoryJournal", "Record", "Snapshot"]
