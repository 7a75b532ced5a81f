"""Effective ranks, deviations, cosines, the gap and the drift, against plain NumPy."""

import copy
import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from seqjepa import EMATarget
from seqjepa.evaluation import (
    batch_norm_drift,
    collapse,
    feature_deviation,
    lidar,
    mean_pairwise_cosine,
    rankme,
    target_gap,
)
from seqjepa.functional import cosine_distance
from tests.builders import TinyEncoder


def entropy_rank(spectrum: np.ndarray, eps: float = 1e-7) -> float:
    p = spectrum / spectrum.sum() + eps
    return math.exp(-sum(v * math.log(v) for v in p))


def slow_lidar(x: np.ndarray, delta: float = 1e-4) -> float:
    n, v, d = x.shape
    mean = x.mean((0, 1))
    between, within = np.zeros((d, d)), delta * np.eye(d)
    for source in x:
        centre = source.mean(0)
        between += np.outer(centre - mean, centre - mean) / n
        for view in source:
            within += np.outer(view - centre, view - centre) / (n * v)
    values, vectors = np.linalg.eigh(within)
    root = vectors @ np.diag(values**-0.5) @ vectors.T
    return entropy_rank(np.linalg.eigvalsh(root @ between @ root).clip(0))


def rotation(d: int) -> Tensor:
    return torch.linalg.qr(torch.randn(d, d, dtype=torch.float64)).Q


@given(st.integers(1, 12), st.integers(1, 12))
def test_rankme_is_the_entropy_of_the_singular_values(n: int, d: int) -> None:
    x = torch.randn(n, d, dtype=torch.float64) + 0.5
    assert rankme(x) == pytest.approx(entropy_rank(np.linalg.svd(x.numpy(), compute_uv=False)), rel=1e-5)


@given(st.integers(2, 12), st.integers(2, 5), st.integers(1, 8))
def test_lidar_is_the_rank_of_the_lda_matrix(n: int, v: int, d: int) -> None:
    x = torch.randn(n, 1, d, dtype=torch.float64) + 0.5 * torch.randn(n, v, d, dtype=torch.float64)
    assert lidar(x) == pytest.approx(slow_lidar(x.numpy()), rel=1e-5)


