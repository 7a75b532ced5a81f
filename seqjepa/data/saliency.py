"""Where to look: saliency maps from the spectral residual, and from files."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from seqjepa._checks import check_axes
from seqjepa.data._images import check_images, spoil
from seqjepa.groups.base import all_true

__all__ = ["check_saliency", "load_saliency", "spectral_residual"]

NOISE = 1e-6  # share of the spectrum's peak below which a frequency is rounding noise
FLOOR = 1e-8  # share of the map's peak that every pixel has at least, so that a blank image gets a uniform map


def spectral_residual(
    images: Float[Tensor, "B C H W"], *, size: int | None = 64, smoothing: float = 2.5
) -> Float[Tensor, "B H W"]:
    """Saliency without training: what is left of an image's spectrum when its smooth trend is taken away.

    ```
    A, P  amplitude and phase of the grey image's Fourier transform
    R   = log A − (mean of log A over 3 × 3 frequencies)
    map = Gaussian * |inverse transform of exp(R + iP)|², divided by its sum
    ```

    It finds small things that differ from their surroundings. It knows nothing of faces or text, as learnt models do:
    maps of those are better, and are handed over in its place.

    Args:
        images: (B, C, H, W), of any number of channels, any range of values: their mean is the grey image.
        size: the shorter side in pixels that larger images are shrunk to first, 64 in the source: small details count
            as texture. None keeps every pixel.
        smoothing: standard deviation of the Gaussian in pixels of the shrunk image.

    Returns:
        (B, H, W) maps, above 0, each of sum 1, float32 or wider. A blank image's is uniform.

    Raises:
        ValueError: images of another rank, empty or not finite; a size below 3; smoothing that is not above 0.
        TypeError: images that are not floating point.

    Source:
        Hou & Zhang 2007, Saliency Detection: A Spectral Residual Approach (CVPR), and its published code, whose
        smoothing this has. Departure: the mean over frequencies wraps around, as the spectrum does; theirs repeats the
        edge.

    Examples:
        >>> import torch
        >>> images = torch.full((1, 3, 96, 96), 0.2)
        >>> images[:, :, 60:66, 20:26] = 0.9
        >>> row, column = divmod(int(spectral_residual(images)[0].argmax()), 96)
        >>> 60 <= row < 66, 20 <= column < 26
        (True, True)
    """
    images = check_images(images, any_range=True)
    if size is not None and size < 3:
        raise ValueError(f"size must leave at least 3 pixels, the width of the local mean; got {size}.")
    if not smoothing > 0:
        raise ValueError(f"smoothing is a standard deviation in pixels, above 0; got {smoothing}.")
    height, width = images.shape[2:]
    grey = images.to(torch.promote_types(images.dtype, torch.float32)).mean(dim=1, keepdim=True)
    shrink = 1.0 if size is None else min(1.0, size / min(height, width))
    small = (max(1, round(height * shrink)), max(1, round(width * shrink)))
    if small != (height, width):
        grey = F.interpolate(grey, small, mode="bilinear", antialias=True, align_corners=False)
    spectrum = torch.fft.fft2(grey)
    amplitude = spectrum.abs()
    amplitude = amplitude + NOISE * amplitude.amax(dim=(2, 3), keepdim=True) + torch.finfo(amplitude.dtype).tiny
    log = amplitude.log()
    residual = log - F.avg_pool2d(F.pad(log, (1, 1, 1, 1), mode="circular"), 3, stride=1)
    maps = _smooth(torch.fft.ifft2(spectrum / amplitude * residual.exp()).abs().square(), smoothing)
    if small != (height, width):
        maps = F.interpolate(maps, (height, width), mode="bilinear", align_corners=False)
    peak = maps.amax(dim=(2, 3), keepdim=True)
    maps = maps / peak.masked_fill(peak <= 0, 1) + FLOOR
    return (maps / maps.sum(dim=(2, 3), keepdim=True)).squeeze(1)


def _smooth(maps: Float[Tensor, "B 1 h w"], sigma: float) -> Float[Tensor, "B 1 h w"]:
    """Convolve with a Gaussian cut off at four deviations; the border is repeated."""
    radius = math.ceil(4 * sigma)
    kernel = torch.arange(-radius, radius + 1, dtype=maps.dtype, device=maps.device).div(sigma).square().mul(-0.5).exp()
    kernel = (kernel / kernel.sum()).view(1, 1, 1, -1)
    maps = F.conv2d(F.pad(maps, (radius, radius, 0, 0), mode="replicate"), kernel)
    return F.conv2d(F.pad(maps, (0, 0, radius, radius), mode="replicate"), kernel.transpose(2, 3))


def load_saliency(path: str | Path, *, key: str | None = None) -> Float[Tensor, "N H W"]:
    """Read precomputed maps from a file: `.npy`, `.pt` or `.pth`, `.safetensors`. Nothing in it is executed.

    Args:
        path: the file. One map (H, W), or N of them, (N, H, W) or (N, 1, H, W), of any type of number.
        key: the name of the tensor, where the file holds several.

    Returns:
        (N, H, W) maps, float32, on the CPU: finite, at least 0, none of them all 0.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: another kind of file, one that cannot be read without pickle, several tensors and no key, another
            shape, or values that are no weights, such as log-densities.

    Examples:
        >>> import tempfile, torch
        >>> path = tempfile.mkdtemp() + "/maps.pt"
        >>> torch.save(spectral_residual(torch.rand(10, 3, 32, 32)), path)
        >>> load_saliency(path).shape
        torch.Size([10, 32, 32])
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"There is no file of saliency maps at {path}.")
    content = _read(path)
    if isinstance(content, dict):
        if key is None and len(content) != 1:
            raise ValueError(
                f"{path} holds {len(content)} entries; name one: key=… of {', '.join(map(repr, content))}."
            )
        if key is not None and key not in content:
            raise ValueError(f"{path} has no entry {key!r}; it holds {', '.join(map(repr, content)) or 'nothing'}.")
        content = next(iter(content.values())) if key is None else content[key]
    if not isinstance(content, Tensor):
        raise ValueError(f"{path} must hold a tensor of maps; got {type(content).__name__}.")
    shape = tuple(content.shape)
    maps = content.float()
    if maps.ndim == 4 and maps.shape[1] == 1:
        maps = maps[:, 0]
    elif maps.ndim == 2:
        maps = maps[None]
    if maps.ndim != 3 or 0 in maps.shape:
        raise ValueError(f"{path} must hold maps of shape (N, H, W), (N, 1, H, W) or (H, W); got {shape}.")
    return _check_weights(maps)


