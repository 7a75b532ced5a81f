"""What two faults of the released code change: a probe of an encoder in training mode, and normalised actions."""

from __future__ import annotations

import torch
from claims_runs import Worlds
from torch.nn.functional import normalize

from seqjepa import SeqJEPA
from seqjepa.data import AugmentedViews
from seqjepa.evaluation import linear_probe, regression_r2


@torch.no_grad()
def probed_in_training_mode(model: SeqJEPA, worlds: Worlds, seed: int) -> dict[str, float]:
    """Top-1 of z in eval mode, and where the probe sees an encoder in training mode, whose statistics drift."""
    generator = torch.Generator().manual_seed(seed)
    train, test = worlds.pools
    device = next(model.parameters()).device
    views, views_test = (pool.pictures[:, 0].to(device).float() / 255 for pool in (train, test))
    labels, labels_test = train.labels.to(device), test.labels.to(device)

    def z(of: torch.Tensor) -> torch.Tensor:
        return torch.cat([model.encoder(part).float() for part in of.split(256)])

    right = linear_probe(z(views), labels, z(views_test), labels_test).accuracy
    state = {name: value.clone() for name, value in model.encoder.state_dict().items()}
    model.encoder.train()
    for _ in range(20):  # epochs of a probe; the features of the last are those it is fitted to
        order = torch.randperm(len(views), generator=generator)
        drifting = z(views[order])
    model.encoder.eval()
    drifted = linear_probe(drifting, labels[order.to(device)], z(views_test), labels_test).accuracy
    model.encoder.load_state_dict(state)
    return {"top-1 %, z, probe in eval mode": 100 * right, "top-1 %, z, probe in training mode": 100 * drifted}


def leak_of_normalised_actions(rows: int = 20_000) -> dict[str, float]:
    """R² of the predicted view's crop from the actions between the views before it."""
    sampler = AugmentedViews.cifar(4, frame="image")
    elements = sampler.elements(sampler.draw(rows, (32, 32), generator=torch.Generator().manual_seed(0)), (32, 32))
    pixels = elements * torch.tensor([32.0] * 4 + [1.0] * 5)
    plain, divided = pixels, normalize(pixels, dim=1)  # over the views, the predicted one included
    fit, test = slice(0, 3 * rows // 4), slice(3 * rows // 4, None)
    r2 = {}
    for name, parameters in (("plain differences", plain), ("normalised across views", divided)):
        before, last = parameters[:, :3].diff(dim=1).flatten(1), pixels[:, 3, :4]
        r2[name] = regression_r2(before[fit], last[fit], before[test], last[test], hidden=(256, 256)).mean
    return r2
