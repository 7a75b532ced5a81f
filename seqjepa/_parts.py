"""The parts of a model: the paper's built around an encoder, a user's own held to what the others hand over."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from seqjepa._checks import unwrap, weight_of
from seqjepa._modes import eval_mode, fresh_casts
from seqjepa.actions import ActionEmbedder
from seqjepa.aggregator import SequenceAggregator
from seqjepa.causal import CausalAggregator
from seqjepa.encoders import feature_width
from seqjepa.predictor import ConditionedPredictor
from seqjepa.target import EMATarget, Momentum

__all__ = [
    "Target",
    "check_instances",
    "check_takes_mask",
    "check_widths",
    "parts_around",
    "target_of",
    "timm_view_shape",
]

Target = nn.Module | Callable[[nn.Module], nn.Module]  # a target, or what makes one of the encoder


def parts_around(
    encoder: nn.Module,
    view_shape: tuple[int, ...],
    action_dim: int,
    embedder: nn.Module | None,
    aggregator: nn.Module | None,
    predictor: nn.Module | None,
    heads: int,
) -> tuple[nn.Module, nn.Module, nn.Module]:
    """Embedder, aggregator and predictor: those that are given, if they fit the encoder, and the paper's for the rest.

    Nothing is asked of a part but what it does with blanks in eval mode; random numbers are drawn by what is built.
    """
    check_instances(encoder=encoder, embedder=embedder, aggregator=aggregator, predictor=predictor)
    dim = feature_width(encoder, view_shape)
    embedder = ActionEmbedder(action_dim) if embedder is None else embedder
    embed_dim: Any = getattr(embedder, "embed_dim", None)
    if not isinstance(embed_dim, int):
        raise TypeError(
            f"An embedder says how wide its embeddings are by embed_dim, a whole number; {type(embedder).__name__} "
            f"has {'none' if embed_dim is None else embed_dim}. Set self.embed_dim in its __init__."
        )
    if aggregator is None:
        aggregator, state_dim = SequenceAggregator(dim + embed_dim, heads=heads), dim + embed_dim
    else:
        state_dim = _state_width(aggregator, dim, embed_dim, weight_of(encoder))
    if predictor is None:
        return embedder, aggregator, ConditionedPredictor(state_dim=state_dim, action_dim=embed_dim, dim=dim)
    _check_predictor(predictor, state_dim, embed_dim, dim, weight_of(encoder))
    return embedder, aggregator, predictor


def check_instances(**parts: Any) -> None:
    """Raise where a class stands in the place of a part; None stands for the paper's."""
    for role, part in parts.items():
        if isinstance(part, type):
            raise TypeError(f"{role} is a module; got the class {part.__name__}: call it with its widths.")


def target_of(encoder: nn.Module, target: Target | None, momentum: Momentum) -> nn.Module:
    """The target that is given or made of the encoder, or the paper's."""
    if target is None:
        return EMATarget(encoder, momentum)
    made = target if isinstance(target, nn.Module) or not callable(target) else target(encoder)
    if not isinstance(made, nn.Module):
        raise TypeError(
            f"target is a module, or makes one of the encoder, such as StopGradientTarget; got {type(made).__name__}."
        )
    return made


def check_widths(embedder: nn.Module, aggregator: nn.Module, predictor: nn.Module) -> None:
    """Raise where two of our own parts do not fit; parts of the user's own answer for themselves."""
    if not isinstance(predictor, ConditionedPredictor):
        return
    embed_dim = int(getattr(embedder, "embed_dim", predictor.action_dim))
    if predictor.action_dim != embed_dim:
        raise ValueError(
            f"The predictor reads embedded actions {predictor.action_dim} wide; the embedder makes them {embed_dim} "
            f"wide. Build ConditionedPredictor(..., action_dim={embed_dim})."
        )
    if isinstance(aggregator, SequenceAggregator | CausalAggregator):
        if aggregator.dim != predictor.state_dim:
            raise ValueError(
                f"The predictor reads states {predictor.state_dim} wide; the aggregator makes them {aggregator.dim} "
                f"wide. Build ConditionedPredictor(state_dim={aggregator.dim}, ...)."
            )
        if aggregator.dim != predictor.dim + embed_dim:
            raise ValueError(
                f"A token is an encoder output ({predictor.dim}, what the predictor predicts) and an embedded action "
                f"({embed_dim}): {predictor.dim + embed_dim} wide; the aggregator takes {aggregator.dim}. "
                f"Build {type(aggregator).__name__}({predictor.dim + embed_dim})."
            )


