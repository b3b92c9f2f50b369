"""The flow models: one network, its configuration, and the table of versions.

A version is a row of VERSIONS and a suspect is a value of a field, so any system of the investigation is one call:
`build("v2-transformer", head="residual")`. As the documents describe them, readings and queries form one sequence: the encoder
reads [(s_obs, y_obs), (s_qry, y_t)] with the time added to every token, then each query attends to the readings, and a decoder
turns the result into a velocity. What a scan reads in which order is a switch: the order of the queries, and the direction.
With encoder "memory" (ours) the readings are encoded once for all times; queries read that memory and never look at each other, so any
number of queries in any chunks gives the same answer, and an evaluation costs no more than its queries.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from difflib import get_close_matches

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn.functional import silu

from lib import order, paths
from lib.data import Batch, Scaling
from lib.encoders import CLAMPS, GATES, STEPS, PerceiverLayer, ReadingLayer, blocks
from lib.layers import Attention, CoordinateFeatures, TimeEmbedding, decoder, sequence_position, skipped


@dataclass(frozen=True)
class ModelConfig:
    """Every switch of a model; the choices stand in CHOICES. Sizes are widths of tensors, scales are radians per unit of s."""

    encoder: str = "transformer"
    width: int = 128
    layers: int = 4
    heads: int = 4
    inner: int = 64  # width inside the encoder's attention, or of the scan
    ffn: int = 128  # width inside the feed-forward of a Transformer or Perceiver layer
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
    state_clamp: str = "none"  # of the LTI state, at 10; hard cuts, soft is a tanh; selective and ssd have none
    direction: str = "forward"  # of the scans; axes: in turns by rows and by columns
    order: str = "given"  # of the queries in the sequence; random is a fixed order without neighbours
    perceiver: int = 0  # Perceiver iterations between encoder and head
    gate: str = "silu"
    mlp: int = 0  # MLP after each state-space block, its inner width in multiples of the width; 0: none
    head_width: int = 0  # inside cross-attention, time MLP and decoder; 0: the model's width
    reads: int = 2  # layers in which queries read the memory, with encoder "memory"
    timed: str = "all"  # which tokens of the sequence carry the time
    path: str = "linear"  # from noise to data
    conditioning: str = "add"  # how the time enters: added to the tokens, or (adaln) as scale and shift of the norms
    self_condition: bool = False  # the network is asked twice and sees its first estimate of the data, see `said`
    depth_drop: float = 0.0  # share of the fields that skip the last layer in training; earlier ones fewer, rising linearly


CHOICES = {
    "encoder": ("transformer", "ssm", "memory"),
    "norm": ("pre", "post"),
    "position": ("none", "sequence"),
    "step": STEPS,
    "features": ("random", "learnable", "harmonic", "octave"),
    "time": ("raw", "scaled", "mlp"),
    "head": ("attention", "residual", "token"),  # token: read off the encoded queries, without cross-attention
    "decoder": ("linear", "relu", "gelu", "gelu3"),
    "prediction": ("velocity", "data"),
    "output": ("free", "sigmoid", "clamp", "clamp_range"),  # sigmoid acts on the network, the clamps on the finished sample
    "normalisation": ("none", "documents", "measured"),  # documents: mean 0.5, std 0.289
    "state_clamp": CLAMPS,
    "direction": ("forward", "both", "axes"),
    "order": ("given", *order.ORDERS),
    "gate": tuple(GATES),
    "timed": ("all", "queries"),
    "path": paths.PATHS,
    "conditioning": ("add", "adaln"),
}

# Parts that the large systems share; their head, as in v1-mamba, is cross-attention without residual.
_LARGE = {"width": 256, "heads": 8, "inner": 256, "ffn": 1024, "norm": "post", "frequencies": 256, "two_pi": True, "time": "mlp"}
_SCAN = {"encoder": "ssm", "state": 16, "step": "discretised", "state_clamp": "hard", "gate": "sigmoid", "decoder": "gelu3"}
# "Expand 2" is one projection to twice the width, halved into input and gate. Read as Mamba's own (a scan twice as wide) six blocks
# hold 5.5 M; read like this they hold 4.4 M with their 4x MLPs, still above the documents' 4 M in all, but 512 wide meet their 18 M.
_BLOCKS = ModelConfig(**_LARGE, **_SCAN, layers=6, mlp=4)

# What the investigation found to be repairs, as defaults of what we build.
_OURS = {"features": "harmonic", "time": "mlp", "head": "residual", "prediction": "data", "normalisation": "measured"}

# The peer that encodes everything at every step (Abu Hamad and Rosenbaum, Flow Matching Neural Processes, 2025): readings and noisy
# queries are tokens of one transformer, which says the velocity at the queries; asked by 100 Euler steps. Ours, after the recipe: where
# it leaves a choice, every token attends to every other, only queries carry the time, and depth and norm are those of Transformer
# Neural Processes (Nguyen and Grover, 2022). sin and cos of 2^k pi s, k = 0 ... 5.
_JOINT = ModelConfig(
    width=96, layers=6, inner=96, ffn=192, norm="post", features="octave", frequencies=12, time="mlp", head="token",
    normalisation="measured", timed="queries",
)  # fmt: skip

VERSIONS = {
    "v1-mamba": ModelConfig(encoder="ssm", inner=128, decoder="relu"),
    "v2-transformer": ModelConfig(dropout=0.1),
    # random queries per step are the fourth fix of the documents; they belong to training, see train.TrainConfig.positions
    "v2-fixed": ModelConfig(dropout=0.1, output="clamp", features="learnable", normalisation="documents"),
    "v1-large": _BLOCKS,
    "v1-large-512": replace(_BLOCKS, width=512, inner=512, head_width=256),
    # four pairs of a forward and a backward block without MLP, each with its own projections, joined by a matrix
    "v2-bimamba": replace(_BLOCKS, layers=8, mlp=0, direction="both", perceiver=2),
    "v3-morton": replace(_BLOCKS, order="morton"),
    "v4-transformer": ModelConfig(**_LARGE, layers=6, position="sequence", decoder="linear"),
    "v5-white": ModelConfig(encoder="memory", width=64, layers=3, inner=64, frequencies=24, **_OURS),
    "fm-np": _JOINT,
}


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
    if config.direction == "both" and config.encoder == "ssm" and config.layers % 2:
        raise ValueError(f'direction="both" pairs a forward with a backward block, so layers must be even; got {config.layers}')
    if config.conditioning == "adaln" and (config.encoder == "ssm" or config.timed != "all"):
        raise ValueError('conditioning="adaln" needs the encoder transformer or memory and timed="all"')
    if not 0 <= config.depth_drop < 1:
        raise ValueError(f"depth_drop is {config.depth_drop}; give a share from 0 to less than 1")
    return config


def _known(what: str, given, allowed):
    if given in allowed:
        return given
    close = get_close_matches(str(given), [str(a) for a in allowed], 1)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    raise ValueError(f"unknown {what} {given!r}; known: {', '.join(map(str, allowed))}{hint}")


@dataclass(frozen=True)
class Memory:
    """What a model keeps of the readings: tokens without time, which of them are real (None: all), and their sites."""

    tokens: Float[Tensor, "B N D"]
    mask: Bool[Tensor, "B N"] | None
    s: Float[Tensor, "B N 2"]


class Model(nn.Module):
    """Velocity network of one configuration; values inside are normalised by the buffers of `scaling`."""

    def __init__(self, config: ModelConfig, channels: int, generator: torch.Generator):
        super().__init__()
        self.config, self.channels = config, channels
        c = config
        self.features = CoordinateFeatures(c.features, c.frequencies, c.scale, c.two_pi, c.nyquist, generator)
        self.enter = nn.Linear(2 * self.features.count + channels, c.width)
        self.time = TimeEmbedding(c.time, c.width, c.head_width)
        self.blocks = nn.ModuleList(blocks(c))
        self.perceiver = nn.ModuleList(PerceiverLayer(c.width, c.heads, c.ffn, c.norm, c.dropout) for _ in range(c.perceiver))
        alone = c.encoder == "memory" or c.head == "token"
        self.cross = nn.Identity() if alone else Attention(c.width, c.heads, c.head_width)
        self.reads = nn.ModuleList()
        if c.encoder == "memory":
            self.ask, self.remember, self.settle = nn.Linear(self.enter.in_features, c.width), nn.LayerNorm(c.width), nn.LayerNorm(c.width)
            self.reads.extend(ReadingLayer(c.width, c.heads, c.ffn, c.norm, c.dropout) for _ in range(c.reads))
        self.decode = decoder(c.decoder, c.width, channels, c.head_width)
        # after all others, so that a seed gives those the same weights with and without these
        timed = len(self.reads) if c.encoder == "memory" else len(self.blocks)
        self.tune = nn.Linear(c.width, timed * 4 * c.width) if c.conditioning == "adaln" else None
        self.recall = nn.Linear(channels, c.width, bias=False) if c.self_condition else None
        if self.tune is not None:  # starts as a network that does not know the time
            nn.init.zeros_(self.tune.weight), nn.init.zeros_(self.tune.bias)
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
            return self._remembered(Memory(self._tokens(s, y), None, s))
        front = torch.argsort(mask.to(torch.uint8), dim=1, stable=True)
        return self._remembered(Memory(*(order.take(what, front) for what in (self._tokens(s, y), mask, s))))

    def _remembered(self, memory: Memory) -> Memory:
        """With encoder "memory", the readings after its layers; they stay the same for all times."""
        if self.config.encoder != "memory":
            return memory
        tokens = memory.tokens
        for place, block in enumerate(self.blocks):
            tokens = self._past(place, tokens, block(tokens, memory.mask))
        return replace(memory, tokens=self.remember(tokens))

    def network(
        self,
        y_t: Float[Tensor, "B M C"],
        t: Float[Tensor, "B"],
        s_qry: Float[Tensor, "B M 2"],
        memory: Memory,
        estimate: Tensor | None = None,
    ) -> Tensor:
        """What the network says: a velocity or the data, as `prediction` has it, in its own units; (B, M, C).

        estimate (B, M, C): its earlier estimate of the data, with self_condition; in training half of the fields do not see it.
        """
        time, tunes = self._timed(t)
        if self.config.encoder == "memory":
            queries = self._recalled(self.ask(torch.cat([self.features(s_qry), y_t], -1)), estimate) + time
            for place, layer in enumerate(self.reads):
                after = layer(queries, memory.tokens, memory.mask, tunes[place])
                queries = self._past(len(self.blocks) + place, queries, after)
            return self._bounded(self.decode(self.settle(queries)))
        way = order.ORDERS[self.config.order](s_qry) if self.config.order != "given" else None
        if way is not None:
            y_t, s_qry = order.take(y_t, way), order.take(s_qry, way)
            estimate = None if estimate is None else order.take(estimate, way)
        count = memory.tokens.shape[1]
        tokens = [memory.tokens, self._recalled(self._tokens(s_qry, y_t), estimate)]
        tokens = torch.cat(tokens, 1) + time if self.config.timed == "all" else torch.cat([tokens[0], tokens[1] + time], 1)
        if self.config.position == "sequence":
            tokens = tokens + sequence_position(tokens.shape[1], self.config.width, tokens.device, tokens.dtype)
        tokens = self._encoder(tokens, memory, s_qry, tunes)
        readings, queries = tokens[:, :count], tokens[:, count:]
        for layer in self.perceiver:
            queries = layer(queries, readings, memory.mask)
        answer = queries if self.config.head == "token" else self.cross(queries, readings, memory.mask)
        if self.config.head == "residual":
            answer = queries + answer
        out = self._bounded(self.decode(answer))
        return out if way is None else order.restore(out, way)

    def _bounded(self, out: Tensor) -> Tensor:
        return torch.sigmoid(out) if self.config.output == "sigmoid" else out

    def _timed(self, t: Float[Tensor, "B"]) -> tuple[Tensor | float, Sequence[Tensor | None]]:
        """What the time adds to the tokens, and the scales and shifts (B, 4, D) of each layer that it tunes instead."""
        if self.tune is None:
            return self.time(t)[:, None], [None] * max(len(self.blocks), len(self.reads))
        tunes = rearrange(self.tune(silu(self.time(t))), "B (layers four D) -> layers B four D", four=4, D=self.config.width)
        return 0.0, tunes.unbind()

    def _recalled(self, queries: Float[Tensor, "B M D"], estimate: Tensor | None) -> Float[Tensor, "B M D"]:
        """The queries' tokens with what they see of an estimate of the data."""
        if estimate is None:
            return queries
        if self.training:
            estimate = estimate * (torch.rand(len(estimate), 1, 1, device=estimate.device) < 0.5)
        return queries + self.recall(estimate)

    def _past(self, place: int, before: Tensor, after: Tensor) -> Tensor:
        """The tokens past layer 0, 1, ... of the encoder and its readers, some of which a training leaves out."""
        rate = self.config.depth_drop * (place + 1) / (len(self.blocks) + len(self.reads))
        return skipped(before, after, rate) if self.training and rate else after

    def _encoder(self, tokens: Float[Tensor, "B L D"], memory: Memory, s_qry: Tensor, tunes: Sequence) -> Float[Tensor, "B L D"]:
        """The blocks one after another; with direction "axes" every other one reads readings and queries by columns, the rest by rows."""
        mask = memory.mask
        if mask is not None:
            mask = torch.cat([mask, mask.new_ones(s_qry.shape[:2])], 1)
        if self.config.direction != "axes" or self.config.encoder != "ssm":
            for place, block in enumerate(self.blocks):
                tokens = self._past(place, tokens, block(tokens, mask) if self.tune is None else block(tokens, mask, tunes[place]))
            return tokens
        ways = [_axis(by, memory, s_qry) for by in (order.row_major, order.column_major)]
        for index, block in enumerate(self.blocks):
            way = ways[index % 2]
            tokens = self._past(index, tokens, order.restore(block(order.take(tokens, way), mask), way))
        return tokens

    def velocity(self, y_t: Float[Tensor, "B M C"], t: Float[Tensor, "B"], s_qry: Float[Tensor, "B M 2"], memory: Memory) -> Tensor:
        """dy/dt at (y_t, t) in the network's units, (B, M, C); from predicted data it is that of the path, see paths.velocity."""
        out = said(self, y_t, t, s_qry, memory)
        return out if self.config.prediction == "velocity" else paths.velocity(self.config.path, out, y_t, t)

    def _tokens(self, s: Tensor, y: Tensor) -> Tensor:
        return self.enter(torch.cat([self.features(s), y], -1))


