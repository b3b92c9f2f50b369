"""What lies between tokens and memory: one short class per family, tokens (B, L, D) and mask (B, L) in, tokens out.

SSMBlock          gated block around a state-space scan (Gu and Dao, Mamba, 2023, figure 3, without its convolution)
BothWays          a forward and a backward SSM block on the same tokens, combined
TransformerLayer  attention and feed-forward, pre- or post-norm (Xiong et al., On Layer Normalization in the Transformer
                  Architecture, 2020, figure 1)
PerceiverLayer    queries attend to the readings, then to each other (after Jaegle et al., Perceiver, 2021, figure 1)
ReadingLayer      queries attend to the readings alone
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn.functional import silu, softplus

from lib import ssm
from lib.layers import Attention, Dropout
from lib.products import Linear

if TYPE_CHECKING:
    from lib.model import ModelConfig

STEPS = ("length", "fixed", "learned", "discretised", "selective", "ssd")
GATES = {"silu": silu, "sigmoid": torch.sigmoid}
CLAMPS = ("none", "hard", "soft")
STATE_LIMIT = 10.0
Tune = Float[Tensor, "B 4 D"] | None  # scale and shift of a layer's two norms


def blocks(c: ModelConfig) -> Iterator[nn.Module]:
    """The encoder's blocks; with direction "both" each holds a forward and a backward one, and `layers` counts them."""
    if c.encoder != "ssm":
        yield from (TransformerLayer(c.width, c.heads, c.inner, c.ffn, c.norm, c.dropout) for _ in range(c.layers))
    elif c.direction != "both":
        yield from (_scan_block(c, c.norm, c.mlp) for _ in range(c.layers))
    else:
        for _ in range(c.layers // 2):
            ahead, back = (_scan_block(c, "none", 0, reverse) for reverse in (False, True))
            yield BothWays(c.width, ahead, back, c.norm, c.mlp, c.dropout)


def _scan_block(c: ModelConfig, norm: str, mlp: int, reverse: bool = False) -> SSMBlock:
    return SSMBlock(c.width, c.inner, c.state, c.step, c.heads, c.gate, norm, mlp, c.state_clamp, c.dropout, reverse)


class SSMBlock(nn.Module):
    """x + W_out(SSM(u) silu(gate)), with u and gate two projections of the normed tokens; then x + MLP(x) if `mlp` is set.

    step says where dt comes from: length (1/L, L the tokens of this sequence) · fixed (1/1024) · learned (one number, starts at 0.01) ·
    discretised (1/L with B discretised too) · selective (delta, B and C from the input) · ssd (the same with one decay per head).
    clamp bounds the state of the first four at STATE_LIMIT; selective and ssd have no clamp. mlp is in multiples of the width.
    norm "none": only `update` is used, by a block that combines several.
    Padding must stand in front: a causal scan with u = 0 there and h = 0 before is not changed by it, a reverse scan meets it
    after every real token, and L counts real tokens only.
    """

    def __init__(
        self, width: int, inner: int, state: int, step: str, heads: int = 1, gate: str = "silu", norm: str = "pre", mlp: int = 0,
        clamp: str = "none", dropout: float = 0.0, reverse: bool = False,
    ):  # fmt: skip
        super().__init__()
        self.step, self.inner, self.state, self.heads = step, inner, state, heads
        self.gate, self.post, self.clamp, self.reverse = GATES[gate], norm == "post", clamp, reverse
        self.norm = None if norm == "none" else nn.LayerNorm(width)
        self.enter, self.leave = Linear(width, 2 * inner), Linear(inner, width)
        {"selective": self._selective, "ssd": self._ssd}.get(step, self._fixed)()
        self.dropout = Dropout(dropout)
        self.feed = FeedForward(width, mlp * width, norm, dropout) if mlp else nn.Identity()

    def forward(self, tokens: Float[Tensor, "B L D"], mask: Bool[Tensor, "B L"] | None = None) -> Float[Tensor, "B L D"]:
        return self.feed(residual(tokens, lambda normed: self.update(normed, mask), self.norm, self.post))

    def update(self, tokens: Tensor, mask: Tensor | None) -> Float[Tensor, "B L D"]:
        """What the block adds to the tokens."""
        u, gate = self.enter(tokens).chunk(2, -1)
        if mask is not None:
            u = u * mask[..., None]
        return self.dropout(self.leave(self.scan(u, mask) * self.gate(gate)))

    def scan(self, u: Tensor, mask: Tensor | None) -> Tensor:
        """The recurrence with this block's step rule."""
        A = -torch.exp(self.A_log)
        if self.step not in ("selective", "ssd"):
            hold = self.step == "discretised"
            return ssm.lti_scan(u, self.dt(u, mask), A, self.B, self.C, self.D, hold, self.clamp, STATE_LIMIT, self.reverse)
        B, C, low = self.select(u).split([self.state, self.state, self.steps], -1)
        delta = softplus(self.delta(low))
        if mask is not None:
            delta = delta * mask[..., None]
        if self.step == "selective":
            return ssm.selective_scan(u, delta, A, B, C, self.D, self.reverse)
        y = ssm.ssd_scan(rearrange(u, "B L (H P) -> B L H P", H=self.heads), delta, A, B, C, self.D, self.reverse)
        return rearrange(y, "B L H P -> B L (H P)")

    def dt(self, u: Tensor, mask: Tensor | None) -> Tensor:
        """The step of the recurrence: one number, or one per field where padding makes their lengths differ."""
        if self.step == "learned":
            return self.dt_log.exp()
        if self.step == "fixed":
            return u.new_tensor(1 / 1024)
        return u.new_tensor(1 / u.shape[1]) if mask is None else 1 / mask.sum(1).clamp(min=1).to(u.dtype)

    def _fixed(self) -> None:
        """Weights of the LTI recurrence: the same A, B and C for every token."""
        self.A_log = nn.Parameter(-1 + 0.1 * torch.randn(self.inner, self.state))
        self.D = nn.Parameter(torch.ones(self.inner))
        self.B = nn.Parameter(torch.randn(self.inner, self.state) / math.sqrt(self.state))
        self.C = nn.Parameter(torch.randn(self.inner, self.state) / math.sqrt(self.state))
        if self.step == "learned":
            self.dt_log = nn.Parameter(torch.tensor(math.log(0.01)))

    def _selective(self) -> None:
        """Weights of the selective scan, a step per channel: decay rates 1 ... S and steps of about 0.01, as in Mamba's initialisation."""
        torch.randn(self.inner, self.state)  # not used: the weights drawn next stay those that a seed has always given
        self.A_log = nn.Parameter(torch.log(torch.arange(1.0, self.state + 1)).repeat(self.inner, 1))
        self.D = nn.Parameter(torch.ones(self.inner))
        self._steps(1, self.inner)

    def _ssd(self) -> None:
        """Weights of SSD, a step and one decay per head: rates spread over 1 ... 16, as in Mamba-2's initialisation."""
        if self.inner % self.heads:
            raise ValueError(f"scan width {self.inner} is not a multiple of {self.heads} heads; set inner or heads")
        self.A_log = nn.Parameter(torch.log(torch.linspace(1.0, 16.0, self.heads)))
        self.D = nn.Parameter(torch.ones(self.heads))
        self._steps(self.heads, self.heads)

    def _steps(self, low: int, count: int) -> None:
        self.steps = low
        self.select = Linear(self.inner, 2 * self.state + low, bias=False)
        self.delta = Linear(low, count)
        nn.init.constant_(self.delta.bias, math.log(math.expm1(0.01)))


class BothWays(nn.Module):
    """x + W [forward(norm x), backward(norm x)]: every token sees those before and after it; then x + MLP(x) if `mlp` is set.

    The two directions have weights of their own, projections included; W joins their answers to the width. Turning the sequence
    round and swapping the two directions (and the halves of W) turns the answer round.
    """

    def __init__(self, width: int, ahead: SSMBlock, back: SSMBlock, norm: str, mlp: int, dropout: float):
        super().__init__()
        self.post, self.ahead, self.back = norm == "post", ahead, back
        self.norm, self.join = nn.LayerNorm(width), Linear(2 * width, width)
        self.feed = FeedForward(width, mlp * width, norm, dropout) if mlp else nn.Identity()

    def forward(self, tokens: Float[Tensor, "B L D"], mask: Bool[Tensor, "B L"] | None = None) -> Float[Tensor, "B L D"]:
        return self.feed(residual(tokens, lambda normed: self.update(normed, mask), self.norm, self.post))

    def update(self, tokens: Tensor, mask: Tensor | None) -> Float[Tensor, "B L D"]:
        """What both directions add to the tokens."""
        return self.join(torch.cat([self.ahead.update(tokens, mask), self.back.update(tokens, mask)], -1))


class TransformerLayer(nn.Module):
    """Self-attention and a GELU feed-forward with residuals; norm "pre" norms their inputs, "post" their sums."""

    def __init__(self, width: int, heads: int, inner: int, ffn: int, norm: str, dropout: float):
        super().__init__()
        self.post = norm == "post"
        self.attention = Attention(width, heads, inner)
        self.norm_1, self.norm_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.up, self.down = Linear(width, ffn), Linear(ffn, width)
        self.dropout = Dropout(dropout)

    def forward(self, tokens: Float[Tensor, "B L D"], mask: Bool[Tensor, "B L"] | None = None, tune: Tune = None) -> Float[Tensor, "B L D"]:
        norm_1, norm_2 = tuned(self.norm_1, tune, 0), tuned(self.norm_2, tune, 1)
        if self.post:
            tokens = norm_1(self.dropout.onto(tokens, self.attention(tokens, tokens, mask)))
            return norm_2(self.dropout.onto(tokens, self.feed(tokens)))
        normed = norm_1(tokens)
        tokens = self.dropout.onto(tokens, self.attention(normed, normed, mask))
        return self.dropout.onto(tokens, self.feed(norm_2(tokens)))

    def feed(self, tokens: Tensor) -> Tensor:
        return self.down(self.dropout(self.up.with_gelu(tokens)))


class PerceiverLayer(nn.Module):
    """Queries (B, M, D) attend to the readings (B, N, D), then to each other, then a feed-forward; each with a residual."""

    def __init__(self, width: int, heads: int, ffn: int, norm: str, dropout: float):
        super().__init__()
        self.post, self.dropout = norm == "post", Dropout(dropout)
        self.cross, self.own = Attention(width, heads), Attention(width, heads)
        self.norm_1, self.norm_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.feed = FeedForward(width, ffn, norm, dropout)

    def forward(
        self, queries: Float[Tensor, "B M D"], readings: Float[Tensor, "B N D"], mask: Bool[Tensor, "B N"] | None = None
    ) -> Float[Tensor, "B M D"]:
        queries = residual(queries, lambda q: self.dropout(self.cross(q, readings, mask)), self.norm_1, self.post)
        return self.feed(residual(queries, lambda q: self.dropout(self.own(q, q)), self.norm_2, self.post))


class ReadingLayer(nn.Module):
    """Queries (B, M, D) attend to the readings (B, N, D) and never to each other, then a feed-forward; each with a residual."""

    def __init__(self, width: int, heads: int, ffn: int, norm: str, dropout: float):
        super().__init__()
        self.post, self.dropout = norm == "post", Dropout(dropout)
        self.cross, self.norm = Attention(width, heads), nn.LayerNorm(width)
        self.feed = FeedForward(width, ffn, norm, dropout)

    def forward(
        self, queries: Float[Tensor, "B M D"], readings: Float[Tensor, "B N D"], mask: Bool[Tensor, "B N"] | None = None, tune: Tune = None
    ) -> Float[Tensor, "B M D"]:
        queries = residual(queries, lambda q: self.dropout(self.cross(q, readings, mask)), tuned(self.norm, tune, 0), self.post)
        return self.feed(queries, tune)


class FeedForward(nn.Module):
    """Two layers with a GELU between them, `inner` wide, and a residual."""

    def __init__(self, width: int, inner: int, norm: str, dropout: float):
        super().__init__()
        self.post, self.norm = norm == "post", nn.LayerNorm(width)
        self.layers = nn.Sequential(Linear(width, inner), nn.GELU(), Dropout(dropout), Linear(inner, width), Dropout(dropout))

    def forward(self, tokens: Float[Tensor, "B L D"], tune: Tune = None) -> Float[Tensor, "B L D"]:
        return residual(tokens, self.layers, tuned(self.norm, tune, 1), self.post)


def residual(tokens: Tensor, update: Callable, norm: Callable, post: bool) -> Float[Tensor, "B L D"]:
    """x + f(norm(x)), or norm(x + f(x)) where the norm comes after the sum."""
    return norm(tokens + update(tokens)) if post else tokens + update(norm(tokens))


def tuned(norm: nn.Module, tune: Tune, place: int) -> Callable[[Tensor], Tensor]:
    """norm(x), or (1 + scale) norm(x) + shift with the scale and shift that `tune` (B, 4, D) holds for a layer's first or second norm.

    Peebles and Xie, Scalable Diffusion Models with Transformers (2023), section 3.2, adaptive layer norm without its gates.
    """
    if tune is None:
        return norm
    scale, shift = tune[:, 2 * place, None], tune[:, 2 * place + 1, None]  # B 1 D
    return lambda tokens: (1 + scale) * norm(tokens) + shift
