"""What lies between tokens and memory: one short class per family, tokens (B, L, D) and mask (B, L) in, tokens out.

SSMBlock          pre-norm gated block around a state-space scan (Gu and Dao, Mamba, 2023, figure 3, without its convolution)
TransformerLayer  attention and feed-forward, pre- or post-norm (Xiong et al., On Layer Normalization in the Transformer
                  Architecture, 2020, figure 1)
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn.functional import gelu, silu, softplus

from lib import ssm
from lib.layers import Attention

STEPS = ("length", "fixed", "learned", "discretised", "selective")


class SSMBlock(nn.Module):
    """x + W_out(SSM(u) silu(gate)), with u and gate two projections of the normed tokens.

    step says where dt comes from: length (1/L, L the tokens of this sequence) · fixed (1/1024) · learned (one number, starts at 0.01) ·
    discretised (1/L with B discretised too) · selective (delta, B and C from the input).
    Padding must stand in front of a causal scan: with u = 0 there and h = 0 before, it changes nothing, and L counts real tokens only.
    """

    def __init__(self, width: int, inner: int, state: int, step: str):
        super().__init__()
        self.step, self.inner, self.state = step, inner, state
        self.norm = nn.LayerNorm(width)
        self.enter, self.leave = nn.Linear(width, 2 * inner), nn.Linear(inner, width)
        self.A_log = nn.Parameter(-1 + 0.1 * torch.randn(inner, state))
        self.D = nn.Parameter(torch.ones(inner))
        if step == "selective":
            with torch.no_grad():  # decay rates 1 ... S and steps of about 0.01, as in Mamba's initialisation
                self.A_log.copy_(torch.log(torch.arange(1.0, state + 1)).expand(inner, state))
            self.select = nn.Linear(inner, 2 * state + 1, bias=False)
            self.delta = nn.Linear(1, inner)
            nn.init.constant_(self.delta.bias, math.log(math.expm1(0.01)))
        else:
            self.B = nn.Parameter(torch.randn(inner, state) / math.sqrt(state))
            self.C = nn.Parameter(torch.randn(inner, state) / math.sqrt(state))
        if step == "learned":
            self.dt_log = nn.Parameter(torch.tensor(math.log(0.01)))

    def forward(self, tokens: Float[Tensor, "B L D"], mask: Bool[Tensor, "B L"] | None = None) -> Float[Tensor, "B L D"]:
        u, gate = self.enter(self.norm(tokens)).chunk(2, -1)
        if mask is not None:
            u = u * mask[..., None]
        return tokens + self.leave(self.scan(u, mask) * silu(gate))

    def scan(self, u: Tensor, mask: Tensor | None) -> Tensor:
        """The recurrence with this block's step rule."""
        A = -torch.exp(self.A_log)
        if self.step == "selective":
            B, C, low = self.select(u).split([self.state, self.state, 1], -1)
            delta = softplus(self.delta(low))
            if mask is not None:
                delta = delta * mask[..., None]
            return ssm.selective_scan(u, delta, A, B, C, self.D)
        return ssm.lti_scan(u, self.dt(u, mask), A, self.B, self.C, self.D, hold=self.step == "discretised")

    def dt(self, u: Tensor, mask: Tensor | None) -> Tensor:
        """The step of the recurrence: one number, or one per field where padding makes their lengths differ."""
        if self.step == "learned":
            return self.dt_log.exp()
        if self.step == "fixed":
            return u.new_tensor(1 / 1024)
        return u.new_tensor(1 / u.shape[1]) if mask is None else 1 / mask.sum(1).clamp(min=1).to(u.dtype)


class TransformerLayer(nn.Module):
    """Self-attention and a GELU feed-forward with residuals; norm "pre" norms their inputs, "post" their sums."""

    def __init__(self, width: int, heads: int, inner: int, ffn: int, norm: str, dropout: float):
        super().__init__()
        self.post = norm == "post"
        self.attention = Attention(width, heads, inner)
        self.norm_1, self.norm_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.up, self.down = nn.Linear(width, ffn), nn.Linear(ffn, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, tokens: Float[Tensor, "B L D"], mask: Bool[Tensor, "B L"] | None = None) -> Float[Tensor, "B L D"]:
        if self.post:
            tokens = self.norm_1(tokens + self.dropout(self.attention(tokens, tokens, mask)))
            return self.norm_2(tokens + self.dropout(self.feed(tokens)))
        normed = self.norm_1(tokens)
        tokens = tokens + self.dropout(self.attention(normed, normed, mask))
        return tokens + self.dropout(self.feed(self.norm_2(tokens)))

    def feed(self, tokens: Tensor) -> Tensor:
        return self.down(self.dropout(gelu(self.up(tokens))))
