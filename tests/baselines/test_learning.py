"""Methods that predict learn what an action does, in a world of places and of who is there; none without actions."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from seqjepa import NoActions
from seqjepa.evaluation import action_retrieval, extract
from seqjepa.groups import Translation
from seqjepa.types import ViewSequence
from tests.baselines.builders import PREDICTIVE, tiny

PLANE = Translation(2)
TOLD = [name for name in PREDICTIVE if name != "BYOL"]


def world(sources: int, views: int, seed: int) -> ViewSequence:
    g = torch.Generator().manual_seed(seed)
    who = torch.randn(sources, 1, 4, generator=g).expand(-1, views, -1)
    where = 2 * torch.rand(sources, views, 2, generator=g) - 1
    return ViewSequence(torch.cat([who, where], dim=-1), PLANE.actions(where), where, None, PLANE)


def trained(name: str, **options: Any) -> Any:
    torch.manual_seed(0)
    special: dict[str, dict[str, Any]] = {
        "ContextSSL": {"context_pairs": 8},
        "ConvIJEPA": {"group": PLANE, "momentum": 0.95},
        "ConditionalBYOL": {"momentum": 0.95},
        "SIE": {"affine": True},
    }
    encoder = nn.Sequential(nn.Linear(6, 64), nn.ReLU(), nn.Linear(64, 16))
    options = {"encoder": encoder, "view_shape": (6,), "widths": (64, 32), "action_dim": 2, **options}
    method = tiny(name, **{**options, **special.get(name, {})})
    optimizer = torch.optim.Adam([p for p in method.parameters() if p.requires_grad], lr=3e-3)
    for step in range(120):
        views, actions, *_ = world(64, 2, seed=step)
        method(views, actions).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        method.update_target()
    return method.eval()


@pytest.mark.parametrize("name", TOLD)
def test_a_prediction_finds_the_view_that_the_action_leads_to(name: str) -> None:
    test, method = world(60, 6, seed=999), trained(name)
    found = action_retrieval(method, extract(method, test))
    assert found.mrr > found.chance.mrr + 0.15
    if name == "ContextSSL":
        views, actions, *_ = world(20, 2, seed=1000)
        reader = method.in_context(views, actions)
        assert action_retrieval(reader, extract(reader, test)).mrr > found.chance.mrr + 0.15


@pytest.mark.parametrize("name", [name for name in TOLD if name != "SIE"])
def test_a_prediction_that_was_told_no_action_is_at_chance(name: str) -> None:
    test, method = world(60, 6, seed=999), trained(name, embedder=NoActions())
    found = action_retrieval(method, extract(method, test))
    assert found.mrr == pytest.approx(found.chance.mrr, abs=1e-6)
