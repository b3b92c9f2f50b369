"""Training: one loop, read in one sitting.

    batches -> flow.loss -> optimiser -> weight average; every `validate_every` steps the loss on held-out fields;
    checkpoints that resume bit-exactly

The weight average is Polyak's, decaying exponentially; optimisers are those of lib/optimisers.py.
On a GPU the loop reads nothing back between the steps at which it reports.
"""

from __future__ import annotations

import copy
import json
import math
import os
import time
from dataclasses import asdict, dataclass
from difflib import get_close_matches
from pathlib import Path

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from lib import augment, checkpoint, coupling, data, optimisers, penalties, progress, refine, shares, worlds
from lib.checkpoint import CheckpointError
from lib.model import ModelConfig
from lib.objective import Objective, asked
from lib.schedules import SCHEDULES, learning_rate, lower
from lib.stopping import stop_requests


@dataclass(frozen=True)
class TrainConfig:
    """How a model is trained; the defaults are the documents' protocol: 500 fields, batch 32, 1,600 steps (100 epochs), 51 + 51 sites."""

    fields: int = 500
    steps: int = 1600
    batch: int = 32
    optimiser: str = "adamw"  # one of optimisers.OPTIMISERS
    rate: float = 1e-3  # learning rate
    schedule: str = "constant"  # one of schedules.SCHEDULES
    warmup: int = 0  # steps over which the rate rises from zero
    decay: float = 0.0  # weight decay
    clip: float = 0.0  # largest gradient norm; 0: none
    average: float = 0.0  # decay of the weight average; 0: none
    readings: int = 51
    queries: int | str = 51  # supervised sites per field, or "all"
    sensors: str = "field"
    positions: str = "field"
    layout: str = "uniform"
    noise: float = 0.0  # of the readings, relative to half the unit range
    seed: int = 0
    precision: str = "float32"  # float64: training and answers in double · bf16: autocast while training, worth it on a GPU only
    compile: bool = False  # torch.compile the network
    validate_every: int = 100
    validation_fields: int = 32
    patience: int = 0  # validations without improvement before stopping; 0: never stop early
    answer: str = "last"  # weights the model leaves with; best: of the least validation loss, those it (or a reflow) begins with included
    checkpoint_every: int = 200
    keep_every: int = 0  # also keep step-<n>.pt at every multiple; 0: none
    penalty: str = "none"  # one of penalties.PENALTIES, on the one-step estimate of the field
    penalty_weight: float = 0.1
    penalty_patch: int = 8  # sites along an edge of the patch it looks at
    coupling: str = "independent"  # one of coupling.COUPLINGS
    reflow_steps: int = 10  # Euler steps of the frozen model that makes the pairs
    augment: str = "none"  # one of augment.AUGMENTS
    cycles: int = 4  # of the schedule "restarts"
    plateau: int = 3  # validations without improvement before the schedule "plateau" halves the rate
    consistency: float = 0.0  # weight of penalties.consistency; 0: none

    def __post_init__(self):
        for name, allowed in CHOICES.items():
            given = getattr(self, name)
            if given not in allowed:
                close = get_close_matches(str(given), allowed, 1)
                hint = f"; did you mean {close[0]!r}?" if close else ""
                raise ValueError(f"unknown {name} {given!r}; known: {', '.join(allowed)}{hint}")
        for name, least in {
            "penalty_weight": 0,
            "consistency": 0,
            "penalty_patch": 3,
            "reflow_steps": 1,
            "cycles": 1,
            "plateau": 1,
        }.items():
            if not getattr(self, name) >= least:
                raise ValueError(f"{name} is {getattr(self, name)}; give at least {least}")


CHOICES = {
    "optimiser": optimisers.OPTIMISERS,
    "answer": ("last", "best"),
    "schedule": SCHEDULES,
    "precision": ("float32", "float64", "bf16"),
    "penalty": ("none", *penalties.PENALTIES, "spectrum"),
    "coupling": coupling.COUPLINGS,
    "augment": augment.AUGMENTS,
}


