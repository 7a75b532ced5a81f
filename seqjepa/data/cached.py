"""Features of a frozen encoder, computed once and kept in one file that is read without loading it."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from seqjepa._checks import weight_of
from seqjepa._files import flush, locked
from seqjepa._modes import eval_mode, fresh_casts
from seqjepa.data._images import unit_floats
from seqjepa.types import ViewSequence

__all__ = ["cache_features"]

DTYPES = {torch.float16: "F16", torch.bfloat16: "BF16", torch.float32: "F32"}  # as safetensors names them
SYNCED = 64  # sources that are written before they are put on the disk
LOOKED_AT = 4  # sources that are encoded anew when a file is opened
TOLERANCE = 0.05  # of their features' size: half precision and other kernels are far below, other weights far above


def cache_features(
    path: str | os.PathLike[str],
    encoder: Callable[[Tensor], Tensor],
    views: Any,
    *,
    chunk: int = 64,
    dtype: torch.dtype = torch.float16,
    num_workers: int = 0,
    progress: Callable[[Iterable[Any]], Iterable[Any]] | None = None,
) -> Float[Tensor, "N V *F"]:
    """What a frozen encoder makes of V views of each of N sources: computed by the first call, opened by later ones.

    The file is in the format of safetensors, with one tensor, `features`. It is whole or not there: rows are added to a
    file beside it, `path` and `.part`, which a call that is interrupted leaves for the next to go on with. Processes
    that call at the same time wait for the first (on systems with POSIX locks). What is returned is mapped into memory:
    it takes none until it is looked at, whatever its size, and forked workers share it.

    Before a file is opened or gone on with, it is compared with what is asked for: the encoder's weights, bit by bit;
    the number and shape of the views; and a few sources, which are encoded anew.

    The encoder runs in eval mode, without gradient, where its weights lie. Batch norm and dropout then make each view's
    features its own, whatever the chunk.

    Args:
        path: of the file, in a folder that exists.
        encoder: (n, …) → (n, *F), such as an image encoder (n, C, H, W) → (n, F).
        views: with a length, N, and by index the (V, …) views of a source, V the same for all: a tensor (N, V, …) or a
            dataset; uint8, which become floats in [0, 1], or floating point. Of a
            [`ViewSequence`][seqjepa.types.ViewSequence] the views are taken. The same index must give the same views.
        chunk: sources to encode and write at a time, at least 1.
        dtype: of the file: float16, bfloat16 or float32.
        num_workers: processes that load views.
        progress: wraps the chunks that are left, such as `tqdm.tqdm`.

    Returns:
        (N, V, *F) features of `dtype`, on the CPU. Changing them does not change the file.

    Raises:
        ValueError: a file of another encoder, other views or another dtype; no views; features that are not finite in
            this dtype; an encoder that does not return (n, *F); a setting out of range.
        FileNotFoundError: the folder is not there.

    Examples:
        >>> import tempfile, torch
        >>> from pathlib import Path
        >>> trunk = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 8 * 8, 16))
        >>> views = torch.randint(0, 256, (100, 5, 3, 8, 8), dtype=torch.uint8)   # 5 views of each of 100 sources
        >>> path = Path(tempfile.mkdtemp(), "features.safetensors")
        >>> features = cache_features(path, trunk, views)
        >>> features.shape, features.dtype, path.stat().st_size // 1000
        (torch.Size([100, 5, 16]), torch.float16, 16)
        >>> again = cache_features(path, trunk, views)                            # computes nothing
        >>> torch.equal(again, features)
        True
    """
    path = Path(path)
    if chunk < 1:
        raise ValueError(f"chunk is a number of sources, at least 1; got {chunk}.")
    if dtype not in DTYPES:
        raise ValueError(f"dtype must be one of {', '.join(map(str, DTYPES))}; got {dtype}.")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{path.parent} is not there; {path.name} would be written into it. Make the folder.")
    if not len(views):
        raise ValueError("There is nothing to encode: views has length 0. Give one source at least.")
    sources = _Sources(views)
    with _frozen(encoder) as encode:
        asked = _File(encode(sources[0]).shape, sources.shape, len(sources), dtype, _digest(encoder))
        if not path.exists():
            part = path.with_name(f"{path.name}.part")
            with locked(part, wait=True):
                if not path.exists():
                    done = asked.rows_of(part)
                    asked.check_sources(part, encode, sources, done)
                    _write(part, asked, done, encode, sources, chunk, num_workers, progress)
                    os.replace(part, path)
                    flush(path.parent)
                else:  # another process wrote it meanwhile
                    part.unlink(missing_ok=True)
        features = asked.opened(path)
        asked.check_sources(path, encode, sources, len(features))
    return features


class _Sources(Dataset[Tensor]):
    """The views of each source as floats, in the shape of the first's."""

    def __init__(self, views: Any) -> None:
        self.views, self.shape = views, torch.Size()
        self.shape = self[0].shape

    def __len__(self) -> int:
        return len(self.views)

    def __getitem__(self, index: int) -> Tensor:
        item = self.views[index]
        item = item.views if isinstance(item, ViewSequence) else item
        if not isinstance(item, Tensor) or item.ndim < 2 or not len(item):
            came = tuple(item.shape) if isinstance(item, Tensor) else type(item).__name__
            raise ValueError(
                f"views[i] is the (V, …) views of a source, V of at least 1; views[{index}] is {came}. Give a single "
                "view an axis: view[None]."
            )
        if self.shape and item.shape != self.shape:
            raise ValueError(
                f"All sources have as many views of one size, {tuple(self.shape)} as the first has; views[{index}] is "
                f"{tuple(item.shape)}."
            )
        if item.dtype != torch.uint8 and not item.is_floating_point():
            raise ValueError(f"Views are uint8 or floating point; views[{index}] has {item.dtype}.")
        return unit_floats(item)


