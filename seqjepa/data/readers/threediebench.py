"""3DIEBench and 3DIEBench-OOD from their folders."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from numbers import Integral
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from seqjepa.data._parameters import ObjectParameters
from seqjepa.data.collation import collate
from seqjepa.data.readers._cache import SharedTensor, open_cache
from seqjepa.data.readers._files import decode, folders_in, read_bytes, read_npy, require_folder, require_split, resized
from seqjepa.data.seeding import SeededDataset
from seqjepa.groups import Group, Hue, Product, Rotation2D, Rotation3D, Translation
from seqjepa.types import ViewSequence

__all__ = ["ThreeDIEBench"]

WHERE = "Get 3DIEBench from github.com/facebookresearch/SIE, 3DIEBench-OOD from huggingface.co/datasets/Hafez."
LATENTS = 7  # three Euler angles, floor hue, light theta, light phi, light hue
GROUPS: dict[str, Group] = {
    "rotation": Rotation3D(),
    "floor_hue": Hue(),
    "light_hue": Hue(),
    "light_theta": Translation(1),
    "light_phi": Rotation2D(),
}


class ThreeDIEBench(SeededDataset):
    """Rendered objects, several random views of one an item, with the rotation between them.

    An item is a [`ViewSequence`][seqjepa.types.ViewSequence] without the batch axis, its views uint8; give the dataset
    to a [`ViewLoader`][seqjepa.data.ViewLoader] without a sampler. The views are drawn without repetition. The action
    is the quaternion of R_iᵀ R_{i+1}; with `actions=("rotation", "floor_hue", "light_hue")` the changes of colour
    follow, 6 numbers.

    On disk: `root/synset/object/image_0.jpg … image_49.jpg` and beside each its `latent_0.npy …`: three extrinsic xyz
    Euler angles, floor hue, light θ, light φ, light hue. Index files `train_images.npy`, `train_labels.npy`,
    `val_images.npy` and `val_labels.npy` list the objects of each split; where there is none of them, the folders are
    walked, the classes are the synsets in alphabetical order, and a share of each class that depends on the objects'
    names alone is the validation set. Decoding takes most of the time; latents are read once.

    Args:
        root: the folder of the synsets.
        split: "train" or "val".
        num_views: of an item, from 2 to `views_per_object`.
        size: side in pixels to which views are resized; None leaves them at 256.
        actions: the parameters whose change the action tells, in this order: names of "rotation", "floor_hue",
            "light_hue", "light_theta", "light_phi". Of one, the action is an element of its group; of several, their
            elements stand side by side.
        index: folder of the index files; None looks into `root`.
        views_per_object: 50 in the released data.
        val_share: of each class, where there are no index files; in (0, 1).
        cache: None; "memory" keeps decoded views, for this run and all its workers; a folder keeps them in a .npy file
            there, decoded all at once when the dataset is first built. At 128 px the whole training set is 103 GB, at
            64 px 26 GB.

    Attributes:
        objects: "synset/object" of each item.
        labels: (N,) class of each item.
        group: of the actions.

    Raises:
        FileNotFoundError: folders, index files, objects, views or latents that are missing, each by its path.
        ValueError: views or latents that cannot be read, each by its path; settings out of range; unknown actions.
        TypeError: a number of views or a size that is not whole.

    Source:
        Garrido et al. 2023 (arXiv 2302.10283). Departures from the released seq-JEPA code: quaternions have one
        canonical sign, and differences of hue are wrapped.

    Examples:
        >>> import numpy, tempfile
        >>> from pathlib import Path
        >>> from PIL import Image
        >>> folder = Path(tempfile.mkdtemp(), "02691156", "10155655850468db78d106ce0a280f87")
        >>> folder.mkdir(parents=True)
        >>> for k in range(5):
        ...     Image.new("RGB", (256, 256)).save(folder / f"image_{k}.jpg")
        ...     numpy.save(folder / f"latent_{k}.npy", numpy.full(7, 0.1 * k))
        >>> dataset = ThreeDIEBench(folder.parent.parent, num_views=3, size=64, views_per_object=5)
        >>> dataset[0].views.shape, dataset[0].actions.shape
        (torch.Size([3, 3, 64, 64]), torch.Size([2, 4]))
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        split: str = "train",
        *,
        num_views: int = 4,
        size: int | None = 128,
        actions: Sequence[str] = ("rotation",),
        index: str | os.PathLike[str] | None = None,
        views_per_object: int = 50,
        val_share: float = 0.2,
        cache: str | os.PathLike[str] | None = None,
    ) -> None:
        for name, number in (("num_views", num_views), ("size", size), ("views_per_object", views_per_object)):
            if not isinstance(number, Integral) and (name != "size" or number is not None):
                raise TypeError(f"{name} must be a whole number; got {number!r}. Convert it with int().")
        if not 2 <= num_views <= views_per_object:
            raise ValueError(
                f"num_views goes from 2 to views_per_object, {views_per_object}, as views are not repeated; got "
                f"{num_views}."
            )
        if size is not None and size < 1:
            raise ValueError(f"size must be at least 1 pixel, or None; got {size}.")
        self.root = require_folder(Path(root), "3DIEBench, a folder for each synset,", WHERE)
        self.num_views, self.size, self.views_per_object = num_views, size, views_per_object
        self.group, self.actions = _group(actions), tuple(actions)
        require_split(split, ("train", "val"))
        self.objects, self.labels = _listed(self.root, split, index) or _walked(self.root, split, val_share)
        # Of each view: quaternion, floor hue, light theta, light phi, light hue, and 1 once these have been read.
        self._latents = SharedTensor((len(self.objects), views_per_object, 9), torch.float32)
        # 3DIEBench-OOD has objects of the same names: a cache is told from its twin's by a few latents.
        self._views = open_cache(
            cache, self._decode, self.objects, views=views_per_object, label=f"3diebench-{split}",
            fingerprint=self._latent_bytes,
        )  # fmt: skip

    def __len__(self) -> int:
        """Number of objects."""
        return len(self.objects)

    def draw(self, index: int, generator: torch.Generator | None) -> ViewSequence:
        """`num_views` random views of object `index`."""
        return self.views(index, self._drawn(self.num_views, generator))

    def views(self, index: int, which: Sequence[int]) -> ViewSequence:
        """Views of one object by their numbers on disk, in this order; views (V, 3, H, W) uint8, actions (V − 1, A).

        A single view is read too: it has no action, and `actions` is (0, A).

        Args:
            index: of the object, in [0, N).
            which: numbers of its views, at least one; a view may come more than once.

        Raises:
            ValueError: an object or a view that is not there.
        """
        self._check_there([index])
        if not which or not all(0 <= k < self.views_per_object for k in which):
            raise ValueError(f"Views count from 0 to {self.views_per_object - 1}; got {list(which)}.")
        images = torch.stack([self._views[index * self.views_per_object + k] for k in which])
        for k in which:
            if not self._latents.tensor[index, k, 8]:
                self._read_latent(index, k)
        rotation, rest = self._latents.tensor[index, list(which), :8].split(4, dim=1)
        floor_hue, light_theta, light_phi, light_hue = rest.unbind(1)
        instance = torch.tensor(index, device="cpu")
        parameters = ObjectParameters(rotation, floor_hue, light_hue, light_theta, light_phi, instance)
        actions = self.group.actions(self.elements(parameters))
        return ViewSequence(images, actions, parameters, self.labels[index], self.group)

    def elements(self, parameters: ObjectParameters) -> Float[Tensor, "*B V A"]:
        """What the actions are taken from: the parameters that `actions` names, side by side, as elements of the group.

        Those of a batch, (B, V, A), or of one item, (V, A).
        """
        parts = {name: getattr(parameters, name) for name in self.actions}
        return torch.cat([part if name == "rotation" else part[..., None] for name, part in parts.items()], dim=-1)

    def sample(
        self,
        instance: Int[Tensor, "B"] | Sequence[int],
        *,
        num_views: int | None = None,
        generator: torch.Generator | None = None,
    ) -> ViewSequence:
        """Random views of several objects, on the CPU: views (B, V, 3, H, W) in [0, 1], actions (B, V − 1, A).

        Args:
            instance: (B,) numbers in [0, N), at least one; one may come more than once.
            num_views: V; None is that of the dataset.
            generator: on the CPU.

        Raises:
            ValueError: no objects, or some that are not there; too few or too many views.
        """
        wanted = torch.as_tensor(instance, device="cpu")
        if wanted.ndim != 1 or 0 in wanted.shape or wanted.is_floating_point() or wanted.dtype == torch.bool:
            raise ValueError(
                f"instance must be (B,) whole numbers, at least one; got {wanted.dtype} of shape {tuple(wanted.shape)}."
            )
        self._check_there(wanted.tolist())
        count = self.num_views if num_views is None else num_views
        if not 2 <= count <= self.views_per_object:
            raise ValueError(f"num_views goes from 2 to {self.views_per_object}; got {count}.")
        drawn = [self.views(i, self._drawn(count, generator)) for i in wanted.tolist()]
        batch = collate(drawn)
        assert isinstance(batch, ViewSequence)
        return batch._replace(views=batch.views.float().div_(255))

    def _drawn(self, count: int, generator: torch.Generator | None) -> list[int]:
        drawn: list[int] = torch.randperm(self.views_per_object, generator=generator, device="cpu")[:count].tolist()
        return drawn

    def _check_there(self, wanted: Sequence[int]) -> None:
        absent = [index for index in wanted if not 0 <= index < len(self)]
        if absent:
            raise ValueError(
                f"Objects are numbered from 0 to {len(self) - 1}; got {absent[0]}. Those of the other split are in a "
                "dataset of their own."
            )

    def _latent_bytes(self, number: int) -> bytes:
        item, k = divmod(number, self.views_per_object)
        return read_bytes(self.root / self.objects[item] / f"latent_{k}.npy", f"a latent, {LATENTS} numbers,")

    def _decode(self, number: int) -> Tensor:
        item, k = divmod(number, self.views_per_object)
        path = Path(f"{self.root}/{self.objects[item]}/image_{k}.jpg")
        try:
            image = decode(path)
        except FileNotFoundError:
            raise FileNotFoundError(
                f"{path} is missing: an object has image_0.jpg to image_{self.views_per_object - 1}.jpg. Unpack the "
                "archive again, or pass views_per_object= if each object has fewer."
            ) from None
        return image if self.size is None else resized(image, self.size, self.size)

    def _read_latent(self, index: int, k: int) -> None:
        path = self.root / self.objects[index] / f"latent_{k}.npy"
        latent = torch.from_numpy(_checked(read_npy(path, f"a latent, {LATENTS} numbers,"), path))
        row = self._latents.tensor[index, k]
        row[:8] = torch.cat([Rotation3D.from_euler(latent[:3]), latent[3:]])
        row[8] = 1  # last: another worker takes the rest as written then


