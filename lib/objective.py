"""What a step of training minimises: the flow loss of a coupling, plus a penalty on a patch of the field.

    total = flow loss + penalty_weight * penalty + consistency * consistency penalty

The flow loss alone is what the history calls the loss, so that arms with and without a penalty can be compared. Every part draws from
a stream of its own: a penalty leaves noise and times of the flow loss as they were.
"""

from __future__ import annotations

import copy
from dataclasses import replace

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
        self.later = data.generator(config.seed, "consistency", device)
        self.teacher: nn.Module | None = None

    def __call__(self, model, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Flow loss of the stream's latest batch, and what is added to it by name: "penalty", "consistency", where they are asked for."""
        seen, parts = flow.look(model, batch, self.noise, self.couple()), {}
        if self.config.penalty == "spectrum":
            parts["penalty"] = penalties.spectrum(model, seen)
        elif self.config.penalty != "none":
            stream = self.stream
            shape = tuple(stream.fields.shape[-2:])
            values = (stream.current, stream.sites, shape, self.config.penalty_patch)
            parts["penalty"] = penalties.penalty(self.config.penalty, model, batch, *values, self.patches)
        if self.config.consistency:
            parts["consistency"] = penalties.consistency(model, seen, self.later)
        return flow.error(model, seen), parts

    def total(self, loss: Tensor, parts: dict[str, Tensor]) -> Tensor:
        """What a step minimises."""
        weight = {"penalty": self.config.penalty_weight, "consistency": self.config.consistency}
        return sum((weight[name] * part for name, part in parts.items()), loss)

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
        teacher = self.teacher.state_dict() if self.teacher is not None else None
        return {"patches": self.patches.get_state(), "later": self.later.get_state(), "teacher": teacher}

    def load_state_dict(self, state: dict, model: nn.Module) -> None:
        """Continue where another objective stood; the frozen model takes the structure of `model`."""
        self.patches.set_state(state["patches"].cpu())
        if "later" in state:  # checkpoints from before consistency lack it
            self.later.set_state(state["later"].cpu())
        if state["teacher"] is not None:
            self.freeze(model)
            self.teacher.load_state_dict(state["teacher"])


def asked(batch: Batch, queries: int | str, generator: torch.Generator) -> Batch:
    """A held-out batch asked at as many random known sites as training asks."""
    if queries == "all":
        return batch
    known = torch.isfinite(batch.y_qry).all(-1)
    keys = torch.rand(known.shape, generator=generator).masked_fill(~known, 2.0)
    chosen = keys.argsort(1)[:, :queries, None]
    return replace(
        batch,
        s_qry=torch.gather(batch.s_qry, 1, chosen.expand(-1, -1, 2)),
        y_qry=torch.gather(batch.y_qry, 1, chosen.expand(-1, -1, batch.y_qry.shape[-1])),
    )
