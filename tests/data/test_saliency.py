"""Saliency: the spectral residual against scipy's tools, and maps from files."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from scipy import ndimage

from seqjepa.data.saccades import SaccadeViews
from seqjepa.data.saliency import load_saliency, spectral_residual


def reference(image: np.ndarray, smoothing: float) -> np.ndarray:
    """Hou & Zhang's steps on one image (C, h, w), in numpy and scipy, with the mean over frequencies wrapped around."""
    spectrum = np.fft.fft2(image.mean(axis=0))
    log = np.log(np.abs(spectrum))
    residual = log - ndimage.uniform_filter(log, size=3, mode="wrap")
    energy = np.abs(np.fft.ifft2(np.exp(residual + 1j * np.angle(spectrum)))) ** 2
    smooth = ndimage.gaussian_filter(energy, smoothing, mode="nearest", truncate=4)
    return smooth / smooth.sum()


@pytest.mark.parametrize("smoothing", [1.0, 2.5, 4.0])
@pytest.mark.parametrize("shape", [(3, 64, 64), (1, 40, 57), (4, 33, 20)])
def test_the_map_is_hou_and_zhang_s(shape: tuple[int, int, int], smoothing: float) -> None:
    images = torch.rand(2, *shape, dtype=torch.float64) ** 2
    images[:, :, 10:15, 8:12] += 2
    maps = spectral_residual(images, size=None, smoothing=smoothing)
    for image, got in zip(images, maps, strict=True):
        expected = reference(image.numpy(), smoothing)
        np.testing.assert_allclose(got.numpy(), expected, rtol=1e-3, atol=1e-9)


@given(st.integers(1, 3), st.integers(1, 4), st.integers(1, 70), st.integers(1, 70))
def test_maps_are_weights_of_sum_one_for_images_of_any_shape(b: int, c: int, h: int, w: int) -> None:
    maps = spectral_residual(torch.rand(b, c, h, w), size=16)
    assert maps.shape == (b, h, w)
    assert maps.dtype == torch.float32
    assert (maps > 0).all()
    torch.testing.assert_close(maps.sum(dim=(1, 2)), torch.ones(b))


@pytest.mark.parametrize("level", [0.0, 1e-20, 0.3, 1.0])
@pytest.mark.parametrize("size", [None, 20])
def test_a_blank_image_is_salient_nowhere(level: float, size: int | None) -> None:
    maps = spectral_residual(torch.full((1, 3, 30, 50), level), size=size)
    torch.testing.assert_close(maps, torch.full((1, 30, 50), 1 / 1500), rtol=1e-3, atol=0)


