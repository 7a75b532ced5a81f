"""A small regression MLP, fitted by minibatches with early stopping. Draws nothing from the global generator."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

__all__ = ["fit_mlp"]

BATCH = 256
LEARNING_RATE = 1e-3
MEMORY = 0.99  # of the average of the weights
ROUND = 64  # steps between two looks at the held-out rows, at least
GAIN = 1e-3  # what counts as progress: held-out error, in variances of the standardised targets, so R²
PATIENCE = 3  # rounds without it


def fit_mlp(
    x: Float[Tensor, "N D"],
    y: Float[Tensor, "N K"],
    held: Bool[Tensor, "N"],
    hidden: tuple[int, ...],
    max_epochs: int,
    generator: torch.Generator,
) -> tuple[Callable[[Tensor], Tensor], int]:
    """The MLP of least held-out error on the way, and the steps it took.

    Adam at a constant rate. What is looked at, and kept, is an exponential average of the weights: it has the low error
    that others get from a falling rate, without having to know beforehand how long to train. The last layer begins at
    zero, so the first candidate is the mean of the targets, and no later one is kept that does worse on held-out rows.
    """
    parameters = _parameters((x.shape[1], *hidden, y.shape[1]), generator, x)
    averages = [p.detach().clone() for p in parameters]
    optimizer = torch.optim.Adam(parameters, lr=LEARNING_RATE, fused=True)
    held = held.to(x.device)
    rows = (~held).nonzero().flatten()
    x_held, y_held = x[held], y[held]
    steps_a_round = max(ROUND, math.ceil(len(rows) / BATCH))
    max_steps = max_epochs * math.ceil(len(rows) / BATCH)

    best_error, best, best_step = y_held.square().mean().item(), [p.clone() for p in averages], 0
    step, since, mark = 0, 0, best_error
    queue = rows[:0]
    while step < max_steps and since < PATIENCE:
        for _ in range(min(steps_a_round, max_steps - step)):
            if len(queue) == 0:
                queue = rows[torch.randperm(len(rows), generator=generator, device="cpu").to(rows.device)]
            batch, queue = queue[:BATCH], queue[BATCH:]
            with torch.enable_grad():
                loss = F.mse_loss(_forward(parameters, x[batch]), y[batch])
            gradients = torch.autograd.grad(loss, parameters)
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.grad = gradient
            optimizer.step()
            step += 1
            memory = min(MEMORY, step / (step + 10))  # a young average forgets its first weights sooner
            torch._foreach_lerp_(averages, [p.detach() for p in parameters], 1 - memory)
        error = (predict(averages, x_held) - y_held).square().mean().item()
        since, mark = (0, error) if error < mark - GAIN else (since + 1, mark)
        if error < best_error:
            best_error, best, best_step = error, [p.clone() for p in averages], step
    return lambda features: predict(best, features), best_step


def predict(parameters: list[Tensor], x: Float[Tensor, "N D"]) -> Float[Tensor, "N K"]:
    """The outputs, a few thousand rows at a time."""
    return torch.cat([_forward(parameters, rows) for rows in x.split(8192)])


def _parameters(sizes: tuple[int, ...], generator: torch.Generator, like: Tensor) -> list[Tensor]:
    """Weights and biases as `nn.Linear` draws its weights, uniform in ±1/√fan-in; biases and the last layer zero."""
    parameters = []
    for layer, (fan_in, fan_out) in enumerate(itertools.pairwise(sizes)):
        drawn = torch.rand(fan_out, fan_in, generator=generator, device="cpu", dtype=torch.float32)
        weight = (2 * drawn - 1) / math.sqrt(fan_in)
        if layer == len(sizes) - 2:
            weight.zero_()
        parameters += [weight.to(like), like.new_zeros(fan_out)]
    return [p.requires_grad_() for p in parameters]


def _forward(parameters: list[Tensor], x: Tensor) -> Tensor:
    for weight, bias in zip(parameters[:-2:2], parameters[1:-2:2], strict=True):
        x = F.relu(F.linear(x, weight, bias))
    return F.linear(x, parameters[-2], parameters[-1])