NO_RESULT = ("checkpoint_every", "keep_every", "compile")  # settings that leave the result as it is


class TrainingDiverged(RuntimeError):
    """The loss left the finite numbers; the last good checkpoint is kept."""


def fit(model, world, config: TrainConfig, folder: Path | str | None = None, device="cpu", show: bool | None = None) -> dict:
    """Train `model` in place on fields of `world` and return its history (steps, losses, validation, seconds).

    With a folder: latest.pt, previous.pt, best.pt and history.json live there, and a training stopped at any moment continues
    from latest.pt to the same numbers as one that was not stopped. SIGTERM and Ctrl-C save, then end the program as usual.
    The model leaves with the weights that `average` and `answer` ask for.
    CheckpointError: the folder belongs to another training, or is damaged.
    TrainingDiverged: the loss is not finite.
    """
    folder = None if folder is None else _open(Path(folder))
    world = worlds.get(world) if isinstance(world, str) else world
    run = Run(model, world, config, torch.device(device), folder)
    run.resume()
    bar = progress.bar(config.steps, start=run.step, label=world.name, show=show)
    with stop_requests() as stop, shares.between(torch.get_num_threads() if run.device.type == "cpu" else 1):
        while run.step < config.steps and not run.finished:
            run.advance()
            due = run.step == config.steps
            if run.step % config.validate_every == 0 or due:
                bar(run.step, f"loss {run.report():.4f}")
            if folder and (due or run.finished or stop or run.step % config.checkpoint_every == 0):
                run.save()
            if stop:
                stop.end()
    run.finish()
    return run.history


