"""Files that are whole or not there: written beside their places, and moved when nothing is missing."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

try:
    import fcntl
except ImportError:  # no such locks on Windows: folders that a killed process left behind stay, and nobody waits
    fcntl = None  # type: ignore[assignment]

__all__ = ["flush", "locked", "move_into_place", "staging_folder"]

PREFIX = ".saving-"


@contextlib.contextmanager
def staging_folder(folder: Path) -> Iterator[Path]:
    """An empty folder within `folder` to write new files to, gone afterwards, as are those of killed processes."""
    for left in folder.glob(f"{PREFIX}*"):
        with contextlib.suppress(OSError), locked(left, needed=True):
            shutil.rmtree(left)
    staging = Path(tempfile.mkdtemp(dir=folder, prefix=PREFIX))
    try:
        with locked(staging):
            new = staging / "new"
            new.mkdir()
            yield new
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def move_into_place(new: Path, folder: Path) -> None:
    """Move every file of a staging folder into `folder`, each in one step over the one of its name.

    All are on disk before the first is moved. If one cannot be moved, or the program is interrupted, those that were
    replaced come back; a process that is killed leaves each file either old or new.
    """
    files = sorted(new.iterdir())
    for file in files:
        flush(file)
    old = new.parent / "old"
    old.mkdir()
    for file in files:
        if (folder / file.name).exists():
            shutil.copy2(folder / file.name, old / file.name)
    try:
        for file in files:
            os.replace(file, folder / file.name)
    except BaseException:
        for file in old.iterdir():
            os.replace(file, folder / file.name)
        raise
    flush(folder)


@contextlib.contextmanager
def locked(path: Path, *, wait: bool = False, needed: bool = False) -> Iterator[None]:
    """Hold a folder until the block or its process ends; with `wait`, a file, which is made if missing.

    Args:
        path: of the folder or the file.
        wait: for another process that holds it.
        needed: raise an OSError where it cannot be held; else the block is entered all the same.
    """
    if fcntl is None:
        if needed:
            raise OSError("no locks here")
        yield
        return
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT if wait else os.O_RDONLY, 0o666)
    try:
        with contextlib.nullcontext() if needed else contextlib.suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)


def flush(path: Path) -> None:
    """Put a file, or a folder's entries where a system can, on the disk."""
    if os.name != "posix" and path.is_dir():
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
