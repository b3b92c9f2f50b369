"""The flow models: one network, its configuration, and the table of versions.

A version is a row of VERSIONS and a suspect is a value of a field, so any system of the investigation is one call:
`build("v2-transformer", head="residual")`. As the documents describe them, readings and queries form one sequence: the encoder
reads [(s_obs, y_obs), (s_qry, y_t)] with the time added to every token, then each query attends to the readings, and a decoder
turns the result into a velocity.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields, replace
from difflib import get_close_matches

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from lib.data import Batch, Scaling
from lib.encoders import STEPS, SSMBlock, TransformerLayer
from lib.layers import Attention, CoordinateFeatures, TimeEmbedding, decoder, sequence_position

DATA_FLOOR = 0.02  # smallest 1 - t in (y_1 - y_t) / (1 - t): one step of 50, so that a stage at t = 1 stays finite


@dataclass(frozen=True)
class ModelConfig:
    """Every switch of a model; the choices stand in CHOICES. Sizes are widths of tensors, scales are radians per unit of s."""

    encoder: str = "transformer"
    width: int = 128
    layers: int = 4
    heads: int = 4
    inner: int = 64  # width inside the encoder's attention, or of the scan
    ffn: int = 128
    state: int = 8
    norm: str = "pre"
    dropout: float = 0.0
    position: str = "none"
    step: str = "length"
    features: str = "random"
    frequencies: int = 16
    scale: float = 10.0
    two_pi: bool = False
    nyquist: float = 16.0  # cycles over the domain: half of 32 sites
    time: str = "raw"
    head: str = "attention"
    decoder: str = "gelu"
    prediction: str = "velocity"
    output: str = "free"
    normalisation: str = "none"


CHOICES = {
    "encoder": ("transformer", "ssm"),
    "norm": ("pre", "post"),
    "position": ("none", "sequence"),
    "step": STEPS,
    "features": ("random", "learnable", "harmonic"),
    "time": ("raw", "scaled", "mlp"),
    "head": ("attention", "residual"),
    "decoder": ("linear", "relu", "gelu", "gelu3"),
    "prediction": ("velocity", "data"),
    "output": ("free", "sigmoid", "clamp", "clamp_range"),  # sigmoid acts on the network, the clamps on the finished sample
    "normalisation": ("none", "documents", "measured"),  # documents: mean 0.5, std 0.289
}

VERSIONS = {
    "v1-mamba": ModelConfig(encoder="ssm", inner=128, decoder="relu"),
    "v2-transformer": ModelConfig(dropout=0.1),
    # random queries per step are the fourth fix of the documents; they belong to training, see train.TrainConfig.positions
    "v2-fixed": ModelConfig(dropout=0.1, output="clamp", features="learnable", normalisation="documents"),
    "v4-transformer": ModelConfig(
        width=256, layers=6, heads=8, inner=256, ffn=1024, norm="post", position="sequence",
        frequencies=256, two_pi=True, time="mlp", decoder="linear",
    ),
}  # fmt: skip


def build(version: str | ModelConfig, channels: int = 1, generator: torch.Generator | None = None, **switches) -> Model:
    """A model from a row of VERSIONS (or a configuration) with some switches set otherwise.

    Weights are drawn from `generator` alone: the caller's global random state is left as it was.
    ValueError for an unknown version, switch or value.
    """
    config = configure(version, **switches)
    seed = 0 if generator is None else int(torch.randint(2**62, (), generator=generator))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Model(config, channels, torch.Generator().manual_seed(seed))


def configure(version: str | ModelConfig, **switches) -> ModelConfig:
    """The configuration of a version with some switches set otherwise, checked."""
    config = version if isinstance(version, ModelConfig) else VERSIONS[_known("version", version, VERSIONS)]
    for name in switches:
        _known("model switch", name, [f.name for f in fields(ModelConfig)])
    config = replace(config, **switches)
    for name, allowed in CHOICES.items():
        _known(name, getattr(config, name), allowed)
    return config


def _known(what: str, given, allowed):
    if given in allowed:
        return given
    close = get_close_matches(str(given), [str(a) for a in allowed], 1)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    raise ValueError(f"unknown {what} {given!r}; known: {', '.join(map(str, allowed))}{hint}")


@dataclass(frozen=True)
class Memory:
    """What a model keeps of the readings: tokens without time, and which of them are real (None: all)."""

    tokens: Float[Tensor, "B N D"]
    mask: Bool[Tensor, "B N"] | None


class Model(nn.Module):
    """Velocity network of one configuration; values inside are normalised by the buffers of `scaling`."""

    def __init__(self, config: ModelConfig, channels: int, generator: torch.Generator):
        super().__init__()
        self.config, self.channels = config, channels
        c = config
        self.features = CoordinateFeatures(c.features, c.frequencies, c.scale, c.two_pi, c.nyquist, generator)
        self.enter = nn.Linear(2 * self.features.count + channels, c.width)
        self.time = TimeEmbedding(c.time, c.width)
        if c.encoder == "ssm":
            self.blocks = nn.ModuleList(SSMBlock(c.width, c.inner, c.state, c.step) for _ in range(c.layers))
        else:
            self.blocks = nn.ModuleList(TransformerLayer(c.width, c.heads, c.inner, c.ffn, c.norm, c.dropout) for _ in range(c.layers))
        self.cross = Attention(c.width, c.heads)
        self.decode = decoder(c.decoder, c.width, channels)
        for name, value in {"mean": 0.0, "std": 1.0, "low": 0.0, "high": 1.0}.items():
            self.register_buffer(f"y_{name}", torch.full((channels,), value))

    def scale_by(self, scaling: Scaling) -> Model:
        """Set the normalisation this configuration asks for from the statistics of the training fields; kept in checkpoints."""
        if self.config.normalisation == "documents":
            self.y_mean.fill_(0.5), self.y_std.fill_(0.289)
        elif self.config.normalisation == "measured":
            self.y_mean.copy_(scaling.mean), self.y_std.copy_(scaling.std)
        self.y_low.copy_(scaling.low), self.y_high.copy_(scaling.high)
        return self

    def normalise(self, y: Tensor) -> Tensor:
        """Data units to the network's."""
        return (y - self.y_mean) / self.y_std

    def restore(self, y: Tensor) -> Tensor:
        """The network's units to the data's, with the clamp of the configuration."""
        y = y * self.y_std + self.y_mean
        if self.config.output == "clamp":
            return y.clamp(0, 1)
        return torch.clamp(y, self.y_low, self.y_high) if self.config.output == "clamp_range" else y

    def encode(self, batch: Batch) -> Memory:
        """Tokens of the readings; missing ones are moved to the front and masked. Without any reading one masked token stands in."""
        s, y, mask = batch.s_obs, torch.nan_to_num(self.normalise(batch.y_obs)), batch.m_obs
        if s.shape[1] == 0:
            s, y, mask = s.new_zeros(len(s), 1, 2), y.new_zeros(len(y), 1, self.channels), mask.new_zeros(len(mask), 1)
        if s.device.type == "cpu" and bool(mask.all()):  # on CUDA the question would stall the queue, so the mask stays
            return Memory(self._tokens(s, y), None)
        front = torch.argsort(mask.to(torch.uint8), dim=1, stable=True)
        tokens = torch.gather(self._tokens(s, y), 1, front[..., None].expand(-1, -1, self.config.width))
        return Memory(tokens, torch.gather(mask, 1, front))

    def network(self, y_t: Float[Tensor, "B M C"], t: Float[Tensor, "B"], s_qry: Float[Tensor, "B M 2"], memory: Memory) -> Tensor:
        """What the network says: a velocity or the data, as `prediction` has it, in its own units; (B, M, C)."""
        count = memory.tokens.shape[1]
        tokens = torch.cat([memory.tokens, self._tokens(s_qry, y_t)], 1) + self.time(t)[:, None]
        if self.config.position == "sequence":
            tokens = tokens + sequence_position(tokens.shape[1], self.config.width, tokens.device, tokens.dtype)
        mask = memory.mask
        if mask is not None:
            mask = torch.cat([mask, mask.new_ones(y_t.shape[:2])], 1)
        for block in self.blocks:
            tokens = block(tokens, mask)
        readings, queries = tokens[:, :count], tokens[:, count:]
        answer = self.cross(queries, readings, memory.mask)
        if self.config.head == "residual":
            answer = queries + answer
        out = self.decode(answer)
        return torch.sigmoid(out) if self.config.output == "sigmoid" else out

    def velocity(self, y_t: Float[Tensor, "B M C"], t: Float[Tensor, "B"], s_qry: Float[Tensor, "B M 2"], memory: Memory) -> Tensor:
        """dy/dt at (y_t, t) in the network's units, (B, M, C); from predicted data it is (y_1 - y_t) / (1 - t)."""
        out = self.network(y_t, t, s_qry, memory)
        if self.config.prediction == "velocity":
            return out
        return (out - y_t) / (1 - t).clamp(min=DATA_FLOOR)[:, None, None]

    def _tokens(self, s: Tensor, y: Tensor) -> Tensor:
        return self.enter(torch.cat([self.features(s), y], -1))


def parameters(model: nn.Module) -> int:
    """Trained numbers of a model."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def describe(config: ModelConfig) -> dict:
    """The configuration as plain values, for parameter files and checkpoints."""
    return asdict(config)