@given(st.integers(0, 3))
def test_directions_count_down_to_a_millionth_and_rounding_does_not(seed: int) -> None:
    spectrum = 10.0 ** -torch.arange(0, 6.5, 0.5, dtype=torch.float64)
    x = rotation(40)[:, :13] * spectrum @ rotation(13)
    assert rankme(x) == pytest.approx(entropy_rank(spectrum.numpy()), rel=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_sources_with_one_mean_up_to_rounding_have_lidar_one(dtype: torch.dtype) -> None:
    offset = torch.randn(500, 1, 8, dtype=torch.float64)
    x = (100 + 1 / 3 + torch.cat([offset, -offset], dim=1)).to(dtype)  # equal means, but for rounding
    assert lidar(x) == 1
    moved = x.clone()
    moved[0] += 0.1  # what is no rounding is seen
    assert lidar(moved) != 1


class Largest(TorchDispatchMode):
    """The size in bytes of the largest tensor that any operation made."""

    bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if isinstance(out, Tensor):
            self.bytes = max(self.bytes, out.numel() * out.element_size() * (out._base is None))
        return out


@pytest.mark.parametrize("measure", [lidar, lambda x: rankme(x.flatten(0, 1))])
def test_a_measure_needs_little_more_memory_than_its_features(measure: Any) -> None:
    x = torch.randn(4000, 10, 32)
    with Largest() as largest:
        measure(x)
    assert largest.bytes < 1.1 * x.numel() * x.element_size()


def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(50, 4, 6) + torch.randn(50, 1, 6)
    whole = lidar(x), rankme(x.flatten(0, 1))
    monkeypatch.setattr(collapse, "CHUNK", 13)
    assert (lidar(x), rankme(x.flatten(0, 1))) == pytest.approx(whole, rel=1e-10)


def test_the_gap_s_standard_error_is_its_spread_over_draws_of_the_rows() -> None:
    g = torch.Generator().manual_seed(0)

    def draw(rows: int) -> Tensor:
        target = torch.randn(rows, 16, generator=g)
        return collapse.gap_of(0.3 * target + torch.randn(rows, 16, generator=g), target)

    for rows in (16, 64):
        found = torch.stack([draw(rows) for _ in range(400)])
        assert found[:, 1].mean().item() == pytest.approx(found[:, 0].std().item(), rel=0.15)


def test_isotropic_features_have_full_rank_and_a_line_has_rank_one() -> None:
    x = torch.randn(20_000, 16)
    assert rankme(x) == pytest.approx(16, rel=1e-3)
    assert rankme(torch.randn(200, 1) @ torch.randn(1, 16)) == pytest.approx(1, abs=1e-3)
    assert rankme(torch.full((200, 16), 0.3)) == pytest.approx(1, abs=1e-3)
    assert rankme(torch.zeros(200, 16)) == 1
    sources = torch.randn(5_000, 1, 16)
    assert lidar(sources + 0.3 * torch.randn(5_000, 8, 16)) == pytest.approx(16, rel=0.01)
    line = torch.randn(500, 1, 1) * torch.randn(16)
    assert lidar(line + torch.randn(500, 8, 16)) < 4
    assert lidar(line.expand(-1, 8, -1)) == pytest.approx(1, abs=1e-3)
    assert lidar(torch.full((50, 4, 16), 0.3)) == 1


@pytest.mark.parametrize("k", [1, 3, 9])
def test_k_equal_directions_have_rank_k(k: int) -> None:
    x = torch.linalg.qr(torch.randn(300, k)).Q @ torch.linalg.qr(torch.randn(32, k)).Q.mT
    assert rankme(x) == pytest.approx(k, rel=1e-3)


@given(st.integers(4, 30), st.integers(2, 8), st.floats(0.01, 100))
def test_turning_and_scaling_change_no_rank(n: int, d: int, scale: float) -> None:
    x = torch.randn(n, d, dtype=torch.float64) + 1
    assert rankme(scale * x @ rotation(d)) == pytest.approx(rankme(x), rel=1e-6)
    views = torch.randn(n, 1, d, dtype=torch.float64) + torch.randn(n, 4, d, dtype=torch.float64)
    assert lidar(views @ rotation(d)) == pytest.approx(lidar(views), rel=1e-6)
    assert lidar(100 * views) == pytest.approx(lidar(10_000 * views), rel=1e-2)


def test_lidar_sees_what_rankme_cannot() -> None:
    sources, noise = torch.randn(400, 1, 1) * torch.randn(32), torch.randn(400, 6, 32)
    x = sources + noise  # full rank, but only one direction belongs to the sources
    assert rankme(x.flatten(0, 1)) > 25
    with_sources = torch.randn(400, 1, 32) + noise
    assert lidar(x) < 0.7 * lidar(with_sources)


def test_the_smaller_gram_matrix_gives_the_same_rank() -> None:
    x = torch.randn(20, 50, dtype=torch.float64)
    assert rankme(x) == pytest.approx(rankme(torch.cat([x, torch.zeros(100, 50)])), rel=1e-4)


def test_deviation_is_relative_to_the_size_of_all_features() -> None:
    x = torch.randn(100, 5, dtype=torch.float64) * torch.tensor([1.0, 2, 3, 0, 1]) + torch.tensor([0.0, 1, 0, 4, 0])
    expected = x.numpy().std(0) / np.sqrt((x.numpy() ** 2).mean())
    np.testing.assert_allclose(feature_deviation(x).numpy(), expected, atol=1e-12)
    torch.testing.assert_close(feature_deviation(7 * x), feature_deviation(x))
    assert feature_deviation(x)[3] == pytest.approx(0, abs=1e-9)
    assert feature_deviation(x).square().mean() <= 1
    centred = torch.randn(5000, 4)
    torch.testing.assert_close(feature_deviation(centred), torch.ones(4), atol=0.05, rtol=0)
    assert not feature_deviation(torch.zeros(4, 3)).any()


@given(st.integers(2, 9), st.integers(1, 6))
def test_mean_cosine_and_gap_are_those_of_all_pairs(n: int, d: int) -> None:
    p, t = torch.randn(n, d, dtype=torch.float64), torch.randn(n, d, dtype=torch.float64)
    others = [(i, j) for i in range(n) for j in range(n) if i != j]
    cosines = [float(1 - cosine_distance(p[i], p[j])) for i, j in others]
    assert mean_pairwise_cosine(p) == pytest.approx(sum(cosines) / len(others), abs=1e-9)
    own = float((1 - cosine_distance(p, t)).mean())
    shuffled = sum(float(1 - cosine_distance(p[i], t[j])) for i, j in others) / len(others)
    assert target_gap(p, t) == pytest.approx(own - shuffled, abs=1e-9)


def test_a_collapsed_encoder_has_cosine_one_and_no_gap_and_an_ideal_one_has_a_gap_of_one() -> None:
    same = torch.rand(1, 64).expand(100, 64)
    assert mean_pairwise_cosine(same) == pytest.approx(1)
    assert target_gap(same, same) == pytest.approx(0)
    apart = torch.randn(2000, 512)
    assert mean_pairwise_cosine(apart) == pytest.approx(0, abs=1e-3)
    assert target_gap(apart, apart) == pytest.approx(1, abs=1e-3)
    assert target_gap(apart, -apart) == pytest.approx(-1, abs=1e-3)


def test_drift_counts_in_deviations_of_the_encoder() -> None:
    encoder = TinyEncoder()
    encoder(torch.rand(8, 3, 8, 8))
    target = copy.deepcopy(encoder)
    assert batch_norm_drift(encoder, target) == 0
    with torch.no_grad():
        for name in ("bn1", "bn2", "bn3"):
            online, moved = getattr(encoder, name), getattr(target, name)
            moved.running_mean += 0.5 * (online.running_var + online.eps).sqrt()
    assert batch_norm_drift(encoder, target) == pytest.approx(0.5, rel=1e-4)
    for name in ("bn1", "bn2", "bn3"):
        norm = getattr(target, name)
        norm.running_var.copy_(4 * (norm.running_var + norm.eps) - norm.eps)
    assert batch_norm_drift(encoder, target) == pytest.approx((0.5**2 + 1) ** 0.5, rel=1e-4)


def test_drift_reads_a_target_module_and_a_compiled_encoder() -> None:
    encoder = TinyEncoder()
    target = EMATarget(encoder, 0.9)
    assert batch_norm_drift(encoder, target) == 0
    encoder(torch.rand(8, 3, 8, 8))
    moved = batch_norm_drift(encoder, target)
    assert moved > 0
    compiled = torch.compile(encoder, backend="eager")
    assert isinstance(compiled, nn.Module)
    assert batch_norm_drift(compiled, target) == moved


def test_wrong_input_is_refused() -> None:
    x = torch.randn(6, 4)
    for measure in (rankme, feature_deviation, mean_pairwise_cosine):
        with pytest.raises(ValueError, match=r"features must have the axes \(N, D\); got shape \(6, 4, 1\)"):
            measure(x[..., None])
        with pytest.raises(ValueError, match=r"features must be finite; 6 of 6 rows"):
            measure(x * torch.inf)
    with pytest.raises(ValueError, match=r"features must have the axes \(N, V, D\); got shape \(6, 4\)"):
        lidar(x)
    with pytest.raises(ValueError, match=r"two at least; got 6 sources of 1 views"):
        lidar(x[:, None])
    with pytest.raises(ValueError, match=r"two at least; got 1 sources of 6 views"):
        lidar(x[None])
    with pytest.raises(ValueError, match=r"delta must be above 0, .* got 0"):
        lidar(x.view(2, 3, 4), delta=0)
    with pytest.raises(ValueError, match=r"needs two at least; got 1"):
        mean_pairwise_cosine(x[:1])
    with pytest.raises(ValueError, match=r"needs two at least; got 1"):
        target_gap(x[:1], x[:1])
    with pytest.raises(ValueError, match=r"got 6 rows of prediction, 5 rows of target"):
        target_gap(x, x[1:])
    with pytest.raises(ValueError, match=r"one width; got 4 and 3"):
        target_gap(x, x[:, 1:])
    with pytest.raises(ValueError, match=r"one architecture, with running statistics; got 3 and 0 batch norms"):
        batch_norm_drift(TinyEncoder(), nn.Linear(2, 2))
    with pytest.raises(ValueError, match=r"got 3 and 3 batch norms"):
        batch_norm_drift(TinyEncoder(), TinyEncoder(width=9))


@given(st.integers(3, 8), st.integers(2, 5))
def test_the_gap_s_error_is_of_what_each_row_adds_as_a_prediction_and_as_a_target(n: int, d: int) -> None:
    p, t = torch.randn(n, d, dtype=torch.float64), torch.randn(n, d, dtype=torch.float64)

    def mean_with_others(i: int, of: Any) -> float:
        return sum(of(i, j) for j in range(n) if j != i) / (n - 1)

    adds = [
        float(1 - cosine_distance(p[i], t[i]))
        - mean_with_others(i, lambda i, j: float(1 - cosine_distance(p[i], t[j])))
        - mean_with_others(i, lambda i, j: float(1 - cosine_distance(p[j], t[i])))
        for i in range(n)
    ]
    assert collapse.gap_of(p, t)[1].item() == pytest.approx(np.std(adds, ddof=1) / math.sqrt(n), rel=1e-9)
