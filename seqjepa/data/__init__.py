"""Views and the actions between them: samplers, a renderer, readers of datasets."""

from seqjepa.data.augment import Augmentation, AugmentationParameters, AugmentedViews
from seqjepa.data.rotate import RotatedViews
from seqjepa.data.show import show

__all__ = ["Augmentation", "AugmentationParameters", "AugmentedViews", "RotatedViews", "show"]
