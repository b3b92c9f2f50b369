"""V5's flow: from a draw of the posterior to the data, for what is not Gaussian.

    y_0 ~ the posterior with mean m and deviation d · y_1 = m + t / ((1 - t)^2 + t^2) (y_t - m) + d f(y_t, t)
Where the posterior is the truth, y_0 and y_1 are independent draws of one Gaussian, and the first two terms are the mean of y_1 given y_t:
with f = 0 the flow carries the posterior to itself, and its first Euler step gives m. The network f starts at zero, sees m, log d and
(y_t - m) / d, and learns what is left; where the readings leave no doubt, d = 0 leaves it no say.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lib.data import Batch, Prediction
from lib.hybrid import hybrid
from lib.model import Memory, Model
from lib.products import Linear

LEAST = 1e-6  # deviation, in units of the data's, below which log d and (y_t - m) / d are those at this deviation
FARTHEST = 5.0  # deviations from the mean that the network tells apart


@dataclass(frozen=True)
class About(Memory):
    """The memory of the readings, with the posterior's mean and deviation (B, M, C) at the batch's queries in the network's units."""

    mean: Tensor
    std: Tensor


class Refined(Model):
    """The network of a flow that starts from `posterior(batch)`, a Prediction with samples.

    As built: that of stationary processes, which needs no past fields. Trained (lib/refine.py): V5's, which whoever loads the weights sets.
    """

    posterior: Callable[[Batch], Prediction] | None = None

    def __init__(self, config, channels: int, generator: torch.Generator):
        super().__init__(config, channels, generator)
        self.ask = Linear(2 * self.features.count + 3 * channels, config.width)
        last = [part for part in self.decode.modules() if isinstance(part, nn.Linear)][-1]
        nn.init.zeros_(last.weight), nn.init.zeros_(last.bias)
        self.register_buffer("learned", torch.tensor(False))  # whether the weights were trained beside a posterior of past fields
        self._latest: tuple = (None, None)

    def given(self, batch: Batch) -> Prediction:
        """The posterior given the readings; asked again with the same batch, the same answer without computing.

        RuntimeError for trained weights without the posterior they were trained beside.
        """
        if self.posterior is None and bool(self.learned):
            raise RuntimeError("these weights were trained beside a posterior of past fields: set model.posterior, see refine.answering")
        if self._latest[0] is not batch:
            self._latest = (batch, (self.posterior or hybrid)(batch))
        return self._latest[1]

    def noise(self, batch: Batch, generator: torch.Generator) -> Float[Tensor, "B M C"]:
        """A coherent draw of the posterior at the batch's queries, in the network's units."""
        return self.normalise(self.given(batch).samples(1, generator)[0].to(batch.s_qry))

    def encode(self, batch: Batch) -> About:
        """The readings' tokens, and the posterior at the batch's queries, which are the ones that may be asked."""
        memory, found = super().encode(batch), self.given(batch)
        mean, std = self.normalise(found.mean.to(batch.s_qry)), found.std.to(batch.s_qry) / self.y_std
        return About(memory.tokens, memory.mask, memory.s, mean, std)

    def network(self, y_t, t, s_qry, memory: About, estimate: Tensor | None = None) -> Tensor:
        """The data that it expects at y_t, (B, M, C), in its own units."""
        time, tunes = self._timed(t)
        away, floor, t = y_t - memory.mean, memory.std.clamp(min=LEAST), t[:, None, None]
        seen = [self.features(s_qry), (away / floor).clamp(-FARTHEST, FARTHEST), memory.mean, floor.log()]
        queries = self._recalled(self.ask(torch.cat(seen, -1)), estimate) + time
        exact = memory.mean + t / ((1 - t).square() + t.square()) * away
        return self._bounded(exact + memory.std * self._read(queries, memory, tunes))
