"""The flow models: one network for every row of the table of versions.

A version is a row of VERSIONS and a suspect is a value of a field, so any system of the investigation is one call:
`build("v2-transformer", head="residual")`. As the documents describe them, readings and queries form one sequence: the encoder
reads [(s_obs, y_obs), (s_qry, y_t)] with the time added to every token, then each query attends to the readings, and a decoder
turns the result into a velocity. What a scan reads in which order is a switch: the order of the queries, and the direction.
With encoder "memory" (ours) the readings are encoded once for all times; queries read that memory and never look at each other, so any
number of queries in any chunks gives the same answer, and an evaluation costs no more than its queries.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn.functional import silu

from lib import order, paths, shares
from lib.data import Batch, Scaling
from lib.encoders import PerceiverLayer, ReadingLayer, blocks
from lib.layers import Attention, CoordinateFeatures, TimeEmbedding, decoder, sequence_position, skipped
from lib.products import Linear
from lib.versions import CHOICES, VERSIONS, ModelConfig, configure, describe

__all__ = ["CHOICES", "VERSIONS", "Memory", "Model", "ModelConfig", "build", "configure", "describe", "parameters", "said"]


def build(version: str | ModelConfig, channels: int = 1, generator: torch.Generator | None = None, **switches) -> Model:
    """A model from a row of VERSIONS (or a configuration) with some switches set otherwise.

    Weights are drawn from `generator` alone: the caller's global random state is left as it was.
    ValueError for an unknown version, switch or value.
    """
    from lib.refined import Refined  # which is a Model

    config = configure(version, **switches)
    kind = Refined if config.source == "posterior" else Model
    seed = 0 if generator is None else int(torch.randint(2**62, (), generator=generator))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return kind(config, channels, torch.Generator().manual_seed(seed))


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
        self.enter = Linear(2 * self.features.count + channels, c.width)
        self.time = TimeEmbedding(c.time, c.width, c.head_width)
        self.blocks = nn.ModuleList(blocks(c))
        self.perceiver = nn.ModuleList(PerceiverLayer(c.width, c.heads, c.ffn, c.norm, c.dropout) for _ in range(c.perceiver))
        alone = c.encoder == "memory" or c.head == "token"
        self.cross = nn.Identity() if alone else Attention(c.width, c.heads, c.head_width)
        self.reads = nn.ModuleList()
        if c.encoder == "memory":
            self.ask, self.remember, self.settle = Linear(self.enter.in_features, c.width), nn.LayerNorm(c.width), nn.LayerNorm(c.width)
            self.reads.extend(ReadingLayer(c.width, c.heads, c.ffn, c.norm, c.dropout) for _ in range(c.reads))
        self.decode = decoder(c.decoder, c.width, channels, c.head_width)
        # after all others, so that a seed gives those the same weights with and without these
        timed = len(self.reads) if c.encoder == "memory" else len(self.blocks)
        self.tune = Linear(c.width, timed * 4 * c.width) if c.conditioning == "adaln" else None
        self.recall = Linear(channels, c.width, bias=False) if c.self_condition else None
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
            return self._bounded(self._read(queries, memory, tunes))
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

    def _read(self, queries: Float[Tensor, "B M D"], memory: Memory, tunes: Sequence[Tensor | None]) -> Float[Tensor, "B M C"]:
        """What queries make of the memory, each by itself."""
        for place, layer in enumerate(self.reads):
            after = layer(queries, memory.tokens, memory.mask, tunes[place])
            queries = self._past(len(self.blocks) + place, queries, after)
        return self.decode(self.settle(queries))

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
            seen = shares.drawn(lambda count, g: torch.rand(count, 1, 1, device=estimate.device, generator=g), len(estimate)) < 0.5
            estimate = estimate * seen
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
