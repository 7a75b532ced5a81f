"""Views and the actions between them: samplers, a renderer, readers of datasets, and the glue to feed them."""

from seqjepa.data._parameters import ObjectParameters
from seqjepa.data.augment import Augmentation, AugmentationParameters, AugmentedViews
from seqjepa.data.cached import cache_features
from seqjepa.data.collation import ImageBatch, Sample, collate
from seqjepa.data.episodes import EpisodeWindows, PaddedViews, pad_sequences
from seqjepa.data.laws import check_sampler
from seqjepa.data.loading import ViewLoader
from seqjepa.data.objects import Camera, RenderedObjects
from seqjepa.data.pool import ViewPool
from seqjepa.data.rotate import RotatedViews
from seqjepa.data.saccades import SaccadeViews
from seqjepa.data.saliency import load_saliency, spectral_residual
from seqjepa.data.seeding import SeededDataset, batch_generator, derive_seed, isolated_rng
from seqjepa.data.show import show

__all__ = [
    "Augmentation", "AugmentationParameters", "AugmentedViews", "Camera", "EpisodeWindows", "ImageBatch",
    "ObjectParameters", "PaddedViews", "RenderedObjects", "RotatedViews", "SaccadeViews", "Sample", "SeededDataset",
    "ViewLoader", "ViewPool", "batch_generator", "cache_features", "check_sampler", "collate", "derive_seed",
    "isolated_rng", "load_saliency", "pad_sequences", "show", "spectral_residual",
]  # fmt: skip
