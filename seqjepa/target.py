"""Target encoders: where the representation to be predicted comes from."""

from __future__ import annotations

import contextlib
import copy
import functools
import pickle
from collections.abc import Callable
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils import prune
from torch.overrides import TorchFunctionMode

from seqjepa._checks import plain_names, unwrap, weight_of
from seqjepa._modes import autocast, fresh_casts
from seqjepa._shards import held, is_sharded, reshard, sharded_as
from seqjepa.encoders import encode_views
from seqjepa.functional import CosineSchedule

__all__ = ["EMATarget", "OnlineTarget", "StopGradientTarget"]

Momentum = float | Callable[[int], float]


class EMATarget(nn.Module):
    """A copy of the encoder that follows it slowly: t ← m t + (1 − m) o after every step.

    The copy lives in its own storage, never requires a gradient, and stays in float32 when the encoder is in lower
    precision, where steps of (1 − m) would be rounded away. Weights that are no floating-point numbers are copied, not
    averaged. A hook of somebody outside, such as a probe's, stays with the encoder; one that belongs to the encoder
    itself, or that computes a weight (pruning, weight norm), comes along. Batch-norm statistics are, by `buffers`:

    - "own": gathered from the target's own batches. The target follows the model's training mode, so in training it
      normalises by its own batch. The paper's.
    - "copy": copied from the encoder at every update, with all its other buffers.
    - "ema": averaged like the weights; all other buffers are copied.

    With "own", dropout acts in the target too while it trains, as in the paper's (whose encoder has none). With "copy"
    and "ema" the target is always in eval mode: it normalises by those statistics and never moves them.

    Args:
        encoder: the encoder to copy, compiled or not; its weights of this moment are the start.
        momentum: m in [0, 1], or a schedule from the number of updates done to m, such as
            [`CosineSchedule(0.996, 1.0, total_steps)`][seqjepa.functional.CosineSchedule], the paper's, which is
            computed where the weights lie. A function of your own is called with an int, which a GPU is waited for.
        buffers: "own", "copy" or "ema".

    Shapes:
        views (B, …) → (B, D), whatever the encoder takes.

    Raises:
        ValueError: a momentum outside [0, 1]; unknown `buffers`; an encoder that has not made its weights yet (lazy
            modules), or is sharded already; at an update, an encoder with weights of other names or shapes.
        TypeError: an encoder that cannot be copied.

    Source:
        Tarvainen & Valpola 2017 (arXiv 1703.01780); Grill et al. 2020 (arXiv 2006.07733); momentum after Ghaemi et al.
        2025, moved every step.

    Examples:
        >>> import torch
        >>> encoder = torch.nn.Linear(3, 2)
        >>> target = EMATarget(encoder, momentum=0.5)
        >>> with torch.no_grad():
        ...     before = target.encoder.weight.clone()
        ...     _ = encoder.weight.add_(1.0)
        >>> target.update(encoder)
        >>> torch.allclose(target.encoder.weight, before + 0.5, atol=1e-6), target.step
        (True, 1)
    """

    encoder: Any
    _step: Tensor

    def __init__(
        self, encoder: nn.Module, momentum: Momentum = 0.996, *, buffers: Literal["own", "copy", "ema"] = "own"
    ) -> None:
        super().__init__()
        ends = (momentum.start, momentum.end) if isinstance(momentum, CosineSchedule) else (momentum,)
        if not all(callable(m) or 0 <= m <= 1 for m in ends):
            raise ValueError(f"momentum must be in [0, 1], or a schedule of the step; got {momentum}.")
        if buffers not in ("own", "copy", "ema"):
            raise ValueError(f"buffers must be 'own', 'copy' or 'ema'; got {buffers!r}.")
        self.momentum = momentum
        self.buffer_mode = buffers
        self.encoder = _copied(unwrap(encoder))
        weights = [p for p in self.encoder.parameters() if p.is_floating_point()]
        half = next((p.dtype for p in weights if _is_half(p)), torch.float32)
        self._like = torch.empty(0, dtype=half, device="cpu")  # in the precision that the encoder works in
        _keep_float32(self)
        self.register_load_state_dict_post_hook(_keep_float32)  # weights that are assigned come as they are
        # A tensor: a number would be compiled into a step anew each time, and not be sent to other processes.
        weight = weight_of(self.encoder)
        device = None if weight is None else weight.device
        self.register_buffer("_step", torch.zeros((), dtype=torch.int64, device=device), persistent=False)
        if buffers == "own":
            self.training = encoder.training  # submodules keep the modes they were copied with
        else:
            self.train()

    @property
    def step(self) -> int:
        """The number of updates done. Reading it waits for the GPU if the target lies on one."""
        return int(self._step)

    @step.setter
    def step(self, step: int) -> None:
        self._step.fill_(step)

    @torch.no_grad()
    def forward(self, views: Float[Tensor, "B *image"]) -> Float[Tensor, "B D"]:
        """Encode one view of each source, without gradient."""
        # The encoder may work in half precision, from such views or by its own casts; the weights here are float32.
        half = next((like.dtype for like in (views, self._like) if _is_half(like)), None)
        with contextlib.nullcontext() if half is None else autocast(views.device, half):
            return encode_views(self.encoder, views[:, None])[:, 0]

    @torch.no_grad()
    def update(self, encoder: nn.Module) -> None:
        """Move one step towards `encoder`, by the momentum of this step: call it after each optimiser step.

        Args:
            encoder: the online encoder, compiled or wrapped in DistributedDataParallel or not. It, the copy or both may
                be sharded by `fully_shard`, alike or not; call it on all ranks then. Whole weights that a pass without
                a backward left in the place of shards are given back first.

        Raises:
            ValueError: its parameters or buffers are not those of the copy; FullyShardedDataParallel.
        """
        reshard(self.encoder, encoder)
        momentum = self._momentum()
        averaged: list[tuple[Tensor, Tensor]] = []
        copied: list[tuple[Tensor, Tensor]] = []
        for _, (mine, theirs) in _pairs("parameters", self.encoder, encoder):
            (averaged if mine.is_floating_point() or mine.is_complex() else copied).append((mine, theirs))
        if self.buffer_mode != "own":
            for name, pair in _pairs("buffers", self.encoder, encoder):
                statistic = name.rpartition(".")[2] in ("running_mean", "running_var")
                (averaged if statistic and self.buffer_mode == "ema" else copied).append(pair)
        if averaged:  # one fused call; a pair of other types cannot be fused before it is cast
            copies = [mine for mine, _ in averaged]
            online = [theirs.to(mine.dtype) for mine, theirs in averaged]
            torch._foreach_lerp_(copies, online, _weights(1 - momentum, copies))
        for mine, theirs in copied:
            mine.copy_(theirs)
        self._step.add_(1)

    def _momentum(self) -> float | Tensor:
        """The momentum of this update: a tensor where the schedule can be computed where the weights lie."""
        if not callable(self.momentum):
            return self.momentum
        if isinstance(self.momentum, CosineSchedule):
            return self.momentum(self._step)
        step = self.step
        momentum = float(self.momentum(step))
        if not 0 <= momentum <= 1:
            raise ValueError(f"momentum must be in [0, 1]; the schedule gave {momentum} at step {step}.")
        return momentum

    def train(self, mode: bool = True) -> EMATarget:
        """Follow the model's mode with `buffers="own"`; stay in eval mode otherwise."""
        return super().train(mode and self.buffer_mode == "own")

    def get_extra_state(self) -> Tensor:
        """The number of updates done, which a resumed schedule goes on from."""
        return self._step.clone()

    def set_extra_state(self, state: Any) -> None:
        """Go on from that number of updates."""
        # A model built on the meta device has no place of its own yet: what it is given tells where it will be.
        step = state if isinstance(state, Tensor) else torch.tensor(state, device="cpu")
        self._step = step.to(step.device if self._step.is_meta else self._step.device, torch.int64, copy=True)

    def extra_repr(self) -> str:
        """Momentum, buffers and step, for `print`."""
        step = "?" if self._step.is_meta else self.step
        return f"momentum={self.momentum}, buffers={self.buffer_mode!r}, step={step}"

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> EMATarget:
        self._like = fn(self._like)

        def keep_float32(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            return torch.empty_like(moved, dtype=torch.float32).copy_(tensor) if _is_half(moved) else moved

        return super()._apply(keep_float32, recurse)


class _TheEncoderItself(nn.Module):
    """A target that is the online encoder: it shares its weights, and adds none to the model's."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self._encoder = (encoder,)  # a tuple hides it from the module tree: its weights belong to the model alone

    def update(self, encoder: nn.Module) -> None:
        """Nothing to average: only remember which encoder is the online one."""
        self._encoder = (encoder,)


class StopGradientTarget(_TheEncoderItself):
    """The online encoder itself, without gradient: for training without an EMA.

    It shares the encoder's weights and adds none to the state dict. In training mode the encoder's batch-norm
    statistics move once more per forward, for the predicted view. Give the loss a regulariser, or watch for collapse.

    Args:
        encoder: the online encoder.

    Shapes:
        views (B, …) → (B, D).

    Examples:
        >>> import torch
        >>> encoder = torch.nn.Linear(3, 2)
        >>> target = StopGradientTarget(encoder)
        >>> target(torch.randn(5, 3)).requires_grad, list(target.parameters())
        (False, [])
    """

    @torch.no_grad()
    def forward(self, views: Float[Tensor, "B *image"]) -> Float[Tensor, "B D"]:
        """Encode one view of each source, without gradient."""
        with fresh_casts(views.device):
            return encode_views(self._encoder[0], views[:, None])[:, 0]


class OnlineTarget(_TheEncoderItself):
    """The online encoder itself, with gradient: the encoder learns from both sides of the loss.

    It shares the encoder's weights and adds none to the state dict. In training mode the encoder's batch-norm
    statistics move once more per forward, for the predicted view. Nothing but a regulariser holds it back: without one
    the shortest way to agree is to make every view the same vector. Give the loss a [`SIGReg`][seqjepa.SIGReg].

    Args:
        encoder: the online encoder.

    Shapes:
        views (B, …) → (B, D).

    Source:
        Maes et al. 2026 (arXiv 2603.19312), LeWorldModel; on invariance Balestriero & LeCun 2025 (arXiv 2511.08544).

    Examples:
        >>> import torch
        >>> encoder = torch.nn.Linear(3, 2)
        >>> target = OnlineTarget(encoder)
        >>> target(torch.randn(5, 3)).requires_grad, list(target.parameters())
        (True, [])
    """

    def forward(self, views: Float[Tensor, "B *image"]) -> Float[Tensor, "B D"]:
        """Encode one view of each source."""
        return encode_views(self._encoder[0], views[:, None])[:, 0]


class _CopyActivations(TorchFunctionMode):
    """While an encoder is copied: what it has kept of a pass, such as its last features, is copied without history."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.__deepcopy__ and not args[0].is_leaf:
            tensor, memo = args
            return memo.setdefault(id(tensor), tensor.detach().clone())
        return func(*args, **(kwargs or {}))


HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")
HOOK_FLAGS = ("_forward_pre_hooks_with_kwargs", "_forward_hooks_with_kwargs", "_forward_hooks_always_called")


def _copied(encoder: nn.Module) -> Any:
    """A plain copy of an encoder: no wrappers, no gradients, and none of the hooks that belong to somebody outside."""
    if any(is_lazy(tensor) for tensor in [*encoder.parameters(), *encoder.buffers()]):
        raise ValueError(
            "The target is a copy of the encoder, which has lazy modules that have not made their weights yet. Encode "
            "one batch first, or build the model with SeqJEPA.from_encoder, which does."
        )
    if any(is_sharded(parameter) for parameter in encoder.parameters()):
        raise ValueError(
            "The target is a copy of the encoder, whose weights are sharded over ranks already. Build the model first, "
            "and call fully_shard after."
        )
    registries = [getattr(module, name) for module in encoder.modules() for name in (*HOOKS, *HOOK_FLAGS)]
    memo: dict[int, Any] = {id(registry): type(registry)() for registry in registries}  # hooks are not copied with it
    try:
        with _CopyActivations():
            twin = copy.deepcopy(encoder, memo)
            for module in encoder.modules():
                _copy_own_hooks(module, memo)
    except (TypeError, RuntimeError, pickle.PicklingError) as error:
        raise TypeError(
            f"The target is a copy of the encoder; {type(encoder).__name__} cannot be copied: {error}. Keep what "
            "cannot be copied out of the module's attributes, or give the module a __deepcopy__."
        ) from error
    twin = _plain(twin).requires_grad_(False)
    for parameter in twin.parameters():
        parameter.grad = None
    return twin


def _copy_own_hooks(module: nn.Module, memo: dict[int, Any]) -> None:
    """Give a module's copy the hooks that compute a weight, or whose owner is part of what was copied."""
    twin = memo.get(id(module))
    for name in HOOKS:
        for key, hook in getattr(module, name).items():
            owner = hook
            while isinstance(owner, functools.partial):
                owner = owner.func
            owner = getattr(owner, "__self__", owner)
            theirs = type(owner).__module__.startswith("torch.nn.utils.") or isinstance(owner, prune.BasePruningMethod)
            if twin is not None and (theirs or id(owner) in memo):
                getattr(twin, name)[key] = copy.deepcopy(hook, memo)
                for flags in HOOK_FLAGS:
                    if flags.startswith(name) and key in getattr(module, flags):
                        getattr(twin, flags)[key] = True


def _plain(module: nn.Module) -> nn.Module:
    """The module with every `torch.compile` or DistributedDataParallel wrapper in it taken off."""
    for name, child in module.named_children():
        setattr(module, name, _plain(child))
    return unwrap(module)


def _weights(weight: float | Tensor, copies: list[Tensor]) -> Any:
    """The weight of an interpolation, as `torch._foreach_lerp_` takes it."""
    if not isinstance(weight, Tensor):
        return weight
    cast = {kind: weight.to(*kind) for kind in {(copy.device, copy.dtype) for copy in copies}}
    return [cast[copy.device, copy.dtype] for copy in copies]


def _keep_float32(target: EMATarget, _: Any = None) -> None:
    """The copy in float32, whatever precision its weights came in."""
    target.encoder._apply(lambda tensor: tensor.float() if _is_half(tensor) else tensor)


def _is_half(tensor: Tensor) -> bool:
    return tensor.dtype in (torch.bfloat16, torch.float16)


def _pairs(kind: str, mine: nn.Module, theirs: nn.Module) -> list[tuple[str, tuple[Tensor, Tensor]]]:
    """Each tensor of the copy beside the encoder's of that name, or an error before anything has moved."""
    copies, online = _tensors(kind, mine), _tensors(kind, theirs)
    other = [
        *(f"{name} is new" for name in online if name not in copies),
        *(f"{name} is gone" for name in copies if name not in online),
        *(
            f"{name} is {tuple(online[name].shape)} instead of {tuple(copy.shape)}"
            for name, copy in copies.items()
            if name in online and online[name].shape != copy.shape
        ),
    ]
    if other:
        raise ValueError(
            f"The target follows the encoder it was copied from; the {kind} of the one given differ in number or shape "
            f"({len(copies)} here, {len(online)} there) or in name: {', '.join(other[:4])}{', …' * bool(other[4:])}. "
            "Build a new EMATarget for a new encoder, and for one that was given LoRA, pruning or parametrizations."
        )
    pairs: dict[int, tuple[str, tuple[Tensor, Tensor]]] = {}
    for name, copy_ in copies.items():  # what two modules share moves once
        pairs.setdefault(id(copy_), (name, (copy_, online[name])))
    for _, (t, o) in pairs.values():
        if t.device != o.device:
            raise ValueError(
                f"Target and encoder must lie on one device; got {t.device} and {o.device}. Move the target with .to()."
            )
    return [(name, (held(t), held(sharded_as(t, o)))) for name, (t, o) in pairs.values()]


def _tensors(kind: str, module: nn.Module) -> dict[str, Tensor]:
    """Every parameter or buffer under its plain name, those that are shared under each."""
    named = module.named_parameters if kind == "parameters" else module.named_buffers
    tensors = dict(named(remove_duplicate=False))
    return dict(zip(plain_names(module, tensors), tensors.values(), strict=True))
