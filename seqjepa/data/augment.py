"""Augmented views, and the action between two settings of the augmentation."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from seqjepa.data._colour import grey, jitter, solarise
from seqjepa.data._images import check_images, check_num_views, spoil
from seqjepa.data._random import constant, for_each, uniform
from seqjepa.data._resample import blur_matrix, resize_matrix, separable
from seqjepa.groups import Crop, Flip, Group, Hue, Product, Translation
from seqjepa.groups.base import all_true, readable
from seqjepa.types import ViewSequence

__all__ = ["Augmentation", "AugmentationParameters", "AugmentedViews"]

PARTS = ("crop", "flip", "jitter", "hue", "blur")  # of an action
JITTER = {"brightness": Translation(1), "contrast": Translation(1), "saturation": Translation(1), "hue": Hue()}
# Numbers of an image batch at a time: on a CPU its temporaries should stay in the cache, on a GPU fill it.
CHUNK = {"cpu": 2**18, "cuda": 2**26}
ATTEMPTS = 10  # to draw a crop that fits, as in torchvision


@dataclass(frozen=True)
class Augmentation:
    """How strongly to augment: ranges and probabilities. The defaults are the paper's for 32 and 64 px.

    Attributes:
        crop_area: (lowest, highest) share of the image's area in a crop, in (0, 1].
        crop_ratio: (lowest, highest) width over height of a crop, above 0.
        flip: probability of a mirror image, left to right.
        jitter: probability of colour jitter.
        brightness, contrast, saturation: factors are drawn from [1 − s, 1 + s], and at least 0; s is at least 0.
        hue: turns are drawn from [−hue, hue], at most ½.
        grey: probability of a grey image.
        blur: probability of a Gaussian blur.
        blur_sigma: (lowest, highest) standard deviation of the blur, in pixels of the view, above 0.
        solarise: probability of inverting the brighter half of the range.

    Raises:
        ValueError: a probability outside [0, 1], a range upside down or outside its limits.

    Source:
        Ghaemi et al. 2025 (arXiv 2505.03176), appendix; the recipe is that of Grill et al. 2020 (arXiv 2006.07733).

    Examples:
        >>> Augmentation(jitter=0.0, flip=0.0).grey
        0.2
    """

    crop_area: tuple[float, float] = (0.2, 1.0)
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: float = 0.5
    jitter: float = 0.8
    brightness: float = 0.4
    contrast: float = 0.4
    saturation: float = 0.2
    hue: float = 0.1
    grey: float = 0.2
    blur: float = 1.0
    blur_sigma: tuple[float, float] = (0.1, 2.0)
    solarise: float = 0.0

    def __post_init__(self) -> None:
        for name in ("flip", "jitter", "grey", "blur", "solarise"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is a probability, from 0 to 1; got {getattr(self, name)}.")
        for name in ("brightness", "contrast", "saturation"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} is a strength of at least 0; got {getattr(self, name)}.")
        if not 0 <= self.hue <= 0.5:
            raise ValueError(f"hue is in turns, from 0 to ½, which is all hues; got {self.hue}.")
        for name, most in (("crop_area", 1.0), ("crop_ratio", math.inf), ("blur_sigma", math.inf)):
            low, high = getattr(self, name)
            if not (0 < low <= high <= most and high < math.inf):
                limit = f"at most {most:g}" if most < math.inf else "finite"
                raise ValueError(f"{name} is (lowest, highest), above 0 and {limit}; got {(low, high)}.")


class AugmentationParameters(NamedTuple):
    """What was done to each view: the absolute parameters t_i.

    Attributes:
        crop: (B, V, 4) top, left, height, width of the crop, in whole pixels of the image.
        flip: (B, V) 1 where the view is mirrored left to right.
        jitter: (B, V, 4) factors of brightness, contrast, saturation, and the turn of the hue; 1, 1, 1, 0 for none.
        order: (B, V, 4) the order of the four, as indices into `jitter`.
        grey: (B, V) 1 where the view is grey.
        blur: (B, V) standard deviation of the blur in pixels of the view; 0 for none.
        solarise: (B, V) 1 where the view is solarised.
        sides: (B, V, 2) height and width of the image in pixels; None where they are not known.

    Examples:
        >>> import torch
        >>> parameters = AugmentedViews.cifar().draw(8, (32, 32), generator=torch.Generator().manual_seed(0))
        >>> top, left, height, width = parameters.crop.unbind(-1)
        >>> bool((left + width <= 32).all()), bool((width >= 1).all())
        (True, True)
    """

    crop: Float[Tensor, "B V 4"]
    flip: Float[Tensor, "B V"]
    jitter: Float[Tensor, "B V 4"]
    order: Int[Tensor, "B V 4"]
    grey: Float[Tensor, "B V"]
    blur: Float[Tensor, "B V"]
    solarise: Float[Tensor, "B V"]
    sides: Any = None  # Float[Tensor, "B V 2"] | None

    def elements(self, group: Product) -> Float[Tensor, "B V A"] | None:
        """The parameters as elements of the group of a sampler's actions: `group.actions` of them are the actions.

        Args:
            group: of the parts that a sampler's `actions` names. Its crop is a [`Crop`][seqjepa.groups.Crop], or a
                `Translation(4)` of top, left, height and width over the sides.

        Returns:
            (B, V, A), or None where the sides of the images are not known, or the group has other parts.

        Examples:
            >>> import torch
            >>> batch = AugmentedViews.cifar(frame="image")(torch.rand(8, 3, 32, 32))
            >>> torch.equal(batch.group.actions(batch.parameters.elements(batch.group)), batch.actions)
            True
        """
        groups = getattr(group, "groups", {})
        flip = self.flip[..., None]
        parts = {"flip": flip, "jitter": self.jitter, "hue": self.jitter[..., 3:], "blur": self.blur[..., None]}
        if self.sides is not None:
            crop = self.crop / torch.cat([self.sides, self.sides], dim=-1)
            centred = torch.cat([crop[..., :2] + crop[..., 2:] / 2, crop[..., 2:], flip], dim=-1)
            parts["crop"] = centred if isinstance(groups.get("crop"), Crop) else crop
        if not groups or any(name not in parts or parts[name].shape[-1] != groups[name].dim for name in groups):
            return None
        return group.join({name: parts[name] for name in groups})


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
            "flip": Flip(), "jitter": Product(JITTER), "hue": Hue(), "blur": Translation(1),
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

        def draws(*shape: int) -> Tensor:
            return uniform((batch, self.num_views, *shape), generator=generator, device=device)

        def setting(name: str) -> Tensor:  # (V, …): the same for all views but the last
            values = [getattr(self.observed, name)] * (self.num_views - 1) + [getattr(self.predicted, name)]
            return constant(values, device)

        crop = self._draw_crops(draws(ATTEMPTS, 4), sides, setting("crop_area"), setting("crop_ratio"))
        strength = torch.stack([setting(name) for name in JITTER], dim=-1)  # (V, 4)
        neutral = constant([1.0, 1.0, 1.0, 0.0], device)
        low = torch.maximum(neutral - strength, constant([0.0, 0.0, 0.0, -0.5], device))
        factors = low + (neutral + strength - low) * draws(4)
        jittered = (draws() < setting("jitter"))[..., None]
        sigma_low, sigma_high = setting("blur_sigma").unbind(-1)
        sigma = sigma_low + (sigma_high - sigma_low) * draws()
        return AugmentationParameters(
            crop=crop,
            flip=(draws() < setting("flip")).float(),
            jitter=torch.where(jittered, factors, neutral),
            order=draws(4).argsort(dim=-1),
            grey=(draws() < setting("grey")).float(),
            blur=sigma.masked_fill(draws() >= setting("blur"), 0.0),
            solarise=(draws() < setting("solarise")).float(),
            sides=constant(sides, device).expand(batch, self.num_views, 2),
        )

    def _with_named(self, each: AugmentationParameters, one: AugmentationParameters) -> AugmentationParameters:
        """The settings of each image, with those that `actions` names of the one."""
        rows, named = len(each.flip), set(self.actions)
        if "crop" in named and self.frame == "view":
            named.add("flip")  # which such a crop holds
        fields = {name: for_each(rows, getattr(one, name)) for name in named - {"hue"}}
        if "hue" in named:
            fields["jitter"] = torch.cat([each.jitter[..., :3], for_each(rows, one.jitter[..., 3:])], dim=-1)
        return each._replace(**fields)

    @staticmethod
    def _draw_crops(draws: Tensor, sides: tuple[int, int], area: Tensor, ratio: Tensor) -> Tensor:
        """Top, left, height, width (B, V, 4) of the first attempt that fits; failing all, the middle of the image.

        A side is a pixel at least.
        """
        height, width = sides
        low, high = area.unbind(-1)
        target = height * width * (low[:, None] + (high - low)[:, None] * draws[..., 0])
        log_low, log_high = ratio.log().unbind(-1)
        aspect = torch.exp(log_low[:, None] + (log_high - log_low)[:, None] * draws[..., 1])
        w, h = (target * aspect).sqrt().round().clamp(min=1), (target / aspect).sqrt().round().clamp(min=1)
        fits = (w <= width) & (h <= height)
        top, left = (draws[..., 2] * (height - h + 1)).floor(), (draws[..., 3] * (width - w + 1)).floor()
        first = fits.to(torch.uint8).argmax(dim=-1)
        crop = torch.take_along_dim(torch.stack([top, left, h, w], dim=-1), first[..., None, None], dim=2).squeeze(2)
        # The largest crop of an allowed aspect ratio, where none of the attempts fits.
        nearest = torch.clamp(torch.full_like(ratio[:, 0], width / height), ratio[:, 0], ratio[:, 1])
        h = torch.clamp(width / nearest, max=height).round().clamp(min=1)
        w = torch.clamp(height * nearest, max=width).round().clamp(min=1)
        middle = torch.stack([((height - h) / 2).floor(), ((width - w) / 2).floor(), h, w], dim=-1)
        return torch.where(fits.any(dim=-1)[..., None], crop, middle)

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
        """A part of the batch at a time, so that what is between the steps stays near the processor."""
        views = images.new_empty(len(images), parameters.crop.shape[1], images.shape[1], self.size, self.size)
        per_image = max(images[0].numel(), views[0].numel())
        chunk = max(1, CHUNK.get(images.device.type, CHUNK["cuda"]) // per_image)
        for start in range(0, len(images), chunk):
            rows = slice(start, start + chunk)
            fields: Any = (None if field is None else field[rows] for field in parameters)
            part = AugmentationParameters(*fields)
            views[rows] = self._render_chunk(images[rows], part)
        return views

    def _render_chunk(self, images: Tensor, parameters: AugmentationParameters) -> Tensor:
        top, left, height, width = parameters.crop.flatten(0, 1).unbind(-1)
        bicubic = self.interpolation == "bicubic"
        rows = resize_matrix(top, height, source=images.shape[-2], size=self.size, bicubic=bicubic)
        columns = resize_matrix(left, width, source=images.shape[-1], size=self.size, bicubic=bicubic)
        mirrored = parameters.flip.flatten().bool()[:, None, None]
        columns = torch.where(mirrored, columns.flip(1), columns)
        shape = parameters.flip.shape
        views = separable(
            images.unsqueeze(1), rows.to(images.dtype).unflatten(0, shape), columns.to(images.dtype).unflatten(0, shape)
        )
        x = views.flatten(0, 1).clamp_(0, 1)  # cubic interpolation overshoots
        if images.shape[1] == 3:
            x = jitter(x, parameters.jitter.flatten(0, 1).to(x.dtype), parameters.order.flatten(0, 1))
            x = _where(parameters.grey, x, lambda part, _: grey(part).clamp_(0, 1).expand(-1, 3, -1, -1))
        x = _where(parameters.blur, x, self._blur)
        x = _where(parameters.solarise, x, lambda part, _: solarise(part))
        return x.unflatten(0, shape)

    def _blur(self, images: Tensor, sigma: Tensor) -> Tensor:
        blur = blur_matrix(sigma, size=self.size, kernel=self._kernel).to(images.dtype)
        return separable(images, blur, blur).clamp_(0, 1)  # weights sum to 1 but for rounding

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


def _where(
    strength: Float[Tensor, "B V"], images: Float[Tensor, "N C H W"], change: Callable[[Tensor, Tensor], Tensor]
) -> Float[Tensor, "N C H W"]:
    """The images, changed where the strength is not 0: those alone on a CPU, where that can be read; elsewhere all."""
    strength = strength.flatten()
    if not readable(images):
        return torch.where((strength != 0)[:, None, None, None], change(images, strength), images)
    chosen = strength.nonzero().squeeze(1)
    if len(chosen):
        images[chosen] = change(images[chosen], strength[chosen])
    return images
