"""Random draws: in proportion, from the generator alone, put where the data lie."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chisquare, kstest

from seqjepa.data._random import draw_indices, generator_device, index_at, uniform


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
def test_indices_are_drawn_in_proportion_to_their_weights(dtype: torch.dtype) -> None:
    weights = torch.tensor([0.0, 1.0, 0.0, 4.0, 2.5, 0.0, 0.5, 0.0], dtype=dtype)
    drawn = draw_indices(weights.expand(50_000, -1), generator=seeded())
    counts = torch.bincount(drawn, minlength=8)
    assert counts.shape == (8,)
    assert counts[weights == 0].sum() == 0
    expected = 50_000 * weights.double() / weights.double().sum()
    assert chisquare(counts[weights > 0], expected[weights > 0]).pvalue > 1e-3


def test_every_row_draws_from_its_own_weights() -> None:
    assert draw_indices(torch.eye(20), generator=seeded()).tolist() == list(range(20))


single = st.just(0.0) | st.floats(1e-38, 1)  # what float32 holds to full precision


@given(st.lists(single, min_size=1, max_size=30).filter(any), st.floats(0, 1, exclude_max=True))
def test_an_index_is_where_the_sum_passes_its_share_and_has_weight(weights: list[float], share: float) -> None:
    row = torch.tensor([weights], dtype=torch.float64)
    for s in (share, 0.0, 1 - 2.0**-53):
        index = int(index_at(row, torch.tensor([[s]], dtype=torch.float64)))
        assert weights[index] > 0
        before = 0.0
        for weight in weights[:index]:
            before += weight
        assert before <= s * row.cumsum(1)[0, -1].item() < before + weights[index]


def test_weights_far_apart_in_size_count_exactly() -> None:
    weights = torch.tensor([[1e-30, 1.0, 1e-30]])
    shares = torch.tensor([[0.0], [1e-29], [0.5], [1 - 2.0**-53]], dtype=torch.float64)
    assert index_at(weights.expand(4, -1), shares).tolist() == [0, 1, 1, 1]


def test_a_row_without_weight_stays_in_bounds() -> None:
    assert draw_indices(torch.zeros(3, 5), generator=seeded()).tolist() == [4, 4, 4]


def test_numbers_are_uniform() -> None:
    numbers = uniform((20_000,), -2.0, 3.0, generator=seeded())
    assert numbers.dtype == torch.float32
    assert kstest(numbers.numpy(), "uniform", args=(-2, 5)).pvalue > 1e-3
    assert kstest(uniform((20_000,), generator=seeded()).numpy(), "uniform").pvalue > 1e-3  # in [0, 1), unless told


def test_a_generator_is_all_that_is_drawn_from() -> None:
    before = torch.get_rng_state()
    for draw in (
        lambda g: uniform((3, 2), generator=g),
        lambda g: draw_indices(torch.rand(7, 9, generator=seeded(9)), generator=g),
    ):
        assert torch.equal(draw(seeded(1)), draw(seeded(1)))
        assert not torch.equal(draw(seeded(1)), draw(seeded(2)))
    assert torch.equal(before, torch.get_rng_state())
    assert generator_device(seeded(), "meta") == torch.device("cpu")
    assert generator_device(None, "meta") == torch.device("meta")
    assert uniform((2,), generator=seeded(), device="meta").is_meta


@pytest.mark.gpu
def test_a_generator_of_the_cpu_serves_data_on_a_gpu() -> None:
    weights = torch.rand(500, 900)
    expected = draw_indices(weights, generator=seeded())
    assert (
        draw_indices(weights.cuda(), generator=seeded()).cpu() == expected
    ).float().mean() > 0.99  # rounding of sums
    assert torch.equal(uniform((5,), generator=seeded(), device="cuda").cpu(), uniform((5,), generator=seeded()))