@pytest.mark.parametrize(("row", "column"), [(20, 60), (60, 20), (48, 80)])
@pytest.mark.parametrize("size", [None, 64, 32])
def test_the_odd_one_out_is_the_most_salient(row: int, column: int, size: int | None) -> None:
    stripes = (torch.arange(128) // 4 % 2 * 0.4 + 0.2).expand(1, 3, 96, 128).clone()
    stripes[:, :, row - 4 : row + 4, column - 4 : column + 4] = (
        1 - stripes[:, :, row - 4 : row + 4, column - 4 : column + 4]
    )
    stripes[:, 0, row - 4 : row + 4, column - 4 : column + 4] = 0.9
    found = divmod(int(spectral_residual(stripes, size=size)[0].argmax()), 128)
    assert abs(found[0] - row) <= 6
    assert abs(found[1] - column) <= 6


def test_large_images_are_shrunk_without_aliasing_and_their_maps_stretched() -> None:
    images = torch.rand(2, 3, 64, 96)
    small = F.interpolate(images, (32, 48), mode="bilinear", antialias=True, align_corners=False)
    maps = F.interpolate(spectral_residual(small, size=None)[:, None], (64, 96), mode="bilinear", align_corners=False)
    expected = (maps / maps.sum(dim=(2, 3), keepdim=True))[:, 0]
    torch.testing.assert_close(spectral_residual(images, size=32), expected, rtol=1e-4, atol=1e-9)


@pytest.mark.parametrize("factor", [1e-4, 1e3])
def test_brightness_of_the_whole_scales_out(factor: float) -> None:
    images = torch.rand(2, 3, 40, 40, dtype=torch.float64)
    torch.testing.assert_close(spectral_residual(factor * images), spectral_residual(images))


def test_images_of_a_batch_do_not_mix() -> None:
    images = torch.rand(4, 3, 80, 70)
    alone = torch.cat([spectral_residual(image[None]) for image in images])
    torch.testing.assert_close(spectral_residual(images), alone)


def test_mirrored_images_have_mirrored_maps() -> None:
    images = torch.rand(2, 1, 48, 36, dtype=torch.float64)
    for size in (None, 24):
        maps = spectral_residual(images, size=size)
        torch.testing.assert_close(spectral_residual(images.flip(3), size=size), maps.flip(2))
        torch.testing.assert_close(spectral_residual(images.transpose(2, 3), size=size), maps.transpose(1, 2))


def test_half_precision_is_computed_in_float32() -> None:
    images = torch.rand(1, 3, 64, 64).half()
    torch.testing.assert_close(spectral_residual(images), spectral_residual(images.float()))


def test_saccades_take_the_maps_as_they_are() -> None:
    images = torch.full((1, 3, 96, 96), 0.4)
    images[:, :, 30:36, 58:64] = 0.9
    images = images.expand(1000, -1, -1, -1)
    sampler, generator = SaccadeViews(num_views=2, fovea=16), torch.Generator().manual_seed(0)
    share = []
    for maps in (spectral_residual(images), None):
        first = sampler.fixate(images, saliency=maps, generator=generator)[:, 0]
        share.append(((first - torch.tensor([32, 60])).abs().amax(dim=1) < 12).float().mean().item())
    assert share[0] > 3 * share[1]


@pytest.mark.parametrize(("settings", "message"), [
    ({"size": 2}, "at least 3 pixels, the width of the local mean; got 2"),
    ({"smoothing": 0}, "standard deviation in pixels, above 0; got 0"),
])  # fmt: skip
def test_settings_that_make_no_sense_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        spectral_residual(torch.rand(1, 3, 8, 8), **settings)


def test_images_without_a_spectrum_are_refused() -> None:
    with pytest.raises(ValueError, match=r"images must have the axes \(B, C, H, W\)"):
        spectral_residual(torch.rand(3, 8, 8))
    with pytest.raises(ValueError, match="Images must be finite"):
        spectral_residual(torch.full((1, 3, 8, 8), torch.nan))


# ── Files ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def write(path: Path, maps: torch.Tensor) -> Path:
    if path.suffix == ".npy":
        np.save(path, maps.numpy())
    elif path.suffix == ".safetensors":
        save_file({"maps": maps}, path)
    else:
        torch.save(maps, path)
    return path


@pytest.mark.parametrize("suffix", [".npy", ".pt", ".pth", ".safetensors"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.uint8])
def test_a_file_gives_back_its_maps(tmp_path: Path, suffix: str, dtype: torch.dtype) -> None:
    maps = (torch.rand(5, 12, 8) * 200 + 1).to(dtype)
    for stored in (maps, maps[:, None], maps[0]):
        loaded = load_saliency(str(write(tmp_path / f"maps{suffix}", stored.contiguous())))
        assert loaded.dtype == torch.float32
        assert torch.equal(loaded, maps.float()[: len(loaded)])
        assert len(loaded) == (1 if stored.ndim == 2 else 5)


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_a_tensor_is_chosen_by_name_where_there_are_several(tmp_path: Path, suffix: str) -> None:
    path, tensors = tmp_path / f"maps{suffix}", {"train": torch.rand(3, 4, 5) + 1, "val": torch.rand(2, 4, 5) + 1}
    torch.save(tensors, path) if suffix == ".pt" else save_file(tensors, path)
    assert torch.equal(load_saliency(path, key="val"), tensors["val"])
    with pytest.raises(ValueError, match=r"holds 2 entries; name one: key=… of 'train', 'val'"):
        load_saliency(path)
    with pytest.raises(ValueError, match=r"has no entry 'test'; it holds 'train', 'val'"):
        load_saliency(path, key="test")


def test_files_that_hold_no_maps_are_refused(tmp_path: Path) -> None:
    good = torch.rand(3, 4, 5) + 1
    holed, negative = good.clone(), good.log() - 3
    holed[1, 0, 0] = torch.nan
    for name, content, message in (
        ("shape.pt", good[None, None], r"must hold maps of shape \(N, H, W\).*got \(1, 1, 3, 4, 5\)"),
        ("colours.npy", good[:, None].repeat(1, 3, 1, 1), r"got \(3, 3, 4, 5\)"),
        ("empty.npy", good[:0], r"got \(0, 4, 5\)"),
        ("zero.safetensors", torch.zeros(2, 4, 5), "row 0 is 0 everywhere"),
        ("holed.npy", holed, "row 1 holds NaN or infinity"),
        ("log.pt", negative, r"row 0 goes down to .*Log-densities want saliency.exp\(\)"),
    ):
        with pytest.raises(ValueError, match=message):
            load_saliency(write(tmp_path / name, content))
    with pytest.raises(FileNotFoundError, match=r"no file of saliency maps at .*missing\.npy"):
        load_saliency(tmp_path / "missing.npy")
    (tmp_path / "maps.png").write_bytes(b"x")
    with pytest.raises(ValueError, match=r"read from \.npy, \.pt, \.pth and \.safetensors; got .*maps\.png"):
        load_saliency(tmp_path / "maps.png")
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(ValueError, match="must hold a tensor of maps; got list"):
        load_saliency(tmp_path / "list.pt")


class Hostile:
    """What a pickle may do to whoever opens it; here it writes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def test_nothing_in_a_file_is_executed(tmp_path: Path) -> None:
    trap = tmp_path / "touched"
    torch.save(Hostile(trap), tmp_path / "maps.pt")
    np.save(tmp_path / "maps.npy", np.array([Hostile(trap)], dtype=object), allow_pickle=True)
    (tmp_path / "maps.safetensors").write_bytes(b"no such thing")
    for name in ("maps.pt", "maps.npy", "maps.safetensors"):
        with pytest.raises(ValueError, match=rf"{name} cannot be read as a file of tensors: "):
            load_saliency(tmp_path / name)
    assert not trap.exists()


@pytest.mark.parametrize("name", ["map.NPY", "map.npy"])
def test_an_ending_is_read_in_either_case(tmp_path: Path, name: str) -> None:
    saved = np.random.default_rng(0).random((4, 4), dtype=np.float32)
    with (tmp_path / name).open("wb") as file:
        np.save(file, saved)
    assert np.array_equal(load_saliency(tmp_path / name).squeeze().numpy(), saved)


def test_three_pixels_are_the_least_that_a_map_is_made_of() -> None:
    maps = spectral_residual(torch.rand(2, 3, 24, 32), size=3)
    assert maps.shape == (2, 24, 32)
    torch.testing.assert_close(maps.sum(dim=(1, 2)), torch.ones(2))
