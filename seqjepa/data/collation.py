"""From the items of a dataset, in whatever form, to one batch of tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, cast

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from seqjepa.types import ViewSequence, map_tensors, stack, stack_numbers, stack_sequences

__all__ = ["ImageBatch", "Sample", "collate", "collate_named", "image_tensor"]

PLAIN = (tuple, list)  # quicker to ask for than tuple | list, which is made anew each time


class Sample(NamedTuple):
    """One item of a dataset of images.

    Attributes:
        image: (C, H, W) tensor, uint8 or floating point in [0, 1]; or a PIL image.
        label: its class, a number or a tensor; None where it is not known.
        saliency: (H, W) how much each pixel draws the eye, at least 0, in any unit; None where it is not known.

    Examples:
        >>> import torch
        >>> picture = torch.zeros(3, 8, 8, dtype=torch.uint8)
        >>> collate([Sample(picture, label=4), Sample(picture, label=7)]).labels
        tensor([4, 7])
    """

    image: Any
    label: Any = None
    saliency: Tensor | None = None


class ImageBatch(NamedTuple):
    """A batch of images, as [`collate`][seqjepa.data.collate] stacks it.

    Attributes:
        images: (B, C, H, W), uint8 or floating point.
        labels: (B, …), or None.
        saliency: (B, H, W) float32, or None.

    Examples:
        >>> import torch
        >>> images, labels, saliency = collate([torch.zeros(3, 8, 8, dtype=torch.uint8)] * 2)
        >>> images.shape, labels
        (torch.Size([2, 3, 8, 8]), None)
    """

    images: Shaped[Tensor, "B C H W"]
    labels: Tensor | None = None
    saliency: Float[Tensor, "B H W"] | None = None

    def to(self, device: torch.device | str | int, *, non_blocking: bool = False) -> ImageBatch:
        """The same batch on a device."""
        return cast(ImageBatch, map_tensors(lambda part: part.to(device, non_blocking=non_blocking), self))


def collate(items: Sequence[Any]) -> ImageBatch | ViewSequence:
    """Stack the items of a dataset: the `collate_fn` of a DataLoader of your own.

    An item may be an image; a pair (image, label); a triple (image, label, saliency), such as a
    [`Sample`][seqjepa.data.Sample]; a mapping with the keys `image`, `label`, `saliency`; or a
    [`ViewSequence`][seqjepa.types.ViewSequence] of one source, without the batch axis. An image is a tensor (C, H, W),
    uint8 or floating point in [0, 1], or a PIL image, which becomes uint8 in RGB, or grey where it is grey. The images
    of a batch have one size.

    Args:
        items: at least one, all of one kind.

    Returns:
        An [`ImageBatch`][seqjepa.data.ImageBatch], images in the items' dtype; or a ViewSequence.

    Raises:
        ValueError: images, saliency maps or views of different sizes; a saliency map of another size than its image;
            floating-point images outside [0, 1] or not finite; labels here and none there; view sequences of a single
            view.
        TypeError: items of an unknown kind; labels that are not numbers.

    Examples:
        >>> import torch
        >>> batch = collate([(torch.zeros(3, 8, 8, dtype=torch.uint8), 4), (torch.ones(3, 8, 8, dtype=torch.uint8), 7)])
        >>> batch.images.shape, batch.labels
        (torch.Size([2, 3, 8, 8]), tensor([4, 7]))
    """
    return collate_named(items, [f"item {i} of the batch" for i in range(len(items))])


def collate_named(items: Sequence[Any], names: Sequence[str]) -> ImageBatch | ViewSequence:
    """`collate`, with what to call each item in an error."""
    if not items:
        raise ValueError("A batch needs at least one item; got none.")
    if any(isinstance(item, ViewSequence) for item in items):
        return stack_sequences(items, names)
    samples = [as_sample(item, name) for item, name in zip(items, names, strict=True)]
    images = [image_tensor(sample.image, name) for sample, name in zip(samples, names, strict=True)]
    _check_same_size(images, names)
    stacked = torch.stack(images)
    if stacked.is_floating_point():
        stacked = _unit_range(stacked, names)
    maps = [
        None if sample.saliency is None else _saliency_map(sample.saliency, image, name)
        for sample, image, name in zip(samples, images, names, strict=True)
    ]
    labels = stack_numbers([sample.label for sample in samples], "label", names)
    return ImageBatch(stacked, labels, stack(maps, "saliency map", names))


def as_sample(item: Any, name: str) -> Sample:
    """What an item holds, whatever its form."""
    if isinstance(item, Sample):
        return item
    if isinstance(item, PLAIN):  # the common and quick question first
        if not 1 <= len(item) <= len(Sample._fields):
            raise TypeError(
                f"An item is an image, (image, label) or (image, label, saliency); {name} is a {type(item).__name__} "
                f"of {len(item)}. Wrap the dataset so that it yields seqjepa.data.Sample(image, label, saliency)."
            )
        return Sample(*item)
    if isinstance(item, Mapping):
        if "image" not in item or item.keys() - set(Sample._fields):
            raise TypeError(
                f"A mapping holds the keys image, label and saliency (only image is needed); {name} has "
                f"{', '.join(map(repr, item))}. Rename or remove columns."
            )
        return Sample(**item)
    return Sample(item)


def image_tensor(image: Any, name: str = "The image") -> Shaped[Tensor, "C H W"]:
    """A tensor (C, H, W) as it is; a PIL image as uint8."""
    if isinstance(image, Tensor):
        if image.ndim != 3 or not image.numel():
            way = "Views with the actions between them are a seqjepa.types.ViewSequence: yield that, without a sampler."
            raise ValueError(
                f"An image tensor has the axes (C, H, W); {name} has shape {tuple(image.shape)}."
                f"{f' {way}' if image.ndim == 4 else ''}"
            )
        if image.dtype != torch.uint8 and not image.is_floating_point():
            raise TypeError(
                f"An image tensor is uint8, or floating point in [0, 1]; {name} is {image.dtype}. Divide it in the "
                "dataset's transform by the largest value it can have: image / 65535 for 16 bits."
            )
        return image
    if not (hasattr(image, "tobytes") and hasattr(image, "mode")):  # a PIL image, without importing PIL
        raise TypeError(
            f"An image is a tensor (C, H, W) or a PIL image; {name} is of type {type(image).__name__}. "
            "Convert an array (H, W, C) with torch.from_numpy(array).permute(2, 0, 1)."
        )
    if image.mode in ("I", "F") or image.mode.startswith("I;"):
        raise TypeError(
            f"A PIL image has 8 bits a channel; {name} has mode {image.mode!r}. Convert it to a tensor in [0, 1] in "
            "the dataset's transform."
        )
    grey = image.mode in ("L", "1")
    image = image.convert("L") if grey else rgb_image(image)
    width, height = image.size
    if width * height == 0:
        raise ValueError(f"An image has at least one pixel; {name} is {height} × {width}.")
    pixels = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
    return pixels.view(height, width, 1 if grey else 3).permute(2, 0, 1)


def rgb_image(image: Any) -> Any:
    """A PIL image of 8 bits as RGB. Transparency is left out: a pixel has the colour that is stored under it."""
    if image.mode == "RGB":
        return image  # convert would copy
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # from a palette straight to RGB, Pillow warns
    return image.convert("RGB")


def _check_same_size(images: Sequence[Tensor], names: Sequence[str]) -> None:
    shape, dtype = images[0].shape, images[0].dtype
    for image, name in zip(images, names, strict=True):
        if image.shape != shape:
            raise ValueError(
                f"The images of a batch have one size (C, H, W); {names[0]} has {tuple(shape)}, {name} has "
                f"{tuple(image.shape)}. Give the dataset a transform that makes them equal, such as Resize((96, 96)) "
                "or RandomResizedCrop(96), and convert('RGB') where some are grey. Resize(96) alone keeps each "
                "image's own aspect ratio: CenterCrop(96) must follow it."
            )
        if image.dtype != dtype:
            raise TypeError(f"The images of a batch have one dtype; {names[0]} is {dtype}, {name} is {image.dtype}.")


def _unit_range(images: Tensor, names: Sequence[str]) -> Tensor:
    """Refuse normalised images and NaN; cut off what a bicubic resize leaves just outside [0, 1]."""
    low, high = images.flatten(1).amin(dim=1), images.flatten(1).amax(dim=1)  # faster than aminmax
    good = (low >= -0.25) & (high <= 1.25)  # also False of NaN
    if not bool(good.all()):
        k = int((~good).nonzero()[0])
        raise ValueError(
            f"Floating-point images are in [0, 1]; {names[k]} goes from {low[k].item():.4g} to {high[k].item():.4g}. "
            "Leave Normalize out of the dataset's transform and normalise the views instead, divide by 255 what goes "
            "that far, and look for NaN in the file if there is one."
        )
    return images.clamp(0, 1)


def _saliency_map(saliency: Any, image: Tensor, name: str) -> Float[Tensor, "H W"]:
    saliency = torch.as_tensor(saliency, device=image.device)
    if saliency.ndim == 3 and saliency.shape[0] == 1:
        saliency = saliency[0]
    if saliency.shape != image.shape[1:]:
        raise ValueError(
            f"A saliency map has the size (H, W) of its image, {tuple(image.shape[1:])}; that of {name} has shape "
            f"{tuple(saliency.shape)}. Crop and resize both together, as the readers do."
        )
    return saliency.float()