def _read(path: Path) -> Any:
    ending = path.suffix.lower()
    try:
        if ending == ".npy":
            import numpy as np

            return torch.from_numpy(np.load(path, allow_pickle=False))
        if ending in (".pt", ".pth"):
            return torch.load(path, map_location="cpu", weights_only=True)
        if ending == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
    except Exception as error:  # each format fails in its own ways
        raise ValueError(f"{path} cannot be read as a file of tensors: {error}") from error
    raise ValueError(f"Saliency maps are read from .npy, .pt, .pth and .safetensors; got {path}.")


def check_saliency(saliency: Tensor, images: Tensor) -> Tensor:
    """The maps, if there is one for each image, of its size, finite, at least 0, and not all 0; else raise.

    On other devices than the CPU a map whose values break the rule comes back as NaN.
    """
    check_axes("saliency", saliency, "B H W")
    expected = (len(images), *images.shape[2:])
    if saliency.shape != expected:
        raise ValueError(
            f"Saliency must have one map for each image and of its size, {expected}; got {tuple(saliency.shape)}. "
            f"Resize maps with F.interpolate(saliency[:, None], size={expected[1:]}, mode='bilinear')[:, 0]."
        )
    if saliency.device != images.device:
        raise ValueError(
            f"Saliency must lie where the images do, on {images.device}; got {saliency.device}. "
            f"Move one of them: saliency.to({str(images.device)!r})."
        )
    return _check_weights(saliency)


def _check_weights(maps: Float[Tensor, "B H W"]) -> Float[Tensor, "B H W"]:
    low, high = maps.flatten(1).amin(dim=1), maps.flatten(1).amax(dim=1)  # ten times faster than aminmax
    good = (low >= 0) & (high > 0) & (high < torch.inf)  # NaN fails every comparison
    sound = all_true(good)
    if sound is not False:
        return maps if sound else spoil(maps, good)
    row = int((~good).nonzero()[0])
    least, most = low[row].item(), high[row].item()
    if not math.isfinite(least) or not math.isfinite(most):
        what, way = "holds NaN or infinity", "Look at what made it; log-densities want saliency.exp()"
    elif least < 0:
        what, way = f"goes down to {least:.4g}", "Log-densities want saliency.exp(), other maps clamp(min=0)"
    else:
        what, way = "is 0 everywhere", "Give it some weight, or leave saliency out for uniform fixations"
    raise ValueError(f"Saliency is a weight: finite, at least 0, and not all 0; the map of row {row} {what}. {way}.")