def _checked(latent: Any, path: Path) -> Any:
    import numpy as np

    if latent.shape != (LATENTS,) or latent.dtype.kind != "f":
        raise ValueError(
            f"{path} should be a latent, {LATENTS} floating-point numbers; it holds {latent.dtype} of shape "
            f"{latent.shape}."
        )
    if not np.isfinite(latent).all():
        raise ValueError(f"{path} should be a latent, {LATENTS} finite numbers; it holds {latent.tolist()}.")
    return latent.astype(np.float64)


def _group(actions: Sequence[str]) -> Group:
    unknown = [name for name in actions if name not in GROUPS]
    if isinstance(actions, str) or unknown or not actions or len(set(actions)) != len(actions):
        raise ValueError(
            f"actions is a tuple of names, each at most once, out of {', '.join(map(repr, GROUPS))}; got {actions!r}."
        )
    return GROUPS[actions[0]] if len(actions) == 1 else Product({name: GROUPS[name] for name in actions})


def _listed(root: Path, split: str, index: str | os.PathLike[str] | None) -> tuple[list[str], Int[Tensor, "N"]] | None:
    """What the index files list; None where there is none, of either split, and none were named."""
    folder = root if index is None else Path(index)
    files = [folder / f"{name}_{kind}.npy" for name in ("train", "val") for kind in ("images", "labels")]
    there = [path for path in files if path.exists()]
    if index is None and not there:
        return None
    paths = [path for path in files if path.name.startswith(split)]
    lost = [path for path in paths if path not in there]
    if index is None and lost:  # to walk the folders would give one split objects that the index gives to the other
        raise FileNotFoundError(
            f"{lost[0]} is missing; a part of the index of 3DIEBench's {split} split should be there, as "
            f"{there[0].name} is. Add it, or remove the whole index to have the folders split by their names."
        )
    entries, labels = (read_npy(path, f"a part of the index of 3DIEBench's {split} split") for path in paths)
    if entries.ndim != 1 or entries.dtype.kind not in "US" or len(entries) == 0:
        raise ValueError(f"{paths[0]} should list objects, (N,) strings; it holds {entries.dtype} {entries.shape}.")
    if labels.shape != entries.shape or labels.dtype.kind not in "iu":
        raise ValueError(
            f"{paths[1]} should hold a whole number for each of the {len(entries)} objects of {paths[0].name}; it "
            f"holds {labels.dtype} of shape {labels.shape}."
        )
    objects = [_object_name(entry, paths[0]) for entry in entries.tolist()]
    inside = {synset: set(folders_in(root / synset)) for synset in folders_in(root)}
    missing = [name for name in objects if name.split("/")[1] not in inside.get(name.split("/")[0], ())]
    if missing:
        raise FileNotFoundError(
            f"{paths[0]} names {len(missing)} objects of {len(objects)} that are not in {root}, first {missing[0]}. "
            f"Unpack the archive completely, and pass the folder that holds the synsets as root."
        )
    return objects, torch.from_numpy(labels.astype("int64"))


