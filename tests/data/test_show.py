"""Pictures hold every view, and say every action."""

import math
from typing import Any

import numpy as np
import pytest
import torch

from seqjepa import ViewSequence
from seqjepa.data import AugmentedViews, RotatedViews, show
from seqjepa.groups import Translation


def captions(figure: Any) -> list[str]:
    return [axis.get_xlabel() for axis in figure.axes]


def saccades(batch: int = 2) -> tuple[ViewSequence, torch.Tensor]:
    """Two fixations of a 40 × 80 image: 10 px down, 20 px to the right."""
    positions = torch.tensor([[0.25, 0.25], [0.5, 0.5]]).expand(batch, 2, 2)
    views = torch.rand(batch, 2, 3, 8, 8)
    return ViewSequence(views, positions.diff(dim=1), positions, None, Translation(2)), torch.rand(batch, 3, 40, 80)


def test_a_row_a_source_and_a_column_a_view() -> None:
    sequence = RotatedViews(num_views=3)(torch.rand(4, 3, 16, 16))
    figure = show(sequence, rows=2)
    assert len(figure.axes) == 6
    assert [axis.get_title() for axis in figure.axes[:3]] == ["view 1", "view 2", "to predict"]
    for index, (row, t) in enumerate((r, t) for r in range(2) for t in range(3)):
        shown = np.asarray(figure.axes[index].images[0].get_array())
        torch.testing.assert_close(torch.tensor(shown), sequence.views[row, t].permute(1, 2, 0))
    assert len(show(sequence).axes) == 12


def test_actions_are_written_in_degrees_and_by_name() -> None:
    sequence = RotatedViews(num_views=2)(torch.rand(1, 1, 8, 8))
    turned = sequence._replace(actions=torch.full((1, 1, 1), math.pi / 4))
    assert captions(show(turned)) == ["+45°  →", ""]
    assert captions(show(turned._replace(group=None))) == ["+0.79  →", ""]
    augmented = captions(show(AugmentedViews.cifar(num_views=2)(torch.rand(1, 3, 32, 32))))[0]
    assert all(word in augmented for word in ("down", "right", "brightness", "hue", "blur"))


def test_saccades_are_drawn_over_their_images_in_pixels() -> None:
    sequence, images = saccades()
    figure = show(sequence, images=images, saliency=torch.rand(2, 40, 80))
    assert len(figure.axes) == 6
    assert captions(figure)[1] == "+10 px down, +20 px right  →"
    path = figure.axes[0].lines[0].get_xydata().tolist()  # type: ignore[union-attr]
    assert path == [[19.5, 9.5], [39.5, 19.5]]  # (column of 80, row of 40)
    assert len(figure.axes[0].images) == 2
    assert len(show(sequence, images=images).axes[0].images) == 1


@pytest.mark.parametrize("channels", [1, 3, 4, 9])
def test_views_of_any_number_of_channels_are_shown(channels: int) -> None:
    show(ViewSequence(torch.rand(1, 2, channels, 8, 8), torch.rand(1, 1, 3)))


def test_bad_inputs_are_refused() -> None:
    sequence, images = saccades()
    with pytest.raises(ValueError, match="Saliency is drawn over the images it belongs to; got none"):
        show(sequence, saliency=torch.rand(2, 40, 80))
    with pytest.raises(
        ValueError, match=r"Saliency must be \(B, H, W\), \(2, 40, 80\) for these images; got \(2, 80, 40\)"
    ):
        show(sequence, images=images, saliency=torch.rand(2, 80, 40))
    with pytest.raises(ValueError, match="got 1 images for 2 rows of views"):
        show(sequence, images=images[:1])
    with pytest.raises(ValueError, match=r"whose parameters are positions .*; got NoneType. Leave images out"):
        show(sequence._replace(parameters=None), images=images)
    with pytest.raises(ValueError, match="rows is the number of sources to draw, at least 1; got 0"):
        show(sequence, rows=0)
    with pytest.raises(ValueError, match=r"views must have the axes \(B, T\+1, C, H, W\); got shape \(2, 3, 8, 8\)"):
        show(ViewSequence(torch.rand(2, 3, 8, 8), torch.rand(2, 1, 2)))


def test_pictures_of_what_lies_on_the_cpu_are_drawn_under_another_default_device() -> None:
    sequence, images = saccades()
    saliency = images.mean(dim=1)
    expected = captions(show(sequence, images=images, saliency=saliency))
    with torch.device("meta"):
        assert captions(show(sequence, images=images, saliency=saliency)) == expected
