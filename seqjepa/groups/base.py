"""What every group of actions can do."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from jaxtyping import Float
from torch import Tensor

from seqjepa._checks import check_floating, check_tensor

__all__ = ["FixedGroup", "Group", "all_true", "check_elements", "check_values", "readable"]


class Group(ABC):
    """A group of actions: how two views differ, how actions follow one another, and how far apart two of them are.

    For parameters t of views and actions a, b (and however many axes in front, which broadcast):

    - `apply(t0, relative(t0, t1)) = t1`;
    - `compose(relative(t0, t1), relative(t1, t2)) = relative(t0, t2)`: first the one, then the other;
    - `compose` is associative, `compose(a, inverse(a)) = identity()`;
    - `distance(a, b) = 0` just where a and b are the same action.

    Local coordinates v, of which there are `local_dim`, are plain numbers for what searches, adds noise or regresses:
    all of them are actions, `exp(v)`, and small ones are small actions.

    - `log(exp(v)) = v` for v up to half way round, on a line everywhere;
    - `exp(0) = identity()`, `exp(log(a)) = a`;
    - `distance(exp(v), identity()) = |v|`, in the units of the distance, up to half way round.

    Operations are tensor code for any device, differentiable, and run under `torch.func.vmap` and inside a graph.
    Shapes are always checked. Values that have rules, such as lengths of quaternions, are read on the CPU alone: on a
    GPU that would make the host wait. There, and under `vmap` and inside a graph, what breaks a rule gives what the
    formula makes of it.

    A group of your own subclasses this and defines the abstract methods and `dim`; `local_dim`, `exp` and `log` where
    something asks for local coordinates.

    Examples:
        >>> import torch
        >>> from seqjepa.groups import Rotation2D
        >>> group = Rotation2D()
        >>> angles = torch.tensor([[0.0], [2.0], [4.0], [6.0]])                # of four views, radians
        >>> group.actions(angles).flatten()                                    # three times two radians
        tensor([2., 2., 2.])
        >>> group.path_composition(group.actions(angles))                      # from the first view to the last
        tensor([-0.2832])
        >>> group.exp(torch.tensor([1.5 * torch.pi]))                          # three quarters on is a quarter back
        tensor([-1.5708])
    """

    @property
    @abstractmethod
    def dim(self) -> int:
        """Numbers in an action, and in the parameters of a view."""

    @abstractmethod
    def identity(
        self, *, dtype: torch.dtype | None = None, device: torch.device | str | None = None
    ) -> Float[Tensor, "A"]:
        """The action that changes nothing, (A,)."""

    @abstractmethod
    def relative(self, t0: Float[Tensor, "*#B A"], t1: Float[Tensor, "*#B A"]) -> Float[Tensor, "*B A"]:
        """The action that takes a view of parameters t0 to one of parameters t1."""

    @abstractmethod
    def apply(self, t: Float[Tensor, "*#B A"], a: Float[Tensor, "*#B A"]) -> Float[Tensor, "*B A"]:
        """The parameters of the view to which the action leads."""

    @abstractmethod
    def compose(self, a: Float[Tensor, "*#B A"], b: Float[Tensor, "*#B A"]) -> Float[Tensor, "*B A"]:
        """The action that does what `a` and then `b` do."""

    @abstractmethod
    def inverse(self, a: Float[Tensor, "*#B A"]) -> Float[Tensor, "*B A"]:
        """The action that leads back."""

    @abstractmethod
    def distance(self, a: Float[Tensor, "*#B A"], b: Float[Tensor, "*#B A"]) -> Float[Tensor, "*B"]:
        """How far apart two actions are, at least 0, in the units that the group states."""

    @abstractmethod
    def describe(self, a: Float[Tensor, "A"]) -> str:
        """One action in words and plain units, for a picture's caption."""

    @property
    def local_dim(self) -> int:
        """Numbers in the local coordinates of an action: as many as there are ways to go."""
        raise self._no_coordinates()

    def exp(self, v: Float[Tensor, "*B n"]) -> Float[Tensor, "*B A"]:
        """The action of local coordinates, (…, n) → (…, A)."""
        raise self._no_coordinates()

    def log(self, a: Float[Tensor, "*B A"]) -> Float[Tensor, "*B n"]:
        """The local coordinates of an action, the shortest where several lead to it, (…, A) → (…, n)."""
        raise self._no_coordinates()

    def actions(self, parameters: Float[Tensor, "*B views A"]) -> Float[Tensor, "*B T A"]:
        """The actions between consecutive views, (…, T+1, A) → (…, T, A)."""
        self._check(parameters=parameters)
        return self.relative(parameters[..., :-1, :], parameters[..., 1:, :])

    def path_composition(self, actions: Float[Tensor, "*B T A"]) -> Float[Tensor, "*B A"]:
        """The one action that a path of actions amounts to, (…, T, A) → (…, A): what path integration must predict.

        It leads from the view before the path to the view after it; no actions amount to the identity.
        """
        self._check(actions=actions)
        if actions.ndim < 2:
            raise ValueError(f"A path of actions has the axes (…, T, A); got shape {tuple(actions.shape)}.")
        identity = self.identity(dtype=actions.dtype, device=actions.device)
        total = identity.expand(actions[..., :0, :].sum(dim=-2).shape)
        for t in range(actions.shape[-2]):
            total = self.compose(total, actions[..., t, :])
        return total

    def along(self, actions: Float[Tensor, "*B T A"]) -> Float[Tensor, "*B T_plus_1 A"]:
        """The action from the view before a path to each view on it, (…, T, A) → (…, T+1, A); first the identity.

        The last is [`path_composition`][seqjepa.groups.Group.path_composition].
        """
        path = [self.path_composition(actions[..., :0, :])]
        for t in range(actions.shape[-2]):
            path.append(self.compose(path[-1], actions[..., t, :]))
        return torch.stack(path, dim=-2)

    def _check(self, **elements: Tensor) -> None:
        check_elements(type(self).__name__, self.dim, **elements)

    def _check_local(self, v: Tensor) -> None:
        check_elements(f"{type(self).__name__}'s local coordinates", self.local_dim, v=v)

    def _no_coordinates(self) -> NotImplementedError:
        return NotImplementedError(
            f"{type(self).__name__} has no local coordinates yet. Give it local_dim, exp and log: from plain numbers "
            "to actions and back."
        )

    def _check_one(self, a: Tensor) -> None:
        self._check(a=a)
        if a.ndim != 1:
            raise ValueError(f"describe takes one action, ({self.dim},); got shape {tuple(a.shape)}. Take one row.")


