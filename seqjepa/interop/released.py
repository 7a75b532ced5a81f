"""Checkpoints of the paper's released code, loaded into SeqJEPA."""

from __future__ import annotations

import argparse
import os
import pickle
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from seqjepa.actions import ActionEmbedder, NoActions, RawActions
from seqjepa.aggregator import SequenceAggregator
from seqjepa.encoders import timm_encoder
from seqjepa.model import SeqJEPA
from seqjepa.predictor import ConditionedPredictor
from seqjepa.target import EMATarget, StopGradientTarget

__all__ = ["load_released"]

# What the two scripts hang on their model beside the model: probes, dropped by name.
PROBES = (
    "online_linprobe", "online_res_probe", "online_agg_probe", "online_equiprobe", "agg_classifier", "res_classifier",
    "pos_regressor", "rot_regressor", "color_regressor", "crop_regressor", "jitter_regressor", "blur_regressor",
)  # fmt: skip

# Their names of a layer's weights, and ours.
LAYER = {
    "self_attn.in_proj_weight": "qkv.weight",  # queries, keys and values in one: the layer takes it apart on loading
    "self_attn.in_proj_bias": "qkv.bias",
    "self_attn.out_proj": "out",
    "linear1": "mlp.0",
    "linear2": "mlp.3",
    "norm1": "norm1",
    "norm2": "norm2",
}


def load_released(
    source: str | os.PathLike[str] | Mapping[str, Any], *, encoder: nn.Module | None = None, heads: int = 4
) -> SeqJEPA:
    """Load a checkpoint of the paper's released code.

    Both of its models load, transformed views and saccades (PLS); every size is read off the weights. A model with
    actions gets an [`ActionEmbedder`][seqjepa.ActionEmbedder], one trained on raw actions
    [`RawActions`][seqjepa.RawActions], one without actions [`NoActions`][seqjepa.NoActions]; one with a target encoder
    an [`EMATarget`][seqjepa.EMATarget], one without a [`StopGradientTarget`][seqjepa.StopGradientTarget]. Probes,
    optimiser and arguments are left out.

    The file is read with `weights_only=True`: beside tensors and plain values only `argparse.Namespace` is let in, and
    nothing in it is run. What such a model computes differently from the released code stands on the page on fidelity.

    Args:
        source: a path to the checkpoint, or what it holds: a mapping with a `model` entry, or that entry itself.
        encoder: a module that takes the encoder's weights, by name; None builds the ResNet-18, with the stem the
            weights tell. It is left as it was if anything does not fit.
        heads: attention heads, the one size the weights do not tell (4 in the paper).

    Returns:
        The model on the CPU, in eval mode and float32 (weights of another precision are cast).

    Raises:
        FileNotFoundError: no file there.
        ValueError: a file that is truncated, is no checkpoint, or holds other objects; a mapping that is no seq-JEPA
            model, lacks weights, or has others, which are listed; an encoder that does not take the weights.

    Examples:
        >>> import torch
        >>> from seqjepa.interop import load_released
        >>> load_released({"model": {"fc.weight": torch.zeros(2, 2)}})
        Traceback (most recent call last):
            ...
        ValueError: A checkpoint of the released seq-JEPA has agg_token and predictor.0.weight; got the keys fc.weight.
    """
    checkpoint = source if isinstance(source, Mapping) else _read(source)
    with torch.device("cpu"):
        return _built(_model_weights(checkpoint), encoder, heads)


def _built(weights: dict[str, Tensor], encoder: nn.Module | None, heads: int) -> SeqJEPA:
    """The model of these weights."""
    has_target = any(key.startswith("target_encoder.") for key in weights)
    encoder_weights = {k.removeprefix("encoder."): v for k, v in weights.items() if k.startswith("encoder.")}
    fresh = _resnet18(encoder_weights) if encoder is None else encoder
    state, embedder, aggregator, predictor = _parts(weights, heads)
    target = EMATarget(fresh) if has_target else StopGradientTarget(fresh)
    model = SeqJEPA(fresh, embedder, aggregator, predictor, target=target)
    if has_target:
        state["target._extra_state"] = torch.tensor(0, device="cpu")
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise ValueError(f"The checkpoint does not fit {type(fresh).__name__} as its encoder. {error}") from error
    return model.float().eval()


def _read(path: str | os.PathLike[str]) -> Mapping[str, Any]:
    """Unpickle safely, whatever is in the file."""
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{os.fspath(path)} is no checkpoint that can be read safely: only tensors, plain values and "
            f"argparse.Namespace are let in, and nothing was run. It holds {_blocked(error)}."
        ) from error
    except Exception as error:  # a broken file can fail anywhere inside the reader
        raise ValueError(f"{os.fspath(path)} is truncated or no PyTorch checkpoint: {error}") from error
    if not isinstance(checkpoint, Mapping):
        raise ValueError(f"A checkpoint is a mapping with a `model` entry; got {type(checkpoint).__name__}.")
    return checkpoint


def _blocked(error: Exception) -> str:
    """What the safe reader stumbled over, without its advice to read unsafely."""
    found = re.search(r"GLOBAL (\S+)|(?:class|global) `?([\w.]+\.\w+)", str(error))
    return next(group for group in found.groups() if group) if found else "what is no pickle of those"


