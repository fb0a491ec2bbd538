"""A bank whose books are a file of its own: whatever is killed and whenever, they say which payments were made."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["Bank"]


class Bank:
    """Pays, and writes down what it paid: a line each, on the disk before anybody hears of it. Any number of processes may use one.

    :param books: the file, made with the first payment.
    """

    def __init__(self, books: Path) -> None:
        self._books = books

    def pay(self, key: str, amount: int) -> None:
        """Pay; whoever asks twice has it paid twice. `key` says who asked, and for what."""
        with self._opened() as books:
            _write(books, key, amount)

    def pay_once(self, key: str, amount: int) -> bool:
        """Pay, unless it was paid under this key before; whether it was paid now."""
        with self._opened() as books:
            if any(paid == key for paid, _ in self.payments()):
                return False
            _write(books, key, amount)
            return True

    def payments(self) -> list[tuple[str, int]]:
        """Every payment made so far, its key and amount, in order."""
        if not self._books.exists():
            return []
        lines = (line.rpartition(" ") for line in self._books.read_text(encoding="utf-8").splitlines())
        return [(key, int(amount)) for key, _, amount in lines]

    @contextmanager
    def _opened(self) -> Generator[int]:
        """The books, of one payer at a time; the operating system ends that with the payer's process."""
        books = os.open(self._books, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(books, fcntl.LOCK_EX)
            yield books
        finally:
            os.close(books)


def _write(books: int, key: str, amount: int) -> None:
    os.write(books, f"{key} {amount}\n".encode())
    os.fsync(books)
