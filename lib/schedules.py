"""Learning rates as functions of the step.

    constant   rate
    cosine     rate (1 + cos(pi p)) / 2, p the share of the steps done: to zero at the last step
    restarts   the same within each of `cycles` equal parts (Loshchilov and Hutter, SGDR, 2017, eq. 5 with T_mult = 1)
    step       a tenth from half of the steps on, a hundredth from three quarters on (He et al., Deep Residual Learning, 2016, section 4.2)
    plateau    half as much whenever `plateau` validations in a row have not improved on the best

Before them all, `warmup` steps over which the rate rises linearly from zero; the shares count from its end, except for `step`.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lib.train import TrainConfig

SCHEDULES = ("constant", "cosine", "restarts", "step", "plateau")


def learning_rate(step: int, config: TrainConfig, lowered: int = 0) -> float:
    """The rate of step 0, 1, ...; `lowered` counts how often a plateau has halved it."""
    if step < config.warmup:
        return config.rate * (step + 1) / config.warmup * 0.5**lowered
    if config.schedule == "cosine":
        return config.rate * (1 + math.cos(math.pi * (step - config.warmup) / max(1, config.steps - config.warmup))) / 2
    if config.schedule == "restarts":
        done = (step - config.warmup) * config.cycles / max(1, config.steps - config.warmup)
        return config.rate * (1 + math.cos(math.pi * (done % 1))) / 2
    if config.schedule == "step":
        return config.rate * 0.1 ** ((2 * step >= config.steps) + (4 * step >= 3 * config.steps))
    return config.rate * 0.5**lowered


def lower(config: TrainConfig, stale: int) -> bool:
    """Whether the rate is halved after `stale` validations in a row without improvement."""
    return config.schedule == "plateau" and stale > 0 and stale % config.plateau == 0
