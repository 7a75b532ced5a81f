"""Augmented views, and the action between two settings of the augmentation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from seqjepa.data._augmentation import JITTER, Augmentation, AugmentationParameters, draw_parameters
from seqjepa.data._augmented import augmented
from seqjepa.data._images import check_images, check_num_views, spoil
from seqjepa.data._random import constant, for_each
from seqjepa.groups import Crop, Flip, Group, Hue, Product, Translation
from seqjepa.groups.base import all_true
from seqjepa.types import ViewSequence

__all__ = ["Augmentation", "AugmentationParameters", "AugmentedViews"]

PARTS = ("crop", "flip", "jitter", "hue", "blur")  # of an action


def _predicted() -> Augmentation:
    return Augmentation(blur=0.1, solarise=0.2)


@dataclass(frozen=True)
class AugmentedViews:
    """Random augmentations of images as views, and what changes from one to the next as the action.

    Crop and flip, colour jitter, grey, blur, solarise, in this order, with settings of its own for every view. The
    action holds the parts that `actions` names:

    - `"crop"`: where the next crop lies seen from this one, how much larger it is, and whether the mirror changes: a
      [`Crop`][seqjepa.groups.Crop], 5 numbers. With `frame="image"`, the paper's: differences of top, left, height and
      width, each over the image's side, 4 numbers.
    - `"flip"`: a [`Flip`][seqjepa.groups.Flip], 1 number; in the frame of the view the crop holds it already.
    - `"jitter"`: differences of the three factors, and of the hue, wrapped: 4 numbers. `"hue"`: the hue alone, 1.
    - `"blur"`: the difference of the standard deviations, 1 number.

    In the frame of the view an action means the same wherever the current crop lies, and can be read off the two
    views; a crop's place in the whole image cannot be known from the crop. The paper takes plain differences, 9 numbers
    by default. Two faults of the released code are not repeated: it normalises the parameters across the views of a
    sequence, so that an action depends on views not yet seen, and it does not wrap the hue.

    Args:
        num_views: V = T + 1, the observed views and the predicted one, at least 2.
        size: side of a view in pixels.
        observed: settings for the observed views.
        predicted: settings for the last view.
        actions: the parts that an action holds, in their order.
        frame: "view" or "image", of the crop's action.
        interpolation: "bicubic" or "bilinear", both antialiased.
        blur_kernel: taps of the blur, odd; None is the paper's, 2 · round((size − 10) / 20) + 1, at least 3: 3 at
            32 px, 7 at 64.

    Shapes:
        images (B, 3, H, W) in [0, 1] → views (B, V, 3, size, size) in [0, 1], actions (B, V − 1, A), float32,
        parameters [`AugmentationParameters`][seqjepa.data.AugmentationParameters]. Images of any channels where no
        jitter or grey is asked for.

    Raises:
        ValueError: fewer than two views; a size below 1; unknown or repeated parts; a crop larger than its image;
            images of another rank or number of channels, or that are not finite.
        TypeError: images that are not floating point.

    Values are read on the CPU alone; on other devices an image that is not finite, or far from [0, 1], gives NaN views.

    Source:
        Ghaemi et al. 2025 (arXiv 2505.03176), appendix. Interpolation and colours agree with torchvision's functional
        transforms on float images.

    Examples:
        >>> import torch
        >>> sampler = AugmentedViews.cifar(num_views=4)
        >>> generator = torch.Generator().manual_seed(0)
        >>> views, actions, parameters = sampler(torch.rand(8, 3, 32, 32), generator=generator)[:3]
        >>> views.shape, actions.shape
        (torch.Size([8, 4, 3, 32, 32]), torch.Size([8, 3, 10]))
        >>> sampler.group.describe(actions[0, 0])                                            # doctest: +ELLIPSIS
        'crop ... down, ... right, ...; jitter brightness ...; blur ...'
    """

    num_views: int = 4
    size: int = 32
    observed: Augmentation = field(default_factory=Augmentation)
    predicted: Augmentation = field(default_factory=_predicted)
    actions: Sequence[str] = ("crop", "jitter", "blur")
    frame: Literal["view", "image"] = "view"
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"
    blur_kernel: int | None = None

    def __post_init__(self) -> None:
        check_num_views(self.num_views)
        if self.size < 1:
            raise ValueError(f"size is the side of a view in pixels, at least 1; got {self.size}.")
        if self.frame not in ("view", "image"):
            raise ValueError(f"frame must be 'view' or 'image'; got {self.frame!r}.")
        if self.interpolation not in ("bicubic", "bilinear"):
            raise ValueError(f"interpolation must be 'bicubic' or 'bilinear'; got {self.interpolation!r}.")
        if self.blur_kernel is not None and not (self.blur_kernel % 2 == 1 and self.blur_kernel // 2 < self.size):
            raise ValueError(f"blur_kernel must be odd and reach less than a view's side; got {self.blur_kernel}.")
        object.__setattr__(self, "actions", tuple(self.actions))
        if not self.actions or set(self.actions) - set(PARTS):
            raise ValueError(
                f"actions names parts, at least one of {', '.join(map(repr, PARTS))}; got {self.actions!r}."
            )
        twice = {"crop", "flip"} <= set(self.actions) and self.frame == "view", {"jitter", "hue"} <= set(self.actions)
        if len(set(self.actions)) < len(self.actions) or any(twice):
            raise ValueError(
                f"A part can be named once: in the frame of the view a crop holds its flip, and jitter holds the hue; "
                f"got {self.actions!r}."
            )

    @classmethod
    def cifar(cls, num_views: int = 4, **settings: object) -> AugmentedViews:
        """The paper's settings for CIFAR-100, 32 px; other settings by keyword.

        Examples:
            >>> AugmentedViews.cifar(num_views=3, frame="image").group.dim
            9
        """
        return cls(num_views=num_views, **{"size": 32, **settings})  # type: ignore[arg-type]

    @classmethod
    def tiny_imagenet(cls, num_views: int = 4, **settings: object) -> AugmentedViews:
        """The paper's settings for Tiny-ImageNet, 64 px; other settings by keyword.

        Examples:
            >>> AugmentedViews.tiny_imagenet().size
            64
        """
        return cls(num_views=num_views, **{"size": 64, **settings})  # type: ignore[arg-type]

    @property
    def group(self) -> Product:
        """The group of the actions, by part."""
        groups: dict[str, Group] = {
            "crop": Crop() if self.frame == "view" else Translation(4),
            "flip": Flip(), "hue": Hue(), "blur": Translation(1),
            "jitter": Product({name: Hue() if name == "hue" else Translation(1) for name in JITTER}),
        }  # fmt: skip
        return Product({part: groups[part] for part in self.actions})

    def __call__(
        self, images: Float[Tensor, "B C H W"], *, generator: torch.Generator | None = None, shared: bool = False
    ) -> ViewSequence:
        """Draw settings for `num_views` views of each image, make the views, and say how they differ.

        Args:
            images: (B, C, H, W), in [0, 1].
            generator: on any device.
            shared: one draw of what `actions` names for all images: each goes through the same actions, the same
                whatever B is. What actions do not tell, such as grey, is drawn for each view.
        """
        images = check_images(images)
        if images.shape[1] != 3:
            self._check_grey()
        sides = images.shape[-2], images.shape[-1]
        parameters = self.draw(len(images), sides, generator=generator, device=images.device, shared=shared)
        actions = self.group.actions(self.elements(parameters))
        if shared:
            actions = for_each(len(images), actions[:1])
        return ViewSequence(self._render(images, parameters), actions, parameters, None, self.group)

    def draw(
        self,
        batch: int,
        sides: tuple[int, int],
        *,
        generator: torch.Generator | None = None,
        device: torch.device | str = "cpu",
        shared: bool = False,
    ) -> AugmentationParameters:
        """Random settings for the views of `batch` images of the given height and width.

        With `shared`, one draw of what `actions` names for all of them.
        """
        if shared:
            one = self.draw(1, sides, generator=generator, device=device)
            each = self.draw(batch, sides, generator=generator, device=device)
            return self._with_named(each, one)

        settings = [self.observed] * (self.num_views - 1) + [self.predicted]
        return draw_parameters(settings, batch, sides, generator=generator, device=device)

    def _with_named(self, each: AugmentationParameters, one: AugmentationParameters) -> AugmentationParameters:
        """The settings of each image, with those that `actions` names of the one."""
        rows, named = len(each.flip), set(self.actions)
        if "crop" in named and self.frame == "view":
            named.add("flip")  # which such a crop holds
        fields = {name: for_each(rows, getattr(one, name)) for name in named - {"hue"}}
        if "hue" in named:
            fields["jitter"] = torch.cat([each.jitter[..., :3], for_each(rows, one.jitter[..., 3:])], dim=-1)
        return each._replace(**fields)

    def elements(
        self, parameters: AugmentationParameters, sides: tuple[int, int] | None = None
    ) -> Float[Tensor, "B V A"]:
        """The parameters as elements of `group`: what its `actions`, `relative` and `distance` take.

        Args:
            parameters: settings of the views.
            sides: height and width of the images; None for those that the parameters hold.

        Raises:
            ValueError: sides that are neither given nor held.

        Examples:
            >>> import torch
            >>> sampler = AugmentedViews.cifar()
            >>> parameters = sampler.draw(8, (32, 32), generator=torch.Generator().manual_seed(0))
            >>> elements = sampler.elements(parameters)
            >>> sampler.group.relative(elements[:, 0], elements[:, -1]).shape     # from the first view to the last
            torch.Size([8, 10])
        """
        if sides is not None:
            views = parameters.crop.shape[:2]
            parameters = parameters._replace(sides=constant(sides, parameters.crop.device).expand(*views, 2))
        elements = parameters.elements(self.group)
        if elements is None:
            raise ValueError("A crop's place in its image needs the sides of the image; give sides=(H, W).")
        return elements

    def render(
        self, images: Float[Tensor, "B C H W"], parameters: AugmentationParameters
    ) -> Float[Tensor, "B V C h w"]:
        """The views that these parameters make of the images; draws nothing.

        Examples:
            >>> import torch
            >>> images, sampler = torch.rand(8, 3, 32, 32), AugmentedViews.cifar()
            >>> views, _, parameters = sampler(images)[:3]
            >>> torch.equal(sampler.render(images, parameters), views)
            True
        """
        images = check_images(images)
        inside = self._check_fit(images, parameters)
        views = self._render(images, parameters)
        return views if inside is None else spoil(views, inside)

    def _render(self, images: Tensor, parameters: AugmentationParameters) -> Tensor:
        bicubic = self.interpolation == "bicubic"
        return augmented(images, parameters, size=self.size, bicubic=bicubic, kernel=self._kernel)

    @property
    def _kernel(self) -> int:
        # The paper's formula gives one tap below 20 px, which blurs nothing: then three.
        return self.blur_kernel or max(3, 2 * round((self.size - 10) / 20) + 1)

    def _check_grey(self) -> None:
        """Raise where colour would be changed; for images of one channel."""
        if any(getattr(settings, name) for settings in (self.observed, self.predicted) for name in ("jitter", "grey")):
            raise ValueError(
                "Jitter and grey are for colour images, (B, 3, H, W). For images of other channels set jitter and grey "
                "to 0 in both Augmentations."
            )

    def _check_fit(self, images: Tensor, parameters: AugmentationParameters) -> Tensor | None:
        """Raise where a crop leaves its image; where that cannot be read, which views lie inside, (B, V)."""
        if images.shape[1] != 3:
            self._check_grey()
        top, left, height, width = parameters.crop.unbind(-1)
        h, w = images.shape[-2:]
        inside = (top >= 0) & (left >= 0) & (height >= 1) & (width >= 1) & (top + height <= h) & (left + width <= w)
        if len(parameters.crop) != len(images):
            raise ValueError(
                f"There must be one row of crops an image; got {len(parameters.crop)} rows for {len(images)} images. "
                "Draw the parameters for these images."
            )
        fits = all_true(inside)
        if fits is False:
            raise ValueError(
                f"Crops must lie inside their images; got some for {len(images)} images of {h} × {w} pixels, reaching "
                f"to row {(top + height).max():g} and column {(left + width).max():g}. Draw the parameters for these "
                "images."
            )
        return None if fits else inside
