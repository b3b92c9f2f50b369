"""The table of versions: every switch of a model, its choices, and one row per system of the investigation."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields, replace
from difflib import get_close_matches

from lib import order, paths
from lib.encoders import CLAMPS, GATES, STEPS


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
    source: str = "white"  # what a flow starts from: white noise, or draws of V5's posterior (lib/refined.py)


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
    "source": ("white", "posterior"),
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
    "v5": ModelConfig(encoder="memory", width=64, layers=2, inner=64, frequencies=24, **_OURS, source="posterior"),
    "fm-np": _JOINT,
}


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
    if config.source == "posterior" and (config.encoder, config.prediction, config.path) != ("memory", "data", "linear"):
        raise ValueError('source="posterior" needs encoder="memory", prediction="data" and path="linear"')
    if not 0 <= config.depth_drop < 1:
        raise ValueError(f"depth_drop is {config.depth_drop}; give a share from 0 to less than 1")
    return config


def _known(what: str, given, allowed):
    if given in allowed:
        return given
    close = get_close_matches(str(given), [str(a) for a in allowed], 1)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    raise ValueError(f"unknown {what} {given!r}; known: {', '.join(map(str, allowed))}{hint}")


def describe(config: ModelConfig) -> dict:
    """The configuration as plain values, for parameter files and checkpoints."""
    return asdict(config)
