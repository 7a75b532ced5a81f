"""Small regression MLPs, fitted side by side by minibatches with early stopping. None draws of the global generator."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

__all__ = ["Problem", "fit_mlps"]

BATCH, SMALL = 256, 64  # rows of a batch, at most, and at least
BATCHES = 14  # an epoch, at least, unless they would be smaller than that
LEARNING_RATE = 1e-3
MEMORY = 0.99  # of the average of the weights
ROUND = 64  # steps between two looks at the held-out rows, at least
GAIN = 1e-3  # what counts as progress: held-out error, in variances of the standardised targets, so R²
PATIENCE = 3  # rounds without it
TOGETHER = 2**26  # numbers of the features that are fitted to side by side

Fit = tuple[Callable[[Tensor], Tensor], int]


class Problem(NamedTuple):
    """What one MLP is fitted to: features, targets, which rows are held out, and what draws weights and batches."""

    x: Float[Tensor, "N D"]
    y: Float[Tensor, "N K"]
    held: Bool[Tensor, "N"]
    generator: torch.Generator


def fit_mlps(problems: Sequence[Problem], hidden: tuple[int, ...], max_epochs: int) -> list[Fit]:
    """For each problem the MLP of least held-out error on the way, and the steps it took.

    Adam at a constant rate. Batches of 256 rows, and of small sets of a fourteenth, 64 at least: half the work, at as
    much R². What is looked at, and kept, is an exponential average of the weights: it has the low error
    that others get from a falling rate, without having to know beforehand how long to train. The last layer begins at
    zero, so the first candidate is the mean of the targets, and no later one is kept that does worse on held-out rows.

    Each is what it would be alone. Problems of as many rows and outputs are fitted side by side, in one matrix product
    a layer: narrower features are filled up with zeros, whose weights stay zero.
    """
    fits: dict[int, Fit] = {}
    for numbers in _alike(problems):
        alike = [problems[i] for i in numbers]
        fits.update(zip(numbers, _SideBySide(alike, hidden).fit(max_epochs), strict=True))
    return [fits[i] for i in range(len(problems))]


def predict(parameters: Sequence[Tensor], x: Float[Tensor, "P N D"]) -> Float[Tensor, "P N K"]:
    """The outputs, a few thousand rows at a time."""
    return torch.cat([_forward(parameters, rows) for rows in x.split(8192, dim=1)], dim=1)


def _alike(problems: Sequence[Problem]) -> Iterator[list[int]]:
    """Numbers of problems that can be fitted side by side, and whose features fit into memory together."""
    kinds: dict[tuple[object, ...], list[int]] = {}
    for number, (x, y, held, _) in enumerate(problems):
        kinds.setdefault((len(x), int(held.sum()), y.shape[1], x.dtype, x.device), []).append(number)
    for numbers in kinds.values():
        some = max(1, TOGETHER // max(problems[number].x.numel() for number in numbers))
        yield from (numbers[start : start + some] for start in range(0, len(numbers), some))


class _SideBySide:
    """Problems of as many rows, held-out rows and outputs, and their MLPs, one to a place of the first axis.

    Attributes:
        parameters: of those that are still fitted, weights (P, in, out) and biases (P, out).
        averages: likewise.
        left: (P,) their numbers.
        batch: rows that a step learns from.
    """

    def __init__(self, problems: Sequence[Problem], hidden: tuple[int, ...]) -> None:
        self.generators = [problem.generator for problem in problems]
        self.widths = [problem.x.shape[1] for problem in problems]
        widest, outputs = max(self.widths), problems[0].y.shape[1]
        self.x = torch.stack([F.pad(problem.x, (0, widest - problem.x.shape[1])) for problem in problems])
        self.y = torch.stack([problem.y for problem in problems])
        held = torch.stack([problem.held for problem in problems]).to(self.x.device)
        self.rows = (~held).nonzero()[:, 1].view(len(problems), -1)
        self.batch = min(BATCH, max(SMALL, self.rows.shape[1] // BATCHES))
        held_rows = held.nonzero()[:, 1].view(len(problems), -1, 1)
        self.held = self.x.take_along_dim(held_rows, 1), self.y.take_along_dim(held_rows, 1)
        drawn = [
            _parameters((width, *hidden, outputs), generator, self.x)
            for width, generator in zip(self.widths, self.generators, strict=True)
        ]
        for parameters, width in zip(drawn, self.widths, strict=True):
            parameters[0] = F.pad(parameters[0], (0, 0, 0, widest - width))
        self.left = torch.arange(len(problems), device=self.x.device)
        self.averages = [torch.stack(parts) for parts in zip(*drawn, strict=True)]
        self.parameters = [part.clone().requires_grad_() for part in self.averages]
        self.optimizer = _adam(self.parameters)
        self.step = 0

    def fit(self, max_epochs: int) -> list[Fit]:
        """Train each until it makes no progress."""
        epoch = math.ceil(self.rows.shape[1] / self.batch)
        round_steps, max_steps = max(ROUND, epoch), max_epochs * epoch
        mark = [y.square().mean().item() for y in self.held[1]]
        best = [(error, 0, self._of(self.averages, place)) for place, error in enumerate(mark)]
        since, batches = [0] * len(best), self._batches()
        while self.step < max_steps and len(self.left):
            for _ in range(min(round_steps, max_steps - self.step)):
                self._learn(*next(batches))
            x, y = (part[self.left] for part in self.held)
            errors = (predict(self.averages, x) - y).square().mean(dim=(1, 2)).tolist()
            for place, (number, error) in enumerate(zip(self.left.tolist(), errors, strict=True)):
                progress = error < mark[number] - GAIN
                since[number], mark[number] = (0, error) if progress else (since[number] + 1, mark[number])
                if error < best[number][0]:
                    best[number] = error, self.step, self._of(self.averages, place)
            going = [place for place, number in enumerate(self.left.tolist()) if since[number] < PATIENCE]
            if len(going) < len(self.left):
                self._keep(torch.tensor(going, dtype=torch.long, device=self.x.device))
        return [(_Fitted(weights, width), step) for (_, step, weights), width in zip(best, self.widths, strict=True)]

    def _batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Rows of those that are still fitted, each once an epoch, in an order that each draws for itself."""
        count = self.rows.shape[1]
        while True:
            orders = self.rows.clone()
            for number in self.left.tolist():
                order = torch.randperm(count, generator=self.generators[number], device="cpu")
                orders[number] = self.rows[number, order.to(self.rows.device)]
            for rows in orders.split(self.batch, dim=1):
                at = self.left[:, None], rows[self.left]
                yield self.x[at], self.y[at]

    def _learn(self, x: Float[Tensor, "P B D"], y: Float[Tensor, "P B K"]) -> None:
        with torch.enable_grad():
            loss = (_forward(self.parameters, x) - y).square().mean(dim=(1, 2)).sum()
        gradients = torch.autograd.grad(loss, self.parameters)
        for parameter, gradient in zip(self.parameters, gradients, strict=True):
            parameter.grad = gradient
        self.optimizer.step()
        self.step += 1
        memory = min(MEMORY, self.step / (self.step + 10))  # a young average forgets its first weights sooner
        torch._foreach_lerp_(self.averages, [p.detach() for p in self.parameters], 1 - memory)

    def _keep(self, places: Int[Tensor, "Q"]) -> None:
        """Leave out those that are done."""
        self.left, self.averages = self.left[places], [part[places] for part in self.averages]
        kept = [p.detach()[places].requires_grad_() for p in self.parameters]
        optimizer = _adam(kept)
        for new, old in zip(kept, self.parameters, strict=True):
            moments = self.optimizer.state[old]
            optimizer.state[new] = {name: x[places] if x.ndim else x for name, x in moments.items()}
        self.parameters, self.optimizer = kept, optimizer

    def _of(self, parameters: Sequence[Tensor], place: int) -> list[Tensor]:
        return [part[place : place + 1].clone() for part in parameters]


