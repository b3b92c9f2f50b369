"""Parts of the networks: coordinate features, time embedding, attention with a mask, dropout, decoders.

Fourier features: Tancik et al., Fourier Features Let Networks Learn High Frequency Functions (2020), eq. 5.
Sinusoidal embedding and multi-head attention: Vaswani et al., Attention Is All You Need (2017), sections 3.5 and 3.2.
Dropout: Srivastava et al., Dropout: A Simple Way to Prevent Neural Networks from Overfitting (2014), section 10.
Stochastic depth: Huang et al., Deep Networks with Stochastic Depth (2016), section 3.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn.functional import dropout, scaled_dot_product_attention

from lib import shares
from lib.products import Linear


class CoordinateFeatures(nn.Module):
    """sin and cos of s W for `count` wave vectors W: (B, L, 2) -> (B, L, 2 count).

    kind: random (W ~ N(0, scale^2), fixed) · learnable (the same start, trained) · harmonic (along each axis, from a quarter cycle over the
    domain to `nyquist` cycles, geometric) · octave (along each axis, one cycle over the domain, 2, 4 ...: pi, 2 pi, 4 pi). two_pi
    multiplies the random W by 2 pi. W in radians per unit of s; the domain is 2 units wide.
    """

    def __init__(self, kind: str, count: int, scale: float, two_pi: bool, nyquist: float, generator: torch.Generator):
        super().__init__()
        if kind in ("harmonic", "octave"):  # cycles per domain of width 2, hence pi and not 2 pi
            octaves = 2.0 ** torch.arange(count // 2)
            cycles = octaves if kind == "octave" else torch.logspace(math.log10(0.25), math.log10(nyquist), count // 2)
            waves = torch.zeros(2, 2 * cycles.numel())
            waves[0, : cycles.numel()] = waves[1, cycles.numel() :] = math.pi * cycles
        else:
            waves = scale * (2 * math.pi if two_pi else 1.0) * torch.randn(2, count, generator=generator)
        self.count = waves.shape[1]
        # one name whether trained or not, so that checkpoints of both load into either
        self.waves = nn.Parameter(waves, requires_grad=kind == "learnable")

    def forward(self, s: Float[Tensor, "B L 2"]) -> Float[Tensor, "B L F"]:
        phase = s @ self.waves
        return torch.cat([phase.sin(), phase.cos()], -1)


class TimeEmbedding(nn.Module):
    """t (B,) -> (B, D): sinusoids of t (raw), of 1000 t (scaled), or of t through a two-layer network (mlp), `inner` wide.

    With raw t in [0, 1] and frequencies 1 ... 1/10,000 most of the D numbers hardly move between noise and data.
    """

    def __init__(self, kind: str, width: int, inner: int | None = None):
        super().__init__()
        inner = inner or width
        self.factor = 1000.0 if kind == "scaled" else 1.0
        self.register_buffer("frequency", torch.exp(-math.log(1e4) * torch.arange(width // 2) / (width // 2)), persistent=False)
        self.mlp = nn.Sequential(Linear(width, inner), nn.SiLU(), Linear(inner, width)) if kind == "mlp" else nn.Identity()

    def forward(self, t: Float[Tensor, "B"]) -> Float[Tensor, "B D"]:
        phase = self.factor * t[:, None] * self.frequency
        return self.mlp(torch.cat([phase.sin(), phase.cos()], -1))


def sequence_position(length: int, width: int, device, dtype) -> Float[Tensor, "L D"]:
    """Sinusoids of the place in the sequence: what v4 adds to its tokens, although a reading's place in the list means nothing."""
    frequency = torch.exp(-math.log(1e4) * torch.arange(width // 2, device=device, dtype=dtype) / (width // 2))
    phase = torch.arange(length, device=device, dtype=dtype)[:, None] * frequency
    return torch.cat([phase.sin(), phase.cos()], -1)


class Attention(nn.Module):
    """Multi-head attention of q (B, M, D) to kv (B, N, D), `inner` wide; keys with mask False are not seen.

    A row without any visible key answers 0: a softmax over nothing is undefined, and no reading means no information.
    """

    def __init__(self, width: int, heads: int, inner: int | None = None):
        super().__init__()
        inner = inner or width
        if inner % heads:
            raise ValueError(f"attention width {inner} is not a multiple of {heads} heads")
        self.heads = heads
        self.query, self.key_value = Linear(width, inner), Linear(width, 2 * inner)
        self.out = Linear(inner, width)

    def forward(self, q: Float[Tensor, "B M D"], kv: Float[Tensor, "B N D"], mask: Bool[Tensor, "B N"] | None = None) -> Tensor:
        queries = rearrange(self.query(q), "B M (H d) -> B H M d", H=self.heads)
        keys, values = rearrange(self.key_value(kv), "B N (two H d) -> two B H N d", two=2, H=self.heads)
        if mask is None:
            return self.out(rearrange(scaled_dot_product_attention(queries, keys, values), "B H M d -> B M (H d)"))
        seen = mask.any(1)[:, None]  # B 1
        visible = (mask | ~seen)[:, None, None, :]
        answer = scaled_dot_product_attention(queries, keys, values, attn_mask=visible)
        return self.out(rearrange(answer, "B H M d -> B M (H d)")) * seen[..., None]


class Dropout(nn.Module):
    """m y / (1 - q) in training, each m 0 with probability q and else 1; y itself in evaluation. q is p in whole parts of 65,536.

    On a CPU a mask is 16 bits of a random number, four masks to a draw of SFC64 (Doty-Humphrey's Small Fast Chaotic generator, in NumPy),
    which takes about a quarter of the time of nn.Dropout, forward and backward; elsewhere it is nn.Dropout. The global generator, from
    which nn.Dropout draws too, seeds every mask: a training seeds it and keeps it in its checkpoints. ValueError unless 0 <= q < 1.
    """

    def __init__(self, p: float):
        super().__init__()
        self.p, self.dropped = p, round(p * 2**16)
        if not 0 <= self.dropped < 2**16:
            raise ValueError(f"dropout is {p}; give a probability from 0 to less than 1")

    def forward(self, y: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        if not (self.training and self.dropped):
            return y
        return dropout(y, self.p) if y.device.type != "cpu" else y * self._mask(y)

    def onto(self, tokens: Float[Tensor, "..."], y: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """tokens + forward(y), on a CPU in one pass."""
        if self.training and self.dropped and y.device.type == "cpu" and y.dtype == tokens.dtype:
            return torch.addcmul(tokens, y, self._mask(y))
        return tokens + self(y)

    @torch.compiler.disable  # a compiled graph would draw from a generator of its own
    def _mask(self, y: Tensor) -> Tensor:
        """m / (1 - q) for each number of y."""

        def draw(count: int, generator: torch.Generator | None) -> Tensor:
            seed, numbers = int(torch.randint(2**62, (), generator=generator)), count * math.prod(y.shape[1:])
            raw = np.random.SFC64(seed).random_raw((numbers + 3) // 4).view(np.int16)
            return torch.from_numpy(raw)[:numbers].view(count, *y.shape[1:])

        words = shares.drawn(draw, len(y))
        kept = torch.ge(words, self.dropped - 2**15, out=y.new_empty(y.shape))  # as numbers at once: products with bool are slow
        return kept.mul_(2**16 / (2**16 - self.dropped))

    def extra_repr(self) -> str:
        return f"p={self.p}"


def skipped(tokens: Float[Tensor, "B L D"], after: Float[Tensor, "B L D"], rate: float) -> Float[Tensor, "B L D"]:
    """A layer's tokens after it, or in a share `rate` of the fields those before it, so that the mean is that of the layer.

    x + m / (1 - rate) (layer(x) - x), m 0 or 1 per field: Huang et al., Deep Networks with Stochastic Depth (2016), eq. 2 and 5, with the
    survival probability divided out while training. Draws from the global generator, as Dropout does.
    """
    kept = shares.drawn(lambda count, g: torch.rand(count, 1, 1, device=tokens.device, generator=g), len(tokens)) >= rate
    return tokens + kept / (1 - rate) * (after - tokens)


def decoder(kind: str, width: int, channels: int, inner: int | None = None) -> nn.Module:
    """Features (.., D) to values (.., C): linear, two layers with ReLU or GELU, or three with GELU; `inner` wide between them."""
    inner = inner or width
    if kind == "linear":
        return Linear(width, channels)
    if kind == "gelu3":
        return nn.Sequential(Linear(width, inner), nn.GELU(), Linear(inner, inner), nn.GELU(), Linear(inner, channels))
    return nn.Sequential(Linear(width, inner), {"relu": nn.ReLU, "gelu": nn.GELU}[kind](), Linear(inner, channels))
