"""The journal in an SQLite file. `journal` is its face; `store` has the connections; `file`, `rows`, `writing` and `reading` are what is done on one."""

from ropewalk.runtime.journal.sqlite.journal import SQLiteJournal

__all__ = ["SQLiteJournal"]
