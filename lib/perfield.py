"""One field at a time, as classical methods work: its valid readings, what is known without any, the answers put together."""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from jaxtyping import Float
from threadpoolctl import ThreadpoolController
from torch import Tensor

from lib.data import Batch, Prediction

DEFAULT_MEAN, DEFAULT_STD = 0.5, 0.354  # half range and the deviation of a sine mapped to [0, 1]: all that is known of an unseen world

SMALL = 1000  # readings per field up to which one thread is faster


def each(batch: Batch) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Field by field: sites (n, 2) and values (n, C) of the valid readings, query sites (M, 2); NaN readings count as missing."""
    s, y, q = (t.detach().to("cpu", torch.float64).numpy() for t in (batch.s_obs, batch.y_obs, batch.s_qry))
    valid = batch.m_obs.cpu().numpy() & np.isfinite(y).all(-1) & np.isfinite(s).all(-1)
    for i in range(len(q)):
        yield s[i, valid[i]], y[i, valid[i]], q[i]


def one_thread(method: Callable) -> Callable:
    """The method with linear algebra on one thread: a second one next to a busy neighbour makes small matrices 30 times slower."""

    @functools.wraps(method)
    def limited(batch: Batch, *options, **named):
        few = batch.s_obs.shape[1] <= SMALL
        with _threads().limit(limits=1, user_api="blas") if few else contextlib.nullcontext():
            return method(batch, *options, **named)

    return limited


@functools.cache
def _threads() -> ThreadpoolController:
    return ThreadpoolController()  # of the libraries loaded by now


def merged(s: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Every site once, with the mean of its readings: what an interpolation can pass through."""
    sites, first, which, count = np.unique(s, axis=0, return_index=True, return_inverse=True, return_counts=True)
    if len(sites) == len(s):
        return s, y
    total = np.zeros((len(sites), y.shape[1]))
    np.add.at(total, which.reshape(-1), y)
    order = np.argsort(first)
    return sites[order], (total / count[:, None])[order]


def prior(train_fields: Tensor | None, channels: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation per channel (C,) before any reading: of the training fields, or of a sine between 0 and 1."""
    if train_fields is None:
        return np.full(channels, DEFAULT_MEAN), np.full(channels, DEFAULT_STD)
    y = check_fields(train_fields, channels).detach().to("cpu", torch.float64).transpose(0, 1).flatten(1)
    mean = y.nanmean(1)
    return mean.numpy(), (y - mean[:, None]).square().nanmean(1).sqrt().numpy()


def check_fields(train_fields: Tensor, channels: int) -> Tensor:
    """The training fields, if they are fields (n, C, H, W) with the readings' number of channels."""
    if train_fields.ndim != 4 or len(train_fields) == 0 or train_fields.shape[1] != channels:
        given = tuple(train_fields.shape)
        raise ValueError(f"train_fields has shape {given}; give at least one field, as (n, C, H, W) with the readings' C = {channels}")
    if not bool(train_fields.isfinite().any()):
        raise ValueError("train_fields holds no finite value; give fields with something measured")
    return train_fields


def assemble(
    batch: Batch,
    means: Sequence[np.ndarray] | np.ndarray,
    stds: Sequence[np.ndarray] | np.ndarray | None = None,
    draw: Callable[[int, torch.Generator], np.ndarray] | None = None,
) -> Prediction:
    """One Prediction in float64, on the batch's device, from one (M, C) array per field; draw gives (K, B, M, C)."""

    def tensor(arrays):
        arrays = np.array(arrays, dtype=np.float64)
        return torch.from_numpy(arrays.reshape(*arrays.shape[:-3], *batch.y_qry.shape)).to(batch.y_qry.device)

    return Prediction(
        tensor(means),
        None if stds is None else tensor(stds),
        None if draw is None else lambda count, generator: tensor(one_thread(lambda _: draw(count, generator))(batch)),
    )


def normal(generator: torch.Generator, *shape: int) -> np.ndarray:
    """Standard normal numbers in float64 from a torch generator."""
    return torch.randn(*shape, generator=generator, device=generator.device, dtype=torch.float64).cpu().numpy()


def grid_shape(s_qry: Float[Tensor, "B M 2"], shape: tuple[int, int] | None = None) -> tuple[int, int] | None:
    """(H, W) if the queries are a whole grid in row-major order, else None; ValueError for a given shape that does not fit."""
    count = s_qry.shape[1]
    if shape is not None:
        if math.prod(shape) != count:
            raise ValueError(f"shape {tuple(shape)} holds {math.prod(shape)} sites, but there are {count} queries; give (rows, columns)")
        return tuple(shape)
    if s_qry.numel() == 0 or not bool((s_qry == s_qry[:1]).all()):
        return None
    rows, columns = s_qry[0, :, 1], s_qry[0, :, 0]
    width = int((rows == rows[0]).sum())
    if count % width:
        return None
    rows, columns = rows.view(-1, width), columns.view(-1, width)
    ascending = (rows[:, 0].diff() > 0).all() & (columns[0].diff() > 0).all()
    whole = ascending & (rows == rows[:, :1]).all() & (columns == columns[:1]).all()
    return (count // width, width) if bool(whole) else None
