"""What a step of training minimises: the flow loss of a coupling, plus a penalty on a patch of the field.

    total = flow loss + penalty_weight * penalty

The flow loss alone is what the history calls the loss, so that arms with and without a penalty can be compared. Every part draws from
a stream of its own: a penalty leaves noise and times of the flow loss as they were.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from lib import coupling, data, flow, penalties
from lib.data import Batch


class Objective:
    """The parts of the loss, with what a checkpoint must keep: random streams and, in the second half of a reflow, the frozen model."""

    def __init__(self, config, stream: data.Stream, device):
        self.config, self.stream = config, stream
        self.noise = data.generator(config.seed, "flow", device)
        self.patches = data.generator(config.seed, "penalty", device)
        self.teacher: nn.Module | None = None

    def __call__(self, model, batch: Batch) -> tuple[Tensor, Tensor | None]:
        """Flow loss and penalty (None without one) of the stream's latest batch."""
        loss = flow.loss(model, batch, self.noise, self.couple())
        if self.config.penalty == "none":
            return loss, None
        stream = self.stream
        shape = tuple(stream.fields.shape[-2:])
        values = (stream.current, stream.sites, shape, self.config.penalty_patch)
        return loss, penalties.penalty(self.config.penalty, model, batch, *values, self.patches)

    def couple(self) -> flow.Couple | None:
        """The coupling of the present step."""
        if self.config.coupling == "ot":
            return coupling.transport
        return self.replay if self.teacher is not None else None

    def replay(self, batch: Batch, y_0: Tensor, y_1: Tensor, known: Tensor) -> tuple[Tensor, Tensor]:
        """The noise, and where the frozen model carries it."""
        return y_0, coupling.replay(self.teacher, self.config.reflow_steps, batch, y_0)

    def validation(self, model, batch: Batch, generator: torch.Generator) -> Tensor:
        """The flow loss on independent pairs, as the sampler meets them; once a reflow has its pairs, on those."""
        return flow.loss(model, batch, generator, self.replay if self.teacher is not None else None)

    def due(self, step: int) -> bool:
        """Whether the frozen model of a reflow is to be made before this step."""
        return self.config.coupling == "reflow" and self.teacher is None and 2 * step >= self.config.steps

    def freeze(self, model: nn.Module) -> None:
        """Keep a copy of the model as the one that makes the pairs from now on."""
        self.teacher = copy.deepcopy(model).eval().requires_grad_(False)

    def state_dict(self) -> dict:
        """Everything that the next losses depend on besides the arguments and the flow's own noise."""
        return {"patches": self.patches.get_state(), "teacher": self.teacher.state_dict() if self.teacher is not None else None}

    def load_state_dict(self, state: dict, model: nn.Module) -> None:
        """Continue where another objective stood; the frozen model takes the structure of `model`."""
        self.patches.set_state(state["patches"].cpu())
        if state["teacher"] is not None:
            self.freeze(model)
            self.teacher.load_state_dict(state["teacher"])
