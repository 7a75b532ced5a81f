"""The example on a frozen backbone: its weights are the package's, and it runs as its first lines say."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.datasets import load_sample_images
from torch import Tensor, nn

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "examples"))

import frozen_backbone  # noqa: E402

from seqjepa import SeqJEPA  # noqa: E402


@pytest.fixture(scope="module")
def network() -> nn.Module:
    return frozen_backbone.lite0(pretrained=True)


def test_every_weight_of_the_package_has_its_place_and_the_numbers_are_its_own_network_s(network: nn.Module) -> None:
    theirs = pytest.importorskip("efficientnet_lite_pytorch").EfficientNet.from_name("efficientnet-lite0")
    ours = network.state_dict()
    theirs.load_state_dict({name: ours[frozen_backbone.timm_name(name)] for name in theirs.state_dict()})
    views = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))  # the side that its padding is for
    with torch.no_grad():
        torch.testing.assert_close(network(views), theirs.eval()(views))


def photographs() -> Tensor:
    """Two that scikit-learn ships, cut to squares: a palace in China, and a flower."""
    images = torch.tensor(np.stack(load_sample_images().images)).permute(0, 3, 1, 2).float() / 255
    cut = (images.shape[-1] - images.shape[-2]) // 2
    return F.interpolate(images[..., cut : cut + images.shape[-2]], (224, 224), mode="bicubic", antialias=True)


def test_it_names_what_photographs_show(network: nn.Module) -> None:
    with torch.no_grad():
        assert network(2 * photographs() - 1).argmax(dim=1).tolist() == [698, 985]  # palace, daisy


def test_the_trunk_gives_its_middle_and_its_end_and_stands_still() -> None:
    trunk = frozen_backbone.Trunk(pretrained=True)
    views = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        features = trunk(views)
        blocks = trunk.network.bn1(trunk.network.conv_stem(2 * views - 1))
        for stage in trunk.network.blocks[:5]:  # up to the last at stride 16
            blocks = stage(blocks)
    torch.testing.assert_close(features[:, frozen_backbone.LAYERS["middle"]], blocks.flatten(1))
    assert features[:, frozen_backbone.LAYERS["end"]].shape == (2, 1280)
    for layer in frozen_backbone.LAYERS:
        assert frozen_backbone.Adapter(layer)(features).shape == (2, frozen_backbone.DIM)


@pytest.mark.nightly
def test_the_example_measures_trains_and_draws_and_computes_its_features_once(tmp_path: Path) -> None:
    command = [sys.executable, "-W", "error", "examples/frozen_backbone.py", "--steps", "2", "--objects", "48"]
    for word in ("computed", "opened"):
        result = subprocess.run([*command, "--output", str(tmp_path)], cwd=ROOT, capture_output=True, text=True)
        assert result.returncode == 0, result.stderr
        assert result.stdout.count(f": {word} in") == 4
        rows = [line for line in result.stdout.splitlines() if line.startswith(("pixels", "untrained", "pretrained"))]
        held = [line for line in rows if ".safetensors" not in line]
        assert len(held) == 5
        assert all(float(number) <= 1 for line in held for number in line[36:].split())
        assert "accuracy %, state of 5" in result.stdout
        place = tmp_path / "middle-48-objects-2-steps-seed-0"
        assert f"and {place.name}/model/, for SeqJEPA.from_pretrained(…, encoder=Adapter('middle'))." in result.stdout
    assert (tmp_path / "frozen.png").stat().st_size > 5000
    again = SeqJEPA.from_pretrained(place / "model", encoder=frozen_backbone.Adapter("middle"))
    assert again.predictor.dim == frozen_backbone.DIM