def _object_name(entry: str | bytes, path: Path) -> str:
    """Synset and object, the last two parts of a path in any style; the released ones begin with a slash."""
    text = entry.decode() if isinstance(entry, bytes) else entry
    parts = [part for part in text.replace("\\", "/").split("/") if part]
    if len(parts) < 2 or ".." in parts or "." in parts[-2:]:
        raise ValueError(f"{path} should list objects as synset/object; it holds {text!r}.")
    return "/".join(parts[-2:])


def _walked(root: Path, split: str, val_share: float) -> tuple[list[str], Int[Tensor, "N"]]:
    """All objects in the folders; the validation set of a class are those whose names have the lowest hashes."""
    if not 0 < val_share < 1:
        raise ValueError(f"val_share must lie between 0 and 1; got {val_share}.")
    objects, labels = [], []
    synsets = [synset for synset in folders_in(root) if folders_in(root / synset)]
    for label, synset in enumerate(synsets):
        names = [f"{synset}/{name}" for name in folders_in(root / synset)]
        hashed = sorted(names, key=lambda name: hashlib.blake2b(name.encode()).digest())
        val = set(hashed[: round(val_share * len(names))])
        chosen = [name for name in names if (name in val) == (split == "val")]
        objects += chosen
        labels += [label] * len(chosen)
    if not objects:
        raise FileNotFoundError(
            f"{root} has no objects for the {split} split; folders synset/object with image_0.jpg and latent_0.npy "
            f"should be there, or index files. {WHERE}"
        )
    return objects, torch.tensor(labels, device="cpu")
