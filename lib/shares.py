"""The fields of a batch shared between threads: each asks the network about its own, with one thread inside torch.

    with shares.between(torch.get_num_threads()):
        answer = shares.call(ask, model, y_t, t, batch)        ask(y_t, t, batch), a share of the fields to a thread

The products and sums of these networks are small: threads inside each of them wait for one another most of the time, threads that only
meet at the end of a pass do not. What a network draws while it trains is drawn for the whole batch, so the masks do not depend on the
threads; answers and gradients do in their last digits, as sums do that are split otherwise.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, fields, is_dataclass
from functools import partial

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

from lib.products import transformed

MOST, LEAST = 4, 4  # shares of a batch, as each keeps the interpreter for milliseconds that add up; fields of a share
_here = threading.local()  # pool and threads where batches are shared; share where a share is computed


@dataclass(frozen=True)
class _Share:
    """Which fields of how many, and the random stream of the whole batch where the network draws."""

    fields: slice
    total: int
    generator: torch.Generator | None


@contextmanager
def between(threads: int) -> Iterator[None]:
    """Share batches between so many threads within; of more than MOST each share gets several. One, or a second call within: no change."""
    if threads < 2 or getattr(_here, "pool", None) or getattr(_here, "share", None):
        yield
        return
    try:
        with ThreadPoolExecutor(min(threads, MOST)) as _here.pool:
            _here.threads = threads
            yield
    finally:
        _here.pool = None


def call(ask: Callable[..., Tensor], model, *rows) -> Tensor:
    """ask(*rows), shared between the threads of `between`; without it, or where it cannot be shared, as it stands.

    rows: tensors, and dataclasses of tensors (or None), with the fields along their first axis; the first is a tensor. ask must treat
    every field by itself. Gradients reach the weights of the model alone, once: where a row wants one, nothing is shared.
    """
    pool, total = getattr(_here, "pool", None), len(rows[0])
    learns = torch.is_grad_enabled()
    count = min(_here.threads, MOST, total // LEAST) if pool else 0
    followed = torch.is_autocast_enabled("cpu") or is_in_torch_dispatch_mode() or transformed()  # which threads would not be
    if count < 2 or followed or (learns and any(map(_wants, rows))):
        return ask(*rows)
    state = torch.get_rng_state() if any(part.training for part in model.modules()) else None
    shares = [_Share(slice(*ends), total, _stream(state)) for ends in _bounds(total, count)]
    spread = partial(_spread, pool, max(1, _here.threads // count))

    def one(share: _Share) -> Tensor:
        _here.share = share
        try:
            with torch.set_grad_enabled(learns):
                return ask(*(_some(what, share.fields) for what in rows))
        finally:
            _here.share = None

    if learns:
        weights = [w for w in model.parameters() if w.requires_grad]
        answer = _Shared.apply(spread, one, shares, weights, *weights)
    else:
        answer = torch.cat(spread(one, shares))
    if state is not None:
        torch.set_rng_state(shares[0].generator.get_state())
    return answer


@torch.compiler.disable  # a compiled graph would draw from a generator of its own
def drawn(draw: Callable[[int, torch.Generator | None], Tensor], count: int) -> Tensor:
    """What a network draws for its `count` fields: draw(fields, generator), in a share the part of what the whole batch would draw."""
    share = getattr(_here, "share", None)
    if share is None:
        return draw(count, None)
    if count != share.fields.stop - share.fields.start:
        raise RuntimeError(f"a draw for {count} fields in a share of {share.fields.stop - share.fields.start}; draw one per field")
    return draw(share.total, share.generator)[share.fields]


class _Shared(torch.autograd.Function):
    """A share of the graph per thread, forward and backward; the gradients of the weights are summed in the order of the shares."""

    @staticmethod
    def forward(ctx, spread, one, shares, weights, *_):
        ctx.spread, ctx.weights, ctx.fields = spread, weights, [share.fields for share in shares]
        ctx.answers = spread(one, shares)
        return torch.cat([answer.detach() for answer in ctx.answers])

    @staticmethod
    @once_differentiable
    def backward(ctx, by_answer):
        def one(answer: Tensor, fields: slice) -> tuple[Tensor | None, ...]:
            if not answer.requires_grad:  # none of the weights had a say
                return (None,) * len(ctx.weights)
            return torch.autograd.grad(answer, ctx.weights, by_answer[fields], allow_unused=True)

        if ctx.answers is None:
            raise RuntimeError("gradients of a shared batch can be asked for once; ask outside `shares.between` to keep its graph")
        found = zip(*ctx.spread(one, ctx.answers, ctx.fields), strict=True)
        ctx.answers = None
        return None, None, None, None, *(_sum([g for g in gradients if g is not None]) for gradients in found)


def _spread(pool: ThreadPoolExecutor, threads: int, call: Callable, *lists) -> list:
    """The answers of the calls, each in a thread of the pool with so many threads inside torch; in this thread when the pool is gone."""
    if getattr(_here, "pool", None) is not pool:
        return [call(*given) for given in zip(*lists, strict=True)]

    def one(*given):
        torch.set_num_threads(threads)  # of the thread it is called from, for most libraries; for one of all
        return call(*given)

    before = torch.get_num_threads()
    try:
        return list(pool.map(one, *lists))
    finally:
        torch.set_num_threads(before)


def _sum(gradients: list[Tensor]) -> Tensor | None:
    return sum(gradients[1:], gradients[0]) if gradients else None  # None: a weight that had no say


def _stream(state: Tensor | None) -> torch.Generator | None:
    return None if state is None else torch.Generator().set_state(state)


def _bounds(total: int, count: int) -> list[tuple[int, int]]:
    ends = [total * k // count for k in range(count + 1)]
    return list(itertools.pairwise(ends))


def _some(what, fields_: slice):
    """Some of the fields of a tensor, or of everything in a dataclass."""
    if is_dataclass(what):
        return type(what)(*(_some(getattr(what, f.name), fields_) for f in fields(what)))
    return None if what is None else what[fields_]


def _wants(what) -> bool:
    """Whether something in it wants a gradient."""
    if is_dataclass(what):
        return any(_wants(getattr(what, f.name)) for f in fields(what))
    return what is not None and what.requires_grad