def _model_weights(checkpoint: Mapping[str, Any]) -> dict[str, Tensor]:
    """The model's tensors under the released names, in float32, probes left out."""
    entry = checkpoint.get("model", checkpoint)
    if not isinstance(entry, Mapping):
        raise ValueError(f"The `model` entry must be a state dict; got {type(entry).__name__}.")
    weights = {}
    for key, value in entry.items():
        name = str(key).removeprefix("module.").replace("_orig_mod.", "")
        if name.split(".")[0] in PROBES:
            continue
        if not isinstance(value, Tensor):
            raise ValueError(f"A state dict holds tensors only; got {type(value).__name__} at {key!r}.")
        weights[name] = value.float() if value.is_floating_point() else value
    if not {"agg_token", "predictor.0.weight"} <= weights.keys():
        raise ValueError(
            "A checkpoint of the released seq-JEPA has agg_token and predictor.0.weight; got the keys "
            f"{_listed(weights)}."
        )
    return weights


def _parts(weights: dict[str, Tensor], heads: int) -> tuple[dict[str, Tensor], nn.Module, nn.Module, nn.Module]:
    """Our state dict, and the embedder, aggregator and predictor that it fits."""
    state, unknown = {}, []
    for key, value in weights.items():
        name = _our_name(key)
        if name is None:
            unknown.append(key)
        else:
            state[name] = value

    linear = "predictor.3.weight" not in weights
    try:
        dim = len(weights["predictor.0.weight" if linear else "predictor.3.weight"])
        width, predictor_width = weights["agg_token"].shape[-1], weights["predictor.0.weight"].shape[1]
        layers = {int(m[1]) for key in weights if (m := re.search(r"encoder\.layers\.(\d+)\.", key))}
        depth = len(layers)
        mlp_ratio = len(weights["transformer_encoder.transformer_encoder.layers.0.linear1.weight"]) // width
    except (KeyError, ValueError, IndexError, ZeroDivisionError) as error:
        raise ValueError(
            f"The checkpoint lacks weights of a transformer over [AGG]; it has {_listed(weights)}."
        ) from error
    if layers != set(range(depth)):
        raise ValueError(f"The checkpoint's layers must be numbered from 0 without a gap; got {sorted(layers)[:12]}.")
    embed_dim = predictor_width - width
    if width - dim != embed_dim or embed_dim < 0:
        raise ValueError(
            f"A token is an encoder output ({dim}) and an action embedding, and the predictor reads one more of those; "
            f"got tokens {width} wide and a predictor that reads {predictor_width}."
        )

    projection = weights.get("action_proj.0.weight")
    if embed_dim == 0:
        embedder: nn.Module = NoActions()
        # The PLS model keeps an embedder it never uses when it is trained without actions.
        state = {key: value for key, value in state.items() if not key.startswith("embedder.")}
    elif projection is not None:
        if projection.ndim != 2 or projection.shape[1] < 1:
            raise ValueError(f"action_proj.0.weight must be (E, A); got shape {tuple(projection.shape)}.")
        embedder = ActionEmbedder(projection.shape[1], len(projection))
    else:
        embedder = RawActions(embed_dim)
    aggregator = SequenceAggregator(width, depth=depth, heads=heads, mlp_ratio=mlp_ratio)
    hidden = None if linear else len(weights["predictor.0.weight"])
    predictor = ConditionedPredictor(width, embed_dim, dim, hidden)
    if unknown:
        raise ValueError(
            "The checkpoint has weights that neither released model has, and that are no known probe: "
            f"{_listed(unknown)}. Remove them from the mapping if they are yours."
        )
    return state, embedder, aggregator, predictor


def _our_name(key: str) -> str | None:
    """Our name of a released weight; None if there is no such weight."""
    if key == "agg_token":
        return "aggregator.token"
    head, _, rest = key.partition(".")
    if head == "encoder":
        return key
    if head == "target_encoder":
        return f"target.encoder.{rest}"
    if head == "predictor":
        return f"predictor.layers.{rest}"
    if key == "action_proj.0.weight":
        return "embedder.projection.0.weight"
    if key.startswith("action_proj.1."):
        return "embedder.normalization." + key.removeprefix("action_proj.1.")
    if key in ("transformer_encoder.norm.weight", "transformer_encoder.norm.bias"):
        return "aggregator." + rest
    match = re.fullmatch(r"transformer_encoder\.transformer_encoder\.layers\.(\d+)\.(.+)", key)
    if match:
        for theirs, ours in LAYER.items():
            if match[2] == theirs or match[2].startswith(theirs + "."):
                return f"aggregator.layers.{match[1]}.{ours}{match[2].removeprefix(theirs)}"
    return None


def _resnet18(weights: Mapping[str, Tensor]) -> nn.Module:
    """The released encoder, with the stem that the weights tell."""
    conv1 = weights.get("conv1.weight")
    if conv1 is None or conv1.ndim != 4:
        raise ValueError(
            f"The released encoder is a ResNet-18; got the encoder weights {_listed(weights)}. For another encoder "
            "pass a module that takes them: load_released(source, encoder=...)."
        )
    return timm_encoder("resnet18", cifar_stem=conv1.shape[-1] == 3, in_chans=conv1.shape[1])


def _listed(keys: Any) -> str:
    keys = sorted(map(str, keys))
    return ", ".join(keys[:12]) + (f" and {len(keys) - 12} more" if len(keys) > 12 else "") if keys else "nothing"
