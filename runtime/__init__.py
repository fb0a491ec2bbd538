"""Actors for anything: mailboxes, cells, supervision, channels, a journal. Knows no message format, no model, no tool."""
