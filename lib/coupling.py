"""Which noise belongs to which data: independent pairs, optimal transport within the batch, and reflow.

ot      Tong et al., Improving and Generalizing Flow-Based Generative Models with Minibatch Optimal Transport (2024), algorithm 3:
        the noise vectors y_0 of a batch are permuted so that sum |y_1 - y_0|^2 is smallest. White noise has no sites, so vector j may
        stand at the sites of field i, and the cost between them is defined even where every field has its own queries.
        Two limits, both of the method. With M queries the best of B vectors comes closer by a relative sqrt(2 ln B / M) at most, so
        the effect fades with M. And the permutation looks at the data: given a field's readings the noise is no longer N(0, 1), while
        the sampler draws it so. That bias vanishes only if the cost keeps the readings of different fields apart, and where all
        readings differ, nothing but the identity is left.
reflow  Liu, Gong and Liu, Flow Straight and Fast (2022), algorithm 1: the first half of the training is an ordinary one; its model,
        frozen, then carries fresh noise to data at the training readings and sites, and the second half trains on these pairs. The
        noise stays N(0, 1) and independent of the readings, the paths cross less, and what the frozen model gets wrong is taught on.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from lib import flow
from lib.data import Batch

COUPLINGS = ("independent", "ot", "reflow")


def transport(batch: Batch, y_0: Tensor, y_1: Tensor, known: Tensor) -> tuple[Tensor, Tensor]:
    """The noise permuted across the batch by optimal transport, and the data; the assignment is solved on the CPU, so a GPU waits."""
    return y_0[assign(cost(y_0, y_1, known))], y_1


def cost(y_0: Float[Tensor, "B M C"], y_1: Float[Tensor, "B M C"], known: Float[Tensor, "B M C"]) -> Float[Tensor, "B B"]:
    """Squared distance of data i to noise j over the known queries of i, without the part |y_1|^2 that no pairing changes."""
    y_0, y_1, known = (y.flatten(1) for y in (y_0, y_1, known))
    return known @ y_0.square().mT - 2 * (known * y_1) @ y_0.mT


def assign(costs: Float[Tensor, "B B"]) -> Int[Tensor, "B"]:
    """The permutation p with the smallest sum of costs[i, p(i)]."""
    return torch.as_tensor(linear_sum_assignment(costs.detach().double().cpu().numpy())[1], device=costs.device)


@torch.no_grad()
def replay(teacher, steps: int, batch: Batch, y_0: Tensor) -> Float[Tensor, "B M C"]:
    """Where the frozen model carries this noise in `steps` Euler steps, in its own units."""
    return flow.carry(teacher, batch, teacher.encode(batch), y_0, steps, "euler")
