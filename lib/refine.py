"""What a flow from the posterior is trained with: V5's prior of other fields than those it is shown, conditioned once per set of readings.

A prior knows the fields it was learned from too well, and a network trained on these would learn to trust it. So the prior that a training
sees comes from the first half of the fields, and the steps are made on the second half; the prior that answers afterwards has seen all.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from lib import data, v5
from lib.data import Batch, Prediction

DRAWS = 8  # kept per set of readings; a training takes one of them at random
KEPT = 2048  # sets of readings whose tables are kept, 40 kB each at 32 x 32


def prepare(model, fields: Float[Tensor, "n C H W"]) -> Tensor:
    """The fields to train on. For a flow from the posterior the second half; the first one teaches the prior that it sees meanwhile.

    ValueError for fewer than four fields then.
    """
    if model.config.source == "white":
        return fields
    if len(fields) < 4:
        raise ValueError(f"{len(fields)} training fields: a flow from the posterior needs at least 4, half of them for its prior")
    first, second = fields.tensor_split(2)
    model.posterior = Tables(first)
    model.learned.fill_(True)
    return second


def settle(model, fields: Float[Tensor, "n C H W"]) -> None:
    """What a trained flow from the posterior answers with: the prior of all fields."""
    if model.config.source == "posterior":
        model.posterior = answering(functools.cache(lambda: v5.learn(fields)))


def answering(prior: Callable[[], v5.Prior]) -> Callable[[Batch], Prediction]:
    """The posterior at any queries; the prior is asked for when it is needed."""
    return lambda batch: v5.predict(prior(), batch)


class Tables:
    """The posterior at nodes of a grid, from tables of its mean, deviation and draws that are made once per set of readings."""

    def __init__(self, fields: Float[Tensor, "n C H W"]):
        self.prior, self.shape, self.kept = functools.cache(lambda: v5.learn(fields)), tuple(fields.shape[-2:]), {}

    def __deepcopy__(self, memo) -> Tables:
        return self  # a copy of the model looks things up in the same tables

    def __call__(self, batch: Batch) -> Prediction:
        keys = [_key(batch, i) for i in range(len(batch.s_obs))]
        new = [i for i, key in enumerate(keys) if key not in self.kept]
        if new:
            self._make(batch, new, keys)
        tables = torch.stack([self.kept[key] for key in keys]).to(batch.y_qry)  # (B, 2 + DRAWS, P, C)
        place = ((batch.s_qry.flip(-1) + 1) / 2 * (torch.tensor(self.shape, device=batch.s_qry.device) - 1)).round().long()
        node = (place[..., 0] * self.shape[1] + place[..., 1])[:, None, :, None].expand(-1, tables.shape[1], -1, tables.shape[3])
        found = tables.gather(2, node)

        def draw(count: int, generator: torch.Generator) -> Tensor:
            which = torch.randint(DRAWS, (count, len(found)), generator=generator, device=generator.device).to(found.device)
            return found[torch.arange(len(found), device=found.device), 2 + which]

        return Prediction(found[:, 0], found[:, 1], draw)

    def _make(self, batch: Batch, new: list[int], keys: list[bytes]) -> None:
        if len(self.kept) + len(new) > KEPT:
            self.kept.clear()
            new = list(range(len(keys)))
        nodes = data.grid(self.shape)[None]
        for i in new:  # one by one, so that draws depend on the readings alone: a training that was stopped makes the same again
            seen = (getattr(batch, name)[i : i + 1].cpu() for name in ("s_obs", "y_obs", "m_obs"))
            found = v5.predict(self.prior(), Batch(*seen, nodes, nodes.new_zeros(1, len(nodes[0]), batch.y_obs.shape[-1])))
            seed = int.from_bytes(hashlib.sha256(keys[i]).digest()[:6], "little")
            drawn = found.samples(DRAWS, torch.Generator().manual_seed(seed))
            self.kept[keys[i]] = torch.cat([found.mean, found.std, drawn[:, 0]]).float()


def _key(batch: Batch, i: int) -> bytes:
    """The readings of one field, whatever the precision they are handed around in."""
    parts = (batch.s_obs[i], batch.y_obs[i].nan_to_num(), batch.m_obs[i])
    return b"".join(part.detach().cpu().float().numpy().tobytes() for part in parts)
