"""The conformance kit for journals: one call says whether an implementation keeps what `Journal` promises."""

from ropewalk.actors.testing.journals.conformance import Conformance, check_journal
from ropewalk.actors.testing.journals.harness import Damage, JournalHarness

__all__ = ["Conformance", "Damage", "JournalHarness", "check_journal"]
