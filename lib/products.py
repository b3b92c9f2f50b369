"""Linear layers whose products are as fast on a CPU as it can: oneDNN's for float32, forward and backward.

On processors of other makers than its own the BLAS that PyTorch ships (MKL) is slower than oneDNN, which PyTorch ships too and otherwise
uses for convolutions and short formats: `make bench ARGS="--only encoder"` has their ratio on this machine (`product`).
Small products, other formats and devices, and everything under torch.compile or torch.func are PyTorch's own. The answers agree to
rounding.
"""

from __future__ import annotations

import platform

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.autograd.function import once_differentiable
from torch.nn import functional
from torch.utils.flop_counter import register_flop_formula

LEAST = 2**22  # multiplications from which the quicker product makes up for the way to it
# what torch.compile calls for a linear layer
AVAILABLE = platform.machine() in ("x86_64", "AMD64") and hasattr(torch.ops.mkldnn, "_linear_pointwise")


class Linear(nn.Linear):
    """nn.Linear, with the products of this module."""

    def forward(self, y: Float[Tensor, "... D"]) -> Float[Tensor, "... E"]:
        return linear(y, self.weight, self.bias)

    def with_gelu(self, y: Float[Tensor, "... D"]) -> Float[Tensor, "... E"]:
        """gelu(forward(y)), in one pass where no gradient is wanted."""
        return linear(y, self.weight, self.bias, gelu=True)


def linear(
    y: Float[Tensor, "... D"], weight: Float[Tensor, "E D"], bias: Float[Tensor, "E"] | None = None, gelu: bool = False
) -> Float[Tensor, "... E"]:
    """y weight^T + bias; with gelu, the GELU (by the error function) of that."""
    learns = torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in (y, weight, bias))
    if not quicker(y, weight):
        answer = functional.linear(y, weight, bias)
    else:
        flat = y.reshape(-1, y.shape[-1])
        answer = _Linear.apply(flat, weight, bias) if learns else _product(flat, weight, bias, gelu)
        answer = answer.view(*y.shape[:-1], len(weight))
        gelu = gelu and learns
    return functional.gelu(answer) if gelu else answer


def quicker(y: Tensor, weight: Tensor) -> bool:
    """Whether oneDNN takes this product."""
    if not AVAILABLE or y.device.type != "cpu" or y.dtype != torch.float32 or weight.dtype != torch.float32:
        return False
    if y.numel() * len(weight) < LEAST or y.shape[-1] != weight.shape[1] or torch.is_autocast_enabled("cpu"):
        return False
    return not transformed()


def transformed() -> bool:
    """Whether torch is asked to follow its operations, for which ours have no rule: compiled, under torch.func or in forward mode."""
    return torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0


def _product(y: Float[Tensor, "L D"], weight: Float[Tensor, "E D"], bias: Tensor | None = None, gelu: bool = False) -> Float[Tensor, "L E"]:
    return torch.ops.mkldnn._linear_pointwise(y, weight, bias, "gelu" if gelu else "none", [], "none" if gelu else "")


class _Linear(torch.autograd.Function):
    """The derivative of y W^T + b: by y it is g W, by W g^T y, by b the sum of g."""

    @staticmethod
    def forward(ctx, y, weight, bias):
        ctx.save_for_backward(y, weight)
        return _product(y, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx, by_answer):
        y, weight = ctx.saved_tensors
        wanted = ctx.needs_input_grad
        by_answer = by_answer.contiguous()
        return (
            _product(by_answer, weight.t()) if wanted[0] else None,
            _product(by_answer.t(), y.t()) if wanted[1] else None,
            by_answer.sum(0) if wanted[2] else None,
        )


if AVAILABLE:

    @register_flop_formula(torch.ops.mkldnn._linear_pointwise)
    def _flops(y_shape, weight_shape, *_, **__) -> int:
        """Of a product, as torch counts those of its own: two per multiplication and sum."""
        return 2 * y_shape[0] * y_shape[1] * weight_shape[0]