class _Fitted:
    """A fitted MLP, from features of its own width (N, D) to outputs (N, K)."""

    def __init__(self, parameters: list[Tensor], width: int) -> None:
        self.parameters = [parameters[0][:, :width], *parameters[1:]]

    def __call__(self, x: Float[Tensor, "N D"]) -> Float[Tensor, "N K"]:
        return predict(self.parameters, x[None])[0]


def _adam(parameters: list[Tensor]) -> torch.optim.Adam:
    return torch.optim.Adam(parameters, lr=LEARNING_RATE, fused=True)


def _parameters(sizes: tuple[int, ...], generator: torch.Generator, like: Tensor) -> list[Tensor]:
    """Weights (in, out) and biases, as `nn.Linear` draws its weights, uniform in ±1/√in; biases and last layer zero."""
    parameters = []
    for layer, (fan_in, fan_out) in enumerate(itertools.pairwise(sizes)):
        drawn = torch.rand(fan_out, fan_in, generator=generator, device="cpu", dtype=torch.float32)
        weight = (2 * drawn.mT - 1) / math.sqrt(fan_in)
        if layer == len(sizes) - 2:
            weight.zero_()
        parameters += [weight.to(like), like.new_zeros(fan_out)]
    return parameters


def _forward(parameters: Sequence[Tensor], x: Float[Tensor, "P N D"]) -> Float[Tensor, "P N K"]:
    for weight, bias in zip(parameters[:-2:2], parameters[1:-2:2], strict=True):
        x = torch.baddbmm(bias[:, None], x, weight).relu_()
    return torch.baddbmm(parameters[-1][:, None], x, parameters[-2])
