"""What holds of two ranks holds of three and of four, whose shares are uneven or empty."""

import pytest

from tests.baselines.test_ranks import contrast
from tests.evaluation.test_ranks import features
from tests.ranks import on_ranks
from tests.test_distributed import check_a_loss, losses, rows, shares


def laws(me: int, world: int) -> None:
    losses(me, world)
    rows(me, world)
    for uneven in (False, True):
        check_a_loss(contrast, shares(world, uneven)[me])
    features(me)


@pytest.mark.parametrize("world", [3, pytest.param(4, marks=pytest.mark.nightly)])
def test_losses_gathered_rows_and_evaluations_are_those_of_one_process(world: int) -> None:
    on_ranks(laws, world=world)
