"""Optimisers by name, each as one object that steps, and is saved, as a whole.

adamw   every parameter by AdamW (Loshchilov and Hutter, Decoupled Weight Decay Regularization, 2019)
muon    matrices by Muon, whose step is the momentum with all its singular values brought near 1 (Jordan et al., Muon: An optimizer for
        hidden layers in neural networks, 2024), as long as an AdamW step would be on average (Liu et al., Muon is Scalable for LLM
        Training, 2025), so that both take the same rates; everything else by AdamW
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

OPTIMISERS = ("adamw", "muon")
NARROW = 8  # a matrix with a side no longer than this is left to AdamW: values in, values out


class Optimiser:
    """Several of PyTorch's optimisers, each for its own parameters, used like one."""

    def __init__(self, *parts: torch.optim.Optimizer):
        self.parts = parts

    @property
    def param_groups(self) -> list[dict]:
        """Those of all parts; setting "lr" in them sets it there."""
        return [group for part in self.parts for group in part.param_groups]

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the gradients of all parameters."""
        for part in self.parts:
            part.zero_grad(set_to_none)

    def step(self) -> None:
        """One step of every part."""
        for part in self.parts:
            part.step()

    def state_dict(self) -> dict:
        """For one part its own, so that checkpoints stay what they were; else all of them by number."""
        return self.parts[0].state_dict() if len(self.parts) == 1 else {str(i): part.state_dict() for i, part in enumerate(self.parts)}

    def load_state_dict(self, state: dict) -> None:
        """Continue from `state_dict` of an optimiser of the same name."""
        if len(self.parts) == 1:
            return self.parts[0].load_state_dict(state)
        for i, part in enumerate(self.parts):
            part.load_state_dict(state[str(i)])


def make(name: str, parameters: Iterable[nn.Parameter], rate: float, decay: float) -> Optimiser:
    """The optimiser of this name (one of OPTIMISERS) for these parameters; rate and weight decay belong to all of them."""
    parameters = list(parameters)
    matrices = [p for p in parameters if name == "muon" and _matrix(p)]
    others = [p for p in parameters if not any(p is its for its in matrices)]
    parts = [torch.optim.AdamW(others, lr=rate, weight_decay=decay, fused=True)] if others else []
    if matrices:
        parts.append(torch.optim.Muon(matrices, lr=rate, weight_decay=decay, adjust_lr_fn="match_rms_adamw"))
    return Optimiser(*parts)


def _matrix(p: Tensor) -> bool:
    return p.ndim == 2 and min(p.shape) > NARROW
