"""Encoders: your own `nn.Module`, or a timm name; all views of a batch in one call."""

from __future__ import annotations

import difflib
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from seqjepa._checks import check_floating, check_like, check_tensor, weight_of
from seqjepa._modes import eval_mode, fresh_casts

__all__ = ["encode_views", "feature_width", "timm_encoder", "with_cifar_stem"]


def timm_encoder(
    name: str,
    *,
    cifar_stem: bool = False,
    pretrained: bool = False,
    img_size: int | tuple[int, int] | None = None,
    **timm_options: Any,
) -> nn.Module:
    """A timm model without its classifier: (N, C, H, W) → (N, D).

    Args:
        name: any name of `timm.list_models()`, with or without a pretrained tag.
        cifar_stem: swap a ResNet's stem for the one of 32-px images, as
            [`with_cifar_stem`][seqjepa.encoders.with_cifar_stem] does.
        pretrained: load timm's weights (this downloads).
        img_size: side of the views in pixels, or (height, width), for models built for one size, such as ViTs; others
            take any size.
        timm_options: handed to `timm.create_model`: `in_chans`, `drop_path_rate`, `global_pool`, …

    Returns:
        The timm module itself, in training mode, with `timm_spec`, the arguments that build it again.

    Raises:
        ValueError: timm has no such model (near matches are listed), a pretrained stem would be thrown away, or
            `num_classes` is among the options: an encoder has no classifier.

    Examples:
        >>> import torch
        >>> timm_encoder("resnet18", cifar_stem=True)(torch.rand(2, 3, 32, 32)).shape
        torch.Size([2, 512])
        >>> timm_encoder("vit_tiny_patch16_224", img_size=64)(torch.rand(2, 3, 64, 64)).shape
        torch.Size([2, 192])
    """
    import timm
    from timm.models import get_pretrained_cfg

    if ":" not in name and not timm.is_model(name):  # with a colon the name is of a hub, which timm asks
        near = difflib.get_close_matches(name.split("/")[-1].split(".")[0], timm.list_models())
        hint = f"Near matches: {', '.join(near)}." if near else "timm.list_models() names them all."
        raise ValueError(f"timm {timm.__version__} has no model {name!r}. {hint}")
    if "num_classes" in timm_options:
        raise ValueError("An encoder has no classifier, num_classes is always 0; got it as an option. Leave it out.")
    if cifar_stem and pretrained:
        raise ValueError(
            "cifar_stem=True replaces the first convolution, so its pretrained weights would be lost; got both. Drop "
            "one, or call seqjepa.encoders.with_cifar_stem(encoder) on the pretrained encoder to lose them knowingly."
        )
    options = dict(timm_options)
    config = get_pretrained_cfg(name)  # None for a name of a hub
    if img_size is not None and config is not None and config.fixed_input_size:
        options["img_size"] = img_size
    encoder = timm.create_model(name, pretrained=pretrained, num_classes=0, **options)
    spec: Any = {"name": name, "cifar_stem": False, "img_size": img_size, **timm_options}
    encoder.timm_spec = spec
    return with_cifar_stem(encoder) if cifar_stem else encoder


def with_cifar_stem(encoder: nn.Module) -> nn.Module:
    """Give a ResNet, in place, the stem for 32-px images: a 3×3 stride-1 convolution and no max-pool.

    Args:
        encoder: a timm or torchvision ResNet: its `conv1` is a convolution, its `maxpool` a module.

    Returns:
        The same module.

    Raises:
        ValueError: the encoder has no such stem.

    Examples:
        >>> import timm
        >>> encoder = with_cifar_stem(timm.create_model("resnet18", num_classes=0))
        >>> encoder.conv1.kernel_size, encoder.conv1.stride
        ((3, 3), (1, 1))
    """
    conv = getattr(encoder, "conv1", None)
    if not isinstance(conv, nn.Conv2d) or not isinstance(getattr(encoder, "maxpool", None), nn.Module):
        raise ValueError(
            f"The CIFAR stem replaces the convolution `conv1` and the `maxpool` of a ResNet; {type(encoder).__name__} "
            "has no such pair. Use a ResNet such as 'resnet18' or 'resnet50', or leave cifar_stem off."
        )
    stem = nn.Conv2d(conv.in_channels, conv.out_channels, 3, 1, 1, bias=False)
    nn.init.kaiming_normal_(stem.weight, mode="fan_out")
    encoder.conv1 = stem.to(conv.weight)
    encoder.maxpool = nn.Identity()
    spec: Any = getattr(encoder, "timm_spec", None)
    if spec is not None:
        encoder.timm_spec = spec | {"cifar_stem": True}
    return encoder