class FixedGroup(Group):
    """A group that is known by its settings: equal to those with the same, and never changed.

    No dataclass, which would give as much: libraries that go through batches take dataclasses apart to convert the
    tensors in them, and fail at those that cannot be changed.
    """

    def _settle(self, **settings: object) -> None:
        vars(self).update(settings)

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(
            f"{type(self).__name__} cannot be changed; build another: {type(self).__name__}({name}=…)."
        )

    def __delattr__(self, name: str) -> None:
        raise AttributeError(f"{type(self).__name__} cannot be changed.")

    def __eq__(self, other: object) -> bool:
        """Whether it is of the same kind, with the same settings."""
        return type(other) is type(self) and vars(other) == vars(self)

    def __hash__(self) -> int:
        return hash((type(self), *vars(self).values()))

    def __repr__(self) -> str:
        """As it is built."""
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in vars(self).items())})"


def check_elements(group: str, dim: int, **elements: Tensor) -> None:
    """Raise unless each is a floating tensor whose last axis has `dim` numbers."""
    for name, element in elements.items():
        check_tensor(name, element)
        if element.ndim == 0 or element.shape[-1] != dim:
            raise ValueError(
                f"{name} must hold the {dim} number{'s' * (dim != 1)} of {group} along the last axis; "
                f"got shape {tuple(element.shape)}."
            )
        check_floating(name, element)


def readable(x: Tensor) -> bool:
    """Whether values may be read: on the CPU. Another device would have to be waited for, a graph has none yet."""
    return x.device.type == "cpu" and not torch.compiler.is_compiling()


def all_true(valid: Tensor) -> bool | None:
    """Whether all are True; None where that cannot be read."""
    if not readable(valid):
        return None
    try:
        return bool(valid.all())
    except RuntimeError:  # torch's answer under vmap and of fake tensors
        return None


def check_values(valid: Tensor, values: Tensor, rule: str, way_out: str) -> None:
    """Raise where some are known not to be valid, and say which value was not."""
    if all_true(valid) is not False:
        return
    where = tuple((~valid).nonzero()[0].tolist())
    came = values.broadcast_to(valid.shape)[where].item()
    raise ValueError(f"{rule}; got {came:.4g} at {list(where)}. {way_out}")
