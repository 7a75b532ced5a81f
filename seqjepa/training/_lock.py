"""A folder for one process at a time, and in it for one object at a time."""

from __future__ import annotations

import contextlib
import os
import socket
import weakref
from pathlib import Path
from warnings import warn

try:
    import fcntl
except ImportError:  # not on Windows: there nobody keeps two runs apart
    fcntl = None  # type: ignore[assignment]

__all__ = ["hold", "owner", "release"]

_locks: dict[str, int] = {}  # folder → descriptor of its lock; of this process, until it ends
_owners: dict[str, weakref.ref[object]] = {}  # folder → who uses it


def hold(folder: Path, holder: object) -> None:
    """Lock the folder for this process, if it is not, and let `holder` be the one who uses it.

    Raises:
        RuntimeError: another process has it.
    """
    key, file = os.path.abspath(folder), folder / ".lock"
    held = _locks.get(key)
    if held is None or not file.exists() or not os.path.samestat(os.fstat(held), file.stat()):
        descriptor = _locked(folder, file)
        if held is not None:  # of a folder that was deleted since
            os.close(held)
        _locks[key] = descriptor
    _owners[key] = weakref.ref(holder)


def owner(folder: Path) -> object | None:
    """Who uses the folder in this process."""
    found = _owners.get(os.path.abspath(folder))
    return None if found is None else found()


def release(folder: Path, holder: object) -> None:
    """Let others have it, if it is the holder's."""
    if owner(folder) is holder:
        key = os.path.abspath(folder)
        del _owners[key]
        os.close(_locks.pop(key))


def _locked(folder: Path, file: Path) -> int:
    descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        if fcntl is not None:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.read(descriptor, 200).decode(errors="replace") or "unknown"
        os.close(descriptor)
        raise RuntimeError(
            f"Another run has {folder}: process {holder}. Wait for it, end it, or choose another folder."
        ) from None
    except OSError as error:  # some network file systems know no locks
        warn(f"{folder} cannot be locked ({error}); see to it that no other run uses it.", stacklevel=6)
    with contextlib.suppress(OSError):  # on a full disk others are kept out without being told by whom
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f"{os.getpid()} on {socket.gethostname()}".encode())
    return descriptor


def _forget() -> None:
    """In a forked worker of a loader, which may outlive the run by seconds: the lock is the run's alone."""
    for descriptor in _locks.values():
        os.close(descriptor)
    _locks.clear()
    _owners.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