def encode_views(encoder: nn.Module, views: Float[Tensor, "B T *image"]) -> Float[Tensor, "B T D"]:
    """Encode every view of a batch in one call of the encoder.

    The views reach the encoder in the channels-last layout if they are in it, or the encoder is.

    Args:
        encoder: maps (N, …) → (N, D); with images, (N, C, H, W) → (N, D).
        views: (B, T, …), float; the trailing axes are whatever the encoder takes.

    Returns:
        (B, T, D).

    Raises:
        ValueError: the views have no trailing axis, lie on another device, or the encoder's output is no (N, D).
        TypeError: the views are no tensor, not floating point, or float64 where the encoder is not (or the reverse);
            the encoder returns no tensor.

    Examples:
        >>> import torch
        >>> encoder = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 8 * 8, 16))
        >>> encode_views(encoder, torch.rand(4, 5, 3, 8, 8)).shape
        torch.Size([4, 5, 16])
    """
    check_tensor("views", views)
    if views.ndim < 3:
        raise ValueError(
            f"views must have the axes (B, T, …), for images (B, T, C, H, W); got shape {tuple(views.shape)}."
        )
    check_floating("views", views)
    weight = weight_of(encoder)
    check_like("views", views, weight)
    # What is cut out of longer sequences is copied here, once: straight into the layout that the encoder works in.
    if views.ndim == 5 and (_is_channels_last(views) or (weight is not None and _is_channels_last(weight))):
        flat = rearrange(views, "b t c h w -> (b t) h w c").contiguous().permute(0, 3, 1, 2)
    else:
        flat = rearrange(views, "b t ... -> (b t) ...")
    features = encoder(flat)
    n = views.shape[0] * views.shape[1]
    if not isinstance(features, Tensor):
        raise TypeError(
            f"The encoder must return one tensor of shape ({n}, D); got {type(features).__name__}. Wrap it in a module "
            "that picks the features."
        )
    if features.ndim != 2 or features.shape[0] != n:
        raise ValueError(
            f"The encoder must map {n} views to vectors of shape ({n}, D); got {tuple(features.shape)}. For feature "
            "maps add pooling: nn.Sequential(encoder, nn.AdaptiveAvgPool2d(1), nn.Flatten())."
        )
    return features.unflatten(0, views.shape[:2])


def _is_channels_last(x: Tensor) -> bool:
    """Whether the channels of a pixel, or of a kernel's place, lie side by side: (…, C, H, W) in the order of NHWC."""
    return x.ndim >= 4 and x.stride(-3) == 1 and x.shape[-3] > 1 and x.stride(-1) == x.shape[-3]


@torch.no_grad()
def feature_width(encoder: nn.Module, view_shape: tuple[int, ...]) -> int:
    """The width D of an encoder's output, found by encoding one blank view.

    Runs in eval mode and puts every submodule back into the mode it was in; statistics and gradients stay as they are.

    Args:
        encoder: maps (N, *view_shape) → (N, D).
        view_shape: shape of one view, such as (3, 32, 32).

    Returns:
        D.

    Raises:
        ValueError: the encoder does not take such a view, or does not return (N, D).

    Examples:
        >>> feature_width(timm_encoder("resnet18"), (3, 64, 64))
        512
    """
    weight = weight_of(encoder)
    like = torch.empty(0, device="cpu") if weight is None else weight
    blank = torch.zeros(1, 1, *view_shape, device=like.device, dtype=like.dtype)
    with eval_mode(encoder), fresh_casts(like.device):
        try:
            return encode_views(encoder, blank).shape[-1]
        except (RuntimeError, AssertionError, IndexError) as error:  # the encoder's own: ours are Value- and TypeErrors
            raise ValueError(
                f"The width of an encoder is found by encoding one blank view; {type(encoder).__name__} cannot encode "
                f"one of shape {tuple(view_shape)}: {error}. Say what your views are: view_shape=(C, H, W), or "
                "img_size= for an encoder from timm."
            ) from error