class _File:
    """What the file of some features holds, and where: a header that says so, and the rows, one a source."""

    def __init__(self, features: torch.Size, views: torch.Size, count: int, dtype: torch.dtype, encoder: str) -> None:
        self.shape, self.dtype = (count, *features), dtype
        self.row = features.numel() * dtype.itemsize
        self.asked = {"encoder": encoder, "sources": str(count), "views of a source": str(tuple(views))}
        self.tensor = {"dtype": DTYPES[dtype], "shape": list(self.shape), "data_offsets": [0, count * self.row]}
        text = json.dumps({"__metadata__": self.asked, "features": self.tensor}).encode()
        text += b" " * (-len(text) % 8)
        self.header = len(text).to_bytes(8, "little") + text

    def rows_of(self, part: Path) -> int:
        """How many rows to go on from in the file of an interrupted call; an error where it was about something else.

        The last are not counted on: a power cut may have left their place without their bytes.
        """
        if not part.exists() or part.stat().st_size <= len(self.header):
            return 0
        self.check_header(part)
        return max((part.stat().st_size - len(self.header)) // self.row - SYNCED, 0)

    def opened(self, path: Path) -> Tensor:
        """The features of a whole file, mapped into memory."""
        self.check_header(path)
        size = path.stat().st_size
        if size != len(self.header) + self.shape[0] * self.row:
            raise ValueError(f"{path} was cut off: it has {size} bytes. Delete it: it will be computed again.")
        return self.mapped(path, self.shape[0])

    def mapped(self, path: Path, rows: int) -> Tensor:
        """The first rows, mapped into memory."""
        start = len(self.header)
        held = torch.from_file(str(path), shared=False, size=start + rows * self.row, dtype=torch.uint8)
        return held[start:].view(self.dtype).view(rows, *self.shape[1:])

    def check_header(self, path: Path) -> None:
        """Raise unless the file says that it holds what is asked for."""
        found, tensor = _header(path)
        theirs, ours = found | {"features": _told(tensor)}, self.asked | {"features": _told(self.tensor)}
        differ = [f"{name} {theirs.get(name)}, not {ours[name]}" for name in ours if theirs.get(name) != ours[name]]
        if differ:
            raise ValueError(
                f"{path} holds the features of something else: {'; '.join(differ)}. Give these features a path of "
                "their own, or delete the file."
            )

    def check_sources(self, path: Path, encode: Callable[[Tensor], Tensor], sources: _Sources, rows: int) -> None:
        """Raise unless some of the first rows are what the encoder makes of their views now."""
        if not rows:
            return
        held = self.mapped(path, rows)
        for number in sorted({round(k * (rows - 1) / max(LOOKED_AT - 1, 1)) for k in range(LOOKED_AT)}):
            expected, got = encode(sources[number]).to(self.dtype).float(), held[number].float()
            apart = (got - expected).norm() / expected.norm().clamp(min=1e-12)
            if not apart < TOLERANCE:
                raise ValueError(
                    f"{path} does not hold the features of these views: those of source {number} differ by "
                    f"{100 * apart:.0f} %. Other views, in another order, or an encoder that treats them otherwise: "
                    "give these features a path of their own, or delete the file."
                )


def _write(
    part: Path, file: _File, done: int, encode: Callable[[Tensor], Tensor], sources: _Sources, chunk: int,
    num_workers: int, progress: Callable[[Iterable[Any]], Iterable[Any]] | None,
) -> None:  # fmt: skip
    """The rows that are not done, in order."""
    rest = torch.utils.data.Subset(sources, range(done, len(sources)))
    loader: Any = DataLoader(rest, chunk, num_workers=num_workers, generator=torch.Generator("cpu"))
    with open(part, "r+b" if done else "wb") as out:
        out.write(file.header)
        out.truncate(len(file.header) + done * file.row)
        out.seek(0, os.SEEK_END)
        for batch in loader if progress is None else progress(loader):
            features = encode(batch.flatten(0, 1)).unflatten(0, batch.shape[:2]).to(file.dtype)
            if not features.isfinite().all():
                bad = done + int((~features.flatten(1).isfinite().all(1)).nonzero()[0])
                raise ValueError(
                    f"Features must be finite in {file.dtype}; those of source {bad} are not. If its views are, give "
                    "dtype=torch.bfloat16 or torch.float32, which hold larger numbers."
                )
            for rows in features.contiguous().view(torch.uint8).split(SYNCED):
                out.write(rows.numpy().tobytes())
                out.flush()
                os.fsync(out.fileno())
            done += len(batch)


@contextlib.contextmanager
def _frozen(encoder: Callable[[Tensor], Tensor]) -> Iterator[Callable[[Tensor], Tensor]]:
    """The encoder in eval mode, without gradient, from views on the CPU to features on the CPU."""
    module = encoder if isinstance(encoder, nn.Module) else None
    weight = None if module is None else weight_of(module)
    device = torch.device("cpu") if weight is None else weight.device

    def encode(views: Tensor) -> Tensor:
        features = encoder(views.to(device) if weight is None else views.to(weight))
        if not isinstance(features, Tensor) or features.ndim < 2 or len(features) != len(views):
            came = tuple(features.shape) if isinstance(features, Tensor) else type(features).__name__
            raise ValueError(f"The encoder must map {len(views)} views to ({len(views)}, *F); got {came}.")
        return features.cpu()

    with torch.no_grad(), fresh_casts(device), contextlib.nullcontext() if module is None else eval_mode(module):
        yield encode


def _digest(encoder: Callable[[Tensor], Tensor]) -> str:
    """Of the weights and buffers, by name; of a function nothing is known but what it makes of views."""
    if not isinstance(encoder, nn.Module):
        return "a function"
    known = hashlib.blake2b(digest_size=8)
    for name, tensor in encoder.state_dict().items():
        if isinstance(tensor, Tensor):
            known.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            data: Any = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
            known.update(data)
    return f"{type(encoder).__name__} {known.hexdigest()}"


def _header(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The metadata and the tensor that a file says it holds."""
    with open(path, "rb") as file:
        size = int.from_bytes(file.read(8), "little")
        try:
            found = json.loads(file.read(min(size, 1 << 20)))
            return found["__metadata__"], found["features"]
        except (ValueError, KeyError, TypeError):
            raise ValueError(
                f"{path} holds no features that were computed here. Give another path, or delete the file."
            ) from None


def _told(tensor: dict[str, Any]) -> str:
    return f"{tensor.get('dtype')} {tuple(tensor.get('shape', ()))}"
