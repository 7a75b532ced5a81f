"""Checkpoints that are whole or not there, and a run that goes on from them as if it had not stopped."""

from __future__ import annotations

import copy
import operator
import os
import re
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any
from warnings import warn

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from seqjepa._checks import unwrap
from seqjepa._files import flush
from seqjepa._shards import is_sharded
from seqjepa.distributed import gather_objects, on_rank_0, rank, world_size
from seqjepa.training._lock import hold, owner, release
from seqjepa.training._settings import as_built, check_fits, is_replayed, keep_new_settings, set_rates

__all__ = ["Checkpoints"]

FORMAT = "seqjepa.training.Checkpoints 1"
NAME = re.compile(r"step-(\d+)\.pt")
PLAIN = (type(None), bool, int, float, complex, str, bytes, torch.dtype, torch.device, torch.Size)
# Of every rank the same: rank 0's is kept. All else is kept of each rank.
REPLICATED = (nn.Module, Optimizer, LRScheduler, torch.amp.GradScaler)


class Checkpoints:
    """Save a run every so often, whole or not at all, and go on from the newest whole checkpoint.

    A checkpoint holds the state dicts of what is passed by name and is read with `weights_only=True`: nothing in it can
    run code. Rank 0 writes it under another name, flushes it to the disk and then moves it into place, so that a run
    that is killed at any moment leaves the last one; the other ranks wait. A disk that is full raises on all ranks.

    What is the same on all ranks (modules, optimisers, schedulers, gradient scalers) is kept once, rank 0's; anything
    else (a loader, a monitor, a probe) is kept of each rank, and comes back to it. Where the number of ranks is another
    one, all get rank 0's; a loader refuses that in the middle of an epoch.

    Settings are not state: what an optimiser or a scheduler was built with and is built with differently now (a rate, a
    weight decay, the length of a schedule) is as it is now, and a warning says so. Make the `Checkpoints` before the
    first step, while both are as they were built.

    Two processes never save into one folder: a lock, which its death releases, keeps the second out. Within a process
    the `Checkpoints` made last saves.

    Args:
        folder: of the run; checkpoints go into `checkpoints/` inside. All ranks must see it.
        keep: how many to keep, the newest; at least 1.
        things: by name, whatever has `state_dict` and `load_state_dict`; wrapped models are unwrapped, None is skipped.
            Build them, and start torch.distributed, before.

    Attributes:
        latest: the checkpoint that was saved or restored last, or None.

    Raises:
        ValueError: nothing to keep; `keep` below 1.
        TypeError: a thing without state.
        RuntimeError: another process has the folder.

    Examples:
        >>> import tempfile, torch
        >>> folder = tempfile.mkdtemp()
        >>> model = torch.nn.Linear(2, 2)
        >>> optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        >>> run = Checkpoints(folder, model=model, optimizer=optimizer)
        >>> run.restore()                                          # nothing yet
        0
        >>> run.save(50)
        >>> again = torch.nn.Linear(2, 2)
        >>> optimizer = torch.optim.AdamW(again.parameters(), lr=1e-3)
        >>> Checkpoints(folder, model=again, optimizer=optimizer).restore(), torch.equal(again.weight, model.weight)
        (50, True)
    """

    def __init__(self, folder: str | os.PathLike[str], *, keep: int = 2, **things: Any) -> None:
        if keep < 1:
            raise ValueError(f"keep is how many checkpoints stay, at least 1; got {keep}.")
        self.keep = keep
        self._things = {
            name: unwrap(thing) if isinstance(thing, nn.Module) else thing
            for name, thing in things.items()
            if thing is not None
        }
        if not self._things:
            raise ValueError("A checkpoint holds what is passed by name, such as model=model; got nothing.")
        for name, thing in self._things.items():
            if not all(callable(getattr(thing, verb, None)) for verb in ("state_dict", "load_state_dict")):
                raise TypeError(
                    f"{name} must have state_dict and load_state_dict; {type(thing).__name__} has not both."
                )
        self._built = as_built(self._things)
        self.latest: Path | None = None
        self._folder = Path(folder) / "checkpoints"
        self._may_save = False  # not before it is known that nothing is there, or what is there was restored
        self._not_whole: set[Path] = set()
        on_rank_0(self._open)

    def restore(self) -> int:
        """Go on from the newest whole checkpoint, on every rank.

        A file that is damaged or not one of ours is named in a warning, and the one before it is used.

        Returns:
            The step it was saved at; 0 if there is none.

        Raises:
            ValueError: a checkpoint of something else: other names, another model, a loader with other settings. Then
                nothing is loaded.
            TypeError: a model that is sharded over ranks.
        """
        self._check_whole()
        found, notes = on_rank_0(self._newest_whole)
        step = 0
        if found is not None:
            step, changes = self._load(found)
            notes = notes + changes
        self._may_save, self.latest = True, found
        for note in notes if rank() == 0 else []:
            warn(note, stacklevel=2)
        return step

    def save(self, step: int) -> None:
        """Write a checkpoint, on every rank; return when it is on the disk.

        Args:
            step: optimiser steps done.

        Raises:
            OSError: it could not be written; the one before is still there and nothing else is.
            ValueError: a step below one that is saved already, or a folder with checkpoints that were not restored.
            TypeError: state that could not be read back safely; a model that is sharded over ranks.
        """
        step = operator.index(step)
        self._check_whole()
        states = {name: thing.state_dict() for name, thing in self._things.items() if self._is_kept(thing)}
        each = gather_objects({k: _on_cpu(v) for k, v in states.items() if not self._is_shared(k)})
        content = {
            "format": FORMAT, "step": step, "built": self._built, "ranks": each,
            "shared": {k: v for k, v in states.items() if self._is_shared(k)},
        }  # fmt: skip
        on_rank_0(lambda: self._write(step, content))
        self.latest = self._file(step)

    def close(self) -> None:
        """Let another process have the folder. The end of this one does so too."""
        release(self._folder, self)

    def _check_whole(self) -> None:
        """Raise where a rank holds only shards of a model or of what its optimiser moves."""
        for name, thing in self._things.items():
            groups = thing.param_groups if isinstance(thing, Optimizer) else []
            weights = [p for group in groups for p in group["params"]]
            if isinstance(thing, nn.Module):
                weights = list(thing.state_dict().values())  # not parameters(), which a pass may have made whole
            if any(is_sharded(weight) for weight in weights):
                raise TypeError(
                    f"{name} is sharded over ranks. Save a sharded model and its optimiser by "
                    "torch.distributed.checkpoint, as the guide to many GPUs shows, and the rest by Checkpoints."
                )

    def _is_shared(self, name: str) -> bool:
        return isinstance(self._things[name], REPLICATED)

    def _is_kept(self, thing: Any) -> bool:
        return rank() == 0 or not isinstance(thing, REPLICATED)

    def _file(self, step: int) -> Path:
        return self._folder / f"step-{step:08d}.pt"

    def _open(self) -> None:
        """Make the folder, lock it, and clear away what a killed save left."""
        self._folder.mkdir(parents=True, exist_ok=True)
        hold(self._folder, self)
        for left in self._folder.glob(".step-*.tmp"):
            left.unlink(missing_ok=True)

    def _present(self) -> list[tuple[int, Path]]:
        """What looks like a checkpoint, by step, less what turned out not to be whole."""
        found = [(int(match[1]), path) for path in self._folder.iterdir() if (match := NAME.fullmatch(path.name))]
        return sorted(pair for pair in found if pair[1] not in self._not_whole)

    def _newest_whole(self) -> tuple[Path | None, list[str]]:
        notes: list[str] = []
        for _, path in reversed(self._present()):
            try:
                _read(path)
                return path, notes
            except MemoryError:
                raise
            except Exception as error:  # whatever a file can hold
                self._not_whole.add(path)
                reason = str(error).splitlines()[0] if str(error) else type(error).__name__
                notes.append(f"{path} is damaged, or no checkpoint of ours ({reason[:200]}); an older one is used.")
        return None, notes

    def _load(self, path: Path) -> tuple[int, list[str]]:
        """Load everything, or put everything back and raise, on all ranks alike."""
        before = {name: copy.deepcopy(_on_cpu(thing.state_dict())) for name, thing in self._things.items()}
        problem, step = None, 0
        notes: list[str] = []
        try:
            step, notes = self._load_all(path)
        except Exception as error:
            problem = f"{type(error).__name__}: {error}"
        problems = [each for each in gather_objects(problem) if each]
        if problems:
            for name, state in before.items():
                self._things[name].load_state_dict(state)
            lines = [line if len(line) < 300 else f"{line[:300]} …" for line in problems[0].splitlines()]
            shown = "\n".join(lines[:12] + ["…"] * (len(lines) > 12))
            raise ValueError(
                f"{path} is of another model or run than what is to be restored; nothing was loaded. {shown}\nBuild "
                "the run as it was built when it was saved, or choose another folder."
            )
        return step, notes

    def _load_all(self, path: Path) -> tuple[int, list[str]]:
        content = _read(path)
        notes: list[str] = []
        ranks = content["ranks"]
        mine = ranks[rank() if len(ranks) == world_size() else 0]
        saved = content["shared"] | mine
        if saved.keys() != self._things.keys():
            raise ValueError(f"It holds {_names(saved)}; to be restored are {_names(self._things)}.")
        if mine and len(ranks) != world_size():
            notes.append(
                f"{path} is of {len(ranks)} ranks, and here are {world_size()}: all go on from rank 0's {_names(mine)}."
            )
        changes, anew = [], {}
        for name, thing in self._things.items():
            state = saved[name]
            if name in self._built:
                state, changed = keep_new_settings(thing, state, content["built"].get(name), self._built[name])
                changes += [f"{name}'s {change}" for change in changed]
                if is_replayed(thing) and (changed or name not in content["built"]):
                    anew[name] = self._built[name]
            thing.load_state_dict(state)
            if isinstance(thing, Optimizer) and name in self._built:
                check_fits(thing, self._built[name])
        for name, thing in self._things.items():
            if isinstance(thing, LRScheduler):
                changes += [f"{name}'s {change}" for change in set_rates(thing, anew.get(name))]
        if changes:
            notes.append(f"Settings are others than when {path} was saved, and hold from now on: {'; '.join(changes)}.")
        return int(content["step"]), notes

    def _write(self, step: int, content: dict[str, Any]) -> None:
        """On rank 0: the file, moved into place when it is on the disk; then the oldest go."""
        self._check_may_save(step)
        unsafe = _unsafe(content, "")
        if unsafe:
            raise TypeError(
                f"A checkpoint holds tensors, numbers, text and containers of them, which are safe to load; {unsafe}."
            )
        file = self._file(step)
        temporary = self._folder / f".{file.name}.{os.getpid()}.tmp"
        try:
            with open(temporary, "wb") as out:
                torch.save(content, out)
                out.flush()
                os.fsync(out.fileno())
            os.replace(temporary, file)
        except BaseException as error:
            temporary.unlink(missing_ok=True)
            cause = error if isinstance(error, OSError) else error.__context__
            if isinstance(cause, OSError):
                there = self._present()
                last = f"the last whole one is {there[-1][1]}" if there else "there is no other"
                raise OSError(cause.errno, f"{cause.strerror}: {file} was not saved; {last}") from error
            raise
        flush(self._folder)
        self._not_whole.discard(file)
        for _, old in self._present()[: -self.keep]:
            old.unlink(missing_ok=True)

    def _check_may_save(self, step: int) -> None:
        if owner(self._folder) is not self:
            raise RuntimeError(
                f"Another Checkpoints of this process has taken {self._folder} over, or this one was closed. Give each "
                "run a folder of its own."
            )
        there = self._present()
        if there and not self._may_save:
            raise ValueError(
                f"{self._folder} holds a run that came to step {there[-1][0]}. Call restore() to go on from it, or "
                "choose another folder; nothing is overwritten."
            )
        if there and step < there[-1][0]:
            raise ValueError(
                f"Steps count up; got {step}, and {there[-1][1]} is saved already. Restore it to go on from it."
            )
        if step < 0:
            raise ValueError(f"step counts the optimiser steps done, from 0; got {step}.")
        self._may_save = True


