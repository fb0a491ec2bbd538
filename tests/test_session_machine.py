"""The laws of a session under random users, models and faults: the shipped machine, run on the shipped agent."""

from __future__ import annotations

from ropewalk.testing import SessionMachine

TestSessions = SessionMachine.TestCase
