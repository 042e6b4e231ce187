"""One writer at a time."""

from __future__ import annotations

import contextlib
import errno
import os
from pathlib import Path

from monai_diverse.bank.format import LOCK
from monai_diverse.errors import BankError


class WriterLock:
    """A lock on a bank's folder, held by one process from its making until `release`; the kernel frees it if the process dies.

    Raises:
        BankError: another writer is at work, or the folder cannot be locked.
    """

    def __init__(self, folder: Path) -> None:
        try:
            import fcntl  # not on Windows, where banks can be read
        except ImportError as error:
            raise BankError("writing a bank needs POSIX file locks; use Linux, macOS or WSL") from error
        self._folder, self._process = folder, os.getpid()
        handle: int | None = None
        try:
            handle = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)  # a stranger's bank may hold a link there
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if handle is not None:
                os.close(handle)
            if error.errno in (errno.EWOULDBLOCK, errno.EAGAIN):
                raise BankError(
                    f"{folder}: expected to be the only writer, but another process is writing this bank; wait for it or use another folder"
                ) from error
            raise BankError(f"{folder}: cannot be locked ({error.strerror or error}); check its permissions, or use a local disk") from error
        self._handle = handle

    def check(self) -> None:
        """Raises BankError unless this process still holds the lock of what lies in the folder now."""
        if os.getpid() != self._process:
            raise BankError(f"{self._folder}: expected the process that opened this writer, got a child of it; open the bank there")
        ours = os.fstat(self._handle)
        with contextlib.suppress(OSError):
            theirs = (self._folder / LOCK).stat()
            if (ours.st_dev, ours.st_ino) == (theirs.st_dev, theirs.st_ino):
                return
        raise BankError(f"{self._folder}: expected the folder that this writer locked, got another or none; was it removed meanwhile? Open it anew")

    def release(self) -> None:
        """Lets the next writer in."""
        import fcntl

        # a child that inherited the descriptor must not free its parent's lock; and closing ours alone would not free it while a child has a copy
        if os.getpid() == self._process:
            fcntl.flock(self._handle, fcntl.LOCK_UN)
        os.close(self._handle)