class Run:
    """The state of one training: what a checkpoint holds and a step changes."""

    def __init__(self, model, world, config: TrainConfig, device, folder: Path | None):
        if (queries := config.queries) != "all" and not isinstance(queries, int):
            raise ValueError(f'queries must be a number or "all", got {queries!r}')
        self.config, self.folder, self.device, self.world = config, folder, device, world
        fields = world.fields(config.fields, generator=data.generator(config.seed, "train"), split="train")
        held_out = world.fields(config.validation_fields, generator=data.generator(config.seed, "validation"), split="validation")
        if config.precision == "float64":
            model.double()
        self.model = model.to(device).scale_by(data.measure(fields))
        self.fields, fields = fields, refine.prepare(model, fields)
        self.batches = data.batches(
            fields, config.batch, config.readings, queries, config.sensors, config.positions, config.layout, config.noise,
            generator=data.generator(config.seed, "batches", device), device=device, augment=config.augment,
        )  # fmt: skip
        sensors, chosen = (data.generator(config.seed, f"validation {what}") for what in ("sensors", "queries"))
        self.validation = data.observe(held_out, config.readings, config.layout, sensors, config.noise)
        self.validation = asked(self.validation, queries, chosen).to(device)
        self.objective = Objective(config, self.batches, device)
        self.optimiser = optimisers.make(config.optimiser, model.parameters(), config.rate, config.decay)
        self.average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(config.average)) if config.average else None
        self.network = torch.compile(model.network) if config.compile else model.network
        self.step, self.finished, self.best, self.stale, self.lowered, self.kept = 0, False, math.inf, 0, 0, None
        # losses since the last report, summed on the device in the precision of the weights
        self.total = next(model.parameters()).new_zeros(())
        self.parts = {name: self.total.clone() for name in ("penalty", "consistency")}
        self.history: dict = {"step": [], "loss": [], "validation": [], "rate": [], "seconds": 0.0}
        wanted = {"penalty": config.penalty != "none", "consistency": config.consistency}
        self.history |= {name: [] for name, its in wanted.items() if its}
        self.clock = time.perf_counter()
        # dropout draws from the global generator: one stream per training, so that arms do not depend on what ran before them
        torch.manual_seed(data.generator(config.seed, "dropout").initial_seed())

    def advance(self) -> None:
        """One optimiser step."""
        if due := self.objective.due(self.step):
            self.objective.freeze(self.average.module if self.average else self.model)
            self.best, self.stale = math.inf, 0  # losses on the new pairs do not compare with those before
        if self.config.answer == "best" and (due or self.step == 0):
            self.keep(self.validate())
        for group in self.optimiser.param_groups:
            group["lr"] = learning_rate(self.step, self.config, self.lowered)
        self.model.train()
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.precision == "bf16"):
            loss, parts = self.objective(_Compiled(self.model, self.network), next(self.batches))
        self.optimiser.zero_grad(set_to_none=True)
        self.objective.total(loss, parts).backward()
        if self.config.clip:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.config.clip)
        self.optimiser.step()
        if self.average:
            self.average.update_parameters(self.model)
        self.total += loss.detach()
        for name, part in parts.items():
            self.parts[name] += part.detach()
        self.step += 1

    def report(self) -> float:
        """Mean loss since the last report and loss on held-out fields, into the history; notes the best and when to stop."""
        since = self.step - (self.history["step"][-1] if self.history["step"] else 0)
        loss, parts = float(self.total) / since, {name: float(part) / since for name, part in self.parts.items()}
        self.total.zero_()
        for part in self.parts.values():
            part.zero_()
        if not math.isfinite(loss + sum(parts.values())):
            latest = self.folder / "latest.pt" if self.folder else None
            kept = f"; the last good checkpoint is {latest}" if latest and latest.exists() else ""
            way_out = f"lower the rate ({self.config.rate}) or set clip to 1"
            raise TrainingDiverged(f"the loss is {loss} before step {self.step}: {way_out}{kept}")
        held_out = self.validate()
        now = {"step": self.step, "loss": loss, "validation": held_out, "rate": learning_rate(self.step - 1, self.config, self.lowered)}
        for name, value in (now | parts).items():
            if name in self.history:
                self.history[name].append(value)
        self.stale = 0 if held_out < self.best else self.stale + 1
        if held_out < self.best:
            self.keep(held_out)
        self.lowered += lower(self.config, self.stale)
        self.finished = bool(self.config.patience and self.stale >= self.config.patience)
        return loss

    def keep(self, held_out: float) -> None:
        """These weights are the best so far, by their loss on held-out fields."""
        self.best = held_out
        if self.config.answer == "best":
            self.kept = copy.deepcopy(self.weights())
        if self.folder:
            checkpoint.save({"step": self.step, "model": self.weights(), "world": self.world.name}, self.folder / "best.pt")

    @torch.no_grad()
    def validate(self) -> float:
        """The flow loss on held-out fields with noise and times that are the same at every call."""
        model = self.average.module if self.average else self.model
        model.eval()
        noise = data.generator(self.config.seed, "validation noise", self.device)
        return float(self.objective.validation(model, self.validation, noise))

    def weights(self) -> dict:
        """The weights that answer: averaged if an average is kept."""
        return (self.average.module if self.average else self.model).state_dict()

    def save(self) -> None:
        """Write latest.pt (the one before becomes previous.pt), history.json and, where asked, step-<n>.pt."""
        if not all(bool(torch.isfinite(p).all()) for p in self.model.parameters()):
            way_out = "the last good checkpoint is kept; lower the rate or set clip to 1"
            raise TrainingDiverged(f"weights are not finite at step {self.step}: {way_out}")
        state = {
            "step": self.step, "world": self.world.name, "settings": self.settings(), "model": self.model.state_dict(),
            "average": self.average.state_dict() if self.average else None, "optimiser": self.optimiser.state_dict(),
            "batches": self.batches.state_dict(), "noise": self.objective.noise.get_state(), "dropout": torch.get_rng_state(),
            "dropout_cuda": torch.cuda.get_rng_state(self.device) if self.device.type == "cuda" else None,
            "history": json.dumps({**self.history, "seconds": self.seconds()}), "total": self.total,
            "best": self.best, "stale": self.stale, "finished": self.finished,
            "objective": self.objective.state_dict(), **self.parts, "lowered": self.lowered, "kept": self.kept,
        }  # fmt: skip
        checkpoint.save(state, self.folder / "latest.pt", keep=self.folder / "previous.pt")
        if self.config.keep_every and self.step % self.config.keep_every == 0:
            checkpoint.save(state, self.folder / f"step-{self.step}.pt")
        temporary = self.folder / "history.json.tmp"
        temporary.write_text(state["history"])
        os.replace(temporary, self.folder / "history.json")

    def resume(self) -> None:
        """Continue from the folder's latest.pt, if there is one."""
        latest = self.folder / "latest.pt" if self.folder else None
        if latest is None or not latest.exists():
            return
        state = checkpoint.load(latest)
        its = _defaults() | state["settings"]  # a switch younger than the checkpoint stood at its default
        if its != self.settings():
            raise CheckpointError(
                f"{self.folder} holds a training with other settings ({_difference(its, self.settings())}); "
                "choose another folder, or delete it to start again"
            )
        self.model.load_state_dict(state["model"])
        if self.average:
            self.average.load_state_dict(state["average"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.batches.load_state_dict(state["batches"])
        self.objective.noise.set_state(state["noise"].cpu())
        if "objective" in state:  # checkpoints from before penalties and couplings lack these
            self.objective.load_state_dict(state["objective"], self.model)
            self.parts = {name: state.get(name, part).to(self.device) for name, part in self.parts.items()}
            self.lowered = state["lowered"]
        torch.set_rng_state(state["dropout"])
        if state["dropout_cuda"] is not None:
            torch.cuda.set_rng_state(state["dropout_cuda"], self.device)
        self.history, self.total = json.loads(state["history"]), state["total"].to(self.device)
        self.step, self.best, self.stale, self.finished = (state[name] for name in ("step", "best", "stale", "finished"))
        self.kept = state.get("kept")

    def settings(self) -> dict:
        """What makes this training this one: a checkpoint with other settings is not continued."""
        how = {k: v for k, v in asdict(self.config).items() if k not in NO_RESULT}
        return {**how, "world": self.world.name, "channels": self.model.channels, **asdict(self.model.config)}

    def seconds(self) -> float:
        """Wall time spent, over all the pieces of a resumed training."""
        return self.history["seconds"] + time.perf_counter() - self.clock

    def finish(self) -> None:
        """Hand the answering weights to the model and close the history."""
        if self.average or self.kept:
            self.model.load_state_dict(self.kept or self.weights())
        refine.settle(self.model, self.fields)
        self.model.eval()
        self.history["seconds"] = self.seconds()


def restore(model, path: Path | str):
    """Load the weights of a checkpoint (best.pt, latest.pt, step-<n>.pt) into a model of the same configuration."""
    state = checkpoint.load(Path(path))
    try:
        model.load_state_dict(state["model"])
    except RuntimeError as error:
        first = str(error).splitlines()[1].strip() if "\n" in str(error) else str(error)
        way_out = "build the model with the settings it was trained with"
        raise CheckpointError(f"{path} was trained with another configuration: {first}; {way_out}") from None
    return model.eval()


@dataclass(frozen=True)
class _Compiled:
    """A model whose network call may be compiled; flow.loss sees no difference."""

    model: nn.Module
    network: object

    def __getattr__(self, name):
        return getattr(self.model, name)


def _open(folder: Path) -> Path:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CheckpointError(f"cannot write to {folder} ({error.strerror}); choose another folder") from None
    return folder


def _defaults() -> dict:
    return {k: v for k, v in (asdict(ModelConfig()) | asdict(TrainConfig())).items() if k not in NO_RESULT}


def _difference(old: dict, new: dict) -> str:
    return ", ".join(f"{k}: {old.get(k)} there, {new.get(k)} now" for k in sorted(old.keys() | new.keys()) if old.get(k) != new.get(k))
