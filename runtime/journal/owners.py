"""Whether an owner is alive, asked of the operating system: each holds a lock on a file of its own, and a lock ends with its process.

So a killed owner's actors can be claimed at once, and no clock, lease or heartbeat can be wrong about a living one. A lock belongs
to what a file was opened with, not to the process: two owners in one process keep each other out too.
"""

from __future__ import annotations

import contextlib
import fcntl
import os

__all__ = ["OwnerLock", "is_alive", "lock_path", "remove_lock"]


def lock_path(store: str, owner: int) -> str:
    """The file whose lock says that an owner of this store is alive."""
    return f"{store}-owner-{owner}"


class OwnerLock:
    """An owner's sign of life, from when it is made until `release`, or the end of the process. Raises `OSError`."""

    def __init__(self, store: str, owner: int) -> None:
        self._path = lock_path(store, owner)
        self._file: int | None = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.write(self._file, f"{os.getpid()}\n".encode())
        except BaseException:
            self.forget()
            raise

    def release(self) -> None:
        """Be alive no more."""
        if self._file is not None:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._path)
            self.forget()

    def forget(self) -> None:
        """Let go of the file and leave the lock to whoever else has it: in a child process, to the parent."""
        file, self._file = self._file, None
        if file is not None:
            os.close(file)


def is_alive(store: str, owner: int) -> bool:
    """Whether this owner of the store lives."""
    try:
        file = os.open(lock_path(store, owner), os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    except PermissionError:
        return True  # a file of another user's: not ours to judge, so its owner keeps what it has
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(file)
    return False


def remove_lock(store: str, owner: int) -> None:
    """Take away the file of an owner that is dead."""
    with contextlib.suppress(OSError):
        os.unlink(lock_path(store, owner))