def _read(path: Path) -> dict[str, Any]:
    with zipfile.ZipFile(path) as archive:
        bad = archive.testzip()  # torch.load does not look at the checksums
    if bad is not None:
        raise ValueError(f"the checksum of {bad} is wrong")
    content = torch.load(path, map_location="cpu", weights_only=True)
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise ValueError(f"it is not in the format {FORMAT!r}")
    return content


def _on_cpu(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().cpu()
    if type(value) in (dict, OrderedDict):
        return type(value)((key, _on_cpu(entry)) for key, entry in value.items())
    if type(value) in (list, tuple):
        return type(value)(_on_cpu(entry) for entry in value)
    return value


def _unsafe(value: Any, where: str) -> str | None:
    """What torch.load would refuse with `weights_only=True`, or None."""
    if type(value) in PLAIN or type(value) in (Tensor, nn.Parameter):
        return None
    if type(value) in (dict, OrderedDict):
        pairs = list(value.items())
        entries = [(key, key) for key, _ in pairs] + pairs
    elif type(value) in (list, tuple, set):
        entries = list(enumerate(value))
    else:
        return f"{where.strip('.')} is a {type(value).__module__}.{type(value).__qualname__}"
    for key, entry in entries:
        unsafe = _unsafe(entry, f"{where}.{key}")
        if unsafe:
            return unsafe
    return None


def _names(things: dict[str, Any]) -> str:
    return ", ".join(sorted(things)) or "nothing"