def said(model, y_t: Float[Tensor, "B M C"], t: Float[Tensor, "B"], s_qry: Float[Tensor, "B M 2"], memory) -> Float[Tensor, "B M C"]:
    """What a network says; with self_condition after seeing the data it estimates, at the same point, when asked without an estimate.

    Chen, Zhang and Hinton, Analog Bits (2023), section 3.2. There a sampler hands on the estimate of its last step, for free. Here each
    evaluation costs two, and the velocity is a function of y_t and t: every solver keeps its order, dopri5 its control of the step.
    """
    if not model.config.self_condition:
        return model.network(y_t, t, s_qry, memory)
    with torch.no_grad():
        first = model.network(y_t, t, s_qry, memory)
        estimate = first if model.config.prediction == "data" else paths.data(model.config.path, first, y_t, t)
    return model.network(y_t, t, s_qry, memory, estimate.to(y_t.dtype))


def _axis(by: Callable, memory: Memory, s_qry: Tensor) -> Tensor:
    """Readings along one axis, padding in front of them, then queries along that axis: a permutation of the sequence."""
    readings = order.padding_first(by(memory.s), memory.mask)
    return torch.cat([readings, memory.s.shape[1] + by(s_qry)], 1)


def parameters(model: nn.Module) -> int:
    """Trained numbers of a model."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def describe(config: ModelConfig) -> dict:
    """The configuration as plain values, for parameter files and checkpoints."""
    return asdict(config)