def check_takes_mask(aggregator: nn.Module) -> None:
    """Raise unless a mask can be handed to the aggregator: one that does not ask for it would read the padding."""
    if torch.compiler.is_compiling():  # which calls it either way, and has no signatures
        return
    part = unwrap(aggregator)
    if isinstance(part, SequenceAggregator | CausalAggregator):
        return
    signature = inspect.signature(part.forward)
    try:
        signature.bind(None, None)
    except TypeError:
        raise TypeError(
            "Sequences of several lengths need an aggregator that is told which views count, forward(tokens, mask); "
            f"{type(part).__name__}.forward takes {signature}. Give it a mask (B, T) to heed, or call the model "
            "without one, on sequences of one length."
        ) from None


def timm_view_shape(encoder: nn.Module, img_size: int | tuple[int, int] | None, channels: int) -> tuple[int, ...]:
    """The shape of a view that a timm encoder takes: what the caller says, else a small one that it can encode."""
    config: Any = encoder.pretrained_cfg
    full = (channels, *config["input_size"][1:])
    if img_size is not None:
        return (channels, img_size, img_size) if isinstance(img_size, int) else (channels, *img_size)
    if config.get("fixed_input_size"):
        return full
    least = max([64, *(config.get("min_input_size") or ())[1:]])
    try:
        feature_width(encoder, (channels, least, least))
    except ValueError:  # such as Inception, whose strides leave nothing of 64 pixels
        return full
    return (channels, least, least)


def _state_width(aggregator: nn.Module, dim: int, embed_dim: int, weight: Tensor | None) -> int:
    """S, or an error where tokens of D and E numbers are not what the aggregator takes."""
    part, token_dim = unwrap(aggregator), dim + embed_dim
    name = type(part).__name__
    made_of = f"{token_dim} wide: {dim} of the encoder and {embed_dim} of the embedder, side by side"
    if isinstance(part, SequenceAggregator | CausalAggregator):
        if part.dim != token_dim:
            raise ValueError(f"Tokens are {made_of}; the aggregator takes {part.dim}. Build {name}({token_dim}).")
        return part.dim
    rule = f"Its tokens are {made_of}; without a mask it is called with them alone."
    state = _of_blanks(part, "aggregator", [(2, token_dim)], weight, rule)
    if not isinstance(state, Tensor) or state.ndim != 2 or len(state) != 1:
        got = tuple(state.shape) if isinstance(state, Tensor) else type(state).__name__
        raise ValueError(
            f"An aggregator makes one state of each sequence, tokens (B, T, D + E) → (B, S); of tokens (1, 2, "
            f"{token_dim}) {name} made {got}. Let it return one vector a sequence, such as that of the last view."
        )
    return state.shape[1]


def _check_predictor(predictor: nn.Module, state_dim: int, embed_dim: int, dim: int, weight: Tensor | None) -> None:
    """Raise unless the predictor makes encoder outputs of such states and embedded actions."""
    part = unwrap(predictor)
    widths = f"state_dim={state_dim}, action_dim={embed_dim}, dim={dim}"
    if isinstance(part, ConditionedPredictor):
        if (part.state_dim, part.action_dim, part.dim) != (state_dim, embed_dim, dim):
            raise ValueError(
                f"The predictor was built with state_dim={part.state_dim}, action_dim={part.action_dim}, "
                f"dim={part.dim}; around this encoder they are {widths}. Build ConditionedPredictor({widths})."
            )
        return
    rule = f"It is called with states {state_dim} wide and embedded actions {embed_dim} wide."
    predicted = _of_blanks(part, "predictor", [(state_dim,), (embed_dim,)], weight, rule)
    got = tuple(predicted.shape) if isinstance(predicted, Tensor) else type(predicted).__name__
    if got != (1, dim):
        raise ValueError(
            f"A predictor makes what the encoder makes, (B, {dim}); of one state and one action "
            f"{type(part).__name__} made {got}. Let it end {dim} wide."
        )


@torch.no_grad()
def _of_blanks(part: nn.Module, role: str, shapes: list[tuple[int, ...]], weight: Tensor | None, rule: str) -> Any:
    """What a user's own part makes of one row of zeros each, in eval mode."""
    own = weight_of(part)
    like = next((w for w in (own, weight) if w is not None), torch.empty(0, device="cpu"))
    blanks = [torch.zeros(1, *shape, device=like.device, dtype=like.dtype) for shape in shapes]
    with eval_mode(part), fresh_casts(like.device):
        try:
            return part(*blanks)
        except (RuntimeError, AssertionError, IndexError, ValueError, TypeError) as error:
            raise ValueError(
                f"A part is tried on zeros when the model is built; the {role} {type(part).__name__} cannot take "
                f"{' and '.join(str(tuple(blank.shape)) for blank in blanks)}: {str(error).rstrip('.')}. {rule}"
            ) from error
