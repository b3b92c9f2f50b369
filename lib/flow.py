"""Conditional flow matching on scattered sites: path, loss, samples.

    y_t = (1 - t) y_0 + t y_1      u = y_1 - y_0      loss = E |v(y_t, t) - u|^2      y_0 ~ N(0, 1), t ~ U(0, 1)
Lipman et al., Flow Matching for Generative Modeling (2023), with the straight path of Liu et al., Flow Straight and Fast (2022), eq. 1.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from lib import ode
from lib.data import Batch, Prediction


def path(y_0: Tensor, y_1: Tensor, t: Float[Tensor, "B"]) -> tuple[Tensor, Tensor]:
    """A point y_t between noise and data, and the velocity u that leads through it; y are (B, M, C)."""
    t = t[:, None, None]
    return (1 - t) * y_0 + t * y_1, y_1 - y_0


def loss(model, batch: Batch, generator: torch.Generator) -> Float[Tensor, ""]:
    """Mean squared error of the model's velocity (or data, if it predicts data) at random times; masked queries do not count."""
    y_1, known = _targets(model, batch)
    y_0 = torch.randn(y_1.shape, generator=generator, device=y_1.device, dtype=y_1.dtype)
    t = torch.rand(len(y_1), generator=generator, device=y_1.device, dtype=y_1.dtype)
    return loss_at(model, batch, y_0, y_1, known, t)


def loss_at(model, batch: Batch, y_0: Tensor, y_1: Tensor, known: Tensor, t: Tensor) -> Float[Tensor, ""]:
    """The loss for given noise and times; `known` (B, M, C) weighs the queries."""
    y_t, u = path(y_0, y_1, t)
    out = model.network(y_t, t, batch.s_qry, model.encode(batch))
    target = y_1 if model.config.prediction == "data" else u
    return (known * (out - target).square()).sum() / known.sum().clamp(min=1)


def _targets(model, batch: Batch) -> tuple[Tensor, Tensor]:
    y_1 = model.normalise(batch.y_qry)
    known = torch.isfinite(y_1)
    return torch.where(known, y_1, 0.0), known.to(y_1.dtype)


@torch.no_grad()
def sample(
    model,
    batch: Batch,
    generator: torch.Generator,
    steps: int = 1,
    method: str = "euler",
    samples: int = 1,
    feedback: bool = True,
    callback: Callable[[float, Tensor], None] | None = None,
    start: Float[Tensor, "B M C"] | None = None,
) -> Float[Tensor, "K B M C"]:
    """Draw `samples` fields per batch entry at the queries, in data units.

    feedback False is the sampler that forgets: the model sees fresh noise at every call instead of the state y_t.
    callback(t, y_t) sees the path of each draw, in data units. start is the noise y_0 of the (first) draw, for paired experiments.
    ValueError for an unknown solver, steps < 1 or samples < 1.
    """
    if samples < 1:
        raise ValueError(f"at least one sample is needed, got samples={samples}")
    training = model.training
    model.eval()
    try:
        memory = model.encode(batch)
        starts = [start] + [None] * (samples - 1)
        draws = [_draw(model, batch, memory, generator, steps, method, feedback, callback, y_0) for y_0 in starts]
    finally:
        model.train(training)
    return torch.stack(draws)


def _draw(model, batch, memory, generator, steps, method, feedback, callback, start):
    shape = (*batch.s_qry.shape[:2], model.channels)

    def noise():
        return torch.randn(shape, generator=generator, device=batch.s_qry.device, dtype=batch.s_qry.dtype)

    def velocity(t: float, y: Tensor) -> Tensor:
        time = torch.full((shape[0],), t, device=y.device, dtype=y.dtype)
        return model.velocity(y if feedback else noise(), time, batch.s_qry, memory)

    seen = (lambda t, y: callback(t, model.restore(y))) if callback else None
    return model.restore(ode.integrate(velocity, noise() if start is None else start, ode.uniform(steps), method, seen))


def predict(model, batch: Batch, generator: torch.Generator, steps: int = 50, method: str = "heun", samples: int = 8) -> Prediction:
    """Mean and standard deviation of `samples` draws, called like a baseline so that one loop judges everything.

    With K draws the mean carries 10 log10(1 + 1/K) dB of sampling noise: 0.51 dB at 8.
    """
    draws = sample(model, batch, generator, steps, method, samples)
    std = draws.std(0) if samples > 1 else None
    return Prediction(draws.mean(0), std, lambda count, g: sample(model, batch, g, steps, method, count))
