"""State-space layers: the fixed (LTI) bank of the as-described Mamba encoder, the selective scan of Mamba and the SSD of Mamba-2.

    LTI        h_k = exp(dt A) h_(k-1) + Bbar u_k          y_k = C h_k + D u_k          per channel, S states
               Bbar = B as the documents have it, or (exp(dt A) - 1) / A B, the zero-order hold (Gu and Dao, Mamba, 2023, eq. 4)
    clamp      the LTI state held after every update: clip(h, -limit, limit), or limit tanh(h / limit)
    selective  the same with delta, B and C given by the input (Mamba, algorithm 2); Bbar = delta B as in its implementation
    SSD        the selective scan with one decay for all states and channels of a head (Dao and Gu, Transformers are SSMs, 2024, section 2)

With Bbar = B the state sums L inputs whatever dt is: its size grows with the length of the sequence, and changing dt does not stop that.

Each scan is written twice: the loop here is the specification, fused.py (a CPU) and scans.py hold the fast forms. `reverse` runs from the
last token to the first; a scan in both directions is the sum of the two. `method="auto"` picks by device and size; "loop" differentiates
through every token.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

from lib import scans
from lib.products import transformed

FFT_BELOW = 512  # tokens; shorter sequences are one convolution, longer ones chunks
METHODS = {
    "lti": ("auto", "loop", "fused", "fft", "chunked", "blocked", "tree"),  # a clamped state: loop, fused (hard), blocked, tree
    "selective": ("auto", "loop", "fused", "blocked", "tree"),
    "ssd": ("auto", "loop", "chunked"),
}


def lti_scan(
    u: Float[Tensor, "B L D"],
    dt: Float[Tensor, "*"],
    A: Float[Tensor, "D S"],
    B: Float[Tensor, "D S"],
    C: Float[Tensor, "D S"],
    D: Float[Tensor, "D"] | None = None,
    hold: bool = False,
    clamp: str = "none",
    limit: float = 10.0,
    reverse: bool = False,
    method: str = "auto",
) -> Float[Tensor, "B L D"]:
    """Run the fixed recurrence over L tokens; dt is a number or one per field (B,); hold discretises B too; clamp: none, hard, soft.

    ValueError for an unknown clamp or method, or a method that cannot hold the state.
    """
    dt = dt.reshape(-1)  # 1 or B
    decay = dt[:, None, None] * A  # 1|B D S
    gain = torch.expm1(decay) / A * B if hold else B.expand_as(decay)
    method = _lti_method(u, clamp, method, decay, gain, C)
    given = u.flip(1) if reverse else u
    if method == "loop":
        y = _lti_loop(given, decay, gain, C, clamp, limit)
    elif method == "fused":
        from lib import fused  # only here: Numba takes half a second to load

        if len(dt) not in (1, len(u)):
            raise ValueError(f"{len(dt)} steps for {len(u)} fields; give one for all, or one each")
        wide = given.expand(*u.shape[:2], len(A))
        y = fused.Bank.apply(wide, decay, gain, C.expand_as(A), limit if clamp == "hard" else math.inf)
    elif clamp != "none":
        y = scans.Clamped.apply(given, decay, gain, C, clamp, limit, method == "tree")
    else:
        y = (scans.lti_fft if method == "fft" else scans.lti_chunked)(given, decay, gain, C)
    y = y.flip(1) if reverse else y
    return y if D is None else torch.addcmul(y, D, u)


def _lti_method(u, clamp, method, *others):
    if clamp not in ("none", "hard", "soft"):
        raise ValueError(f"clamp is {clamp!r}; known: none, hard, soft")
    allowed = ("loop", "fused", "fft", "chunked") if clamp == "none" else ("loop", "fused", "blocked", "tree")
    allowed = [name for name in allowed if name != "fused" or clamp != "soft"]
    if method == "auto" and "fused" in allowed and _fusible(u, *others):
        return "fused"
    if method == "auto" and clamp != "none":
        return "tree" if u.is_cuda else "blocked"
    if method == "auto":
        return "fft" if u.shape[1] < FFT_BELOW else "chunked"
    if method not in allowed:
        raise ValueError(f"an LTI scan with clamp {clamp!r} has the methods auto, {', '.join(allowed)}; got {method!r}")
    return method


def _fusible(*given: Tensor) -> bool:
    """Whether fused.py takes them: numbers that lie in this machine's memory, and nothing that wants to see the operations inside."""
    if any(x.device.type != "cpu" or x.dtype not in (torch.float32, torch.float64) for x in given):
        return False
    return not (is_in_torch_dispatch_mode() or transformed())


def _lti_loop(u, decay, gain, C, clamp, limit):
    state, out = torch.zeros_like(decay), []
    for token in u.unbind(1):
        state = decay.exp() * state + gain * token[..., None]  # B D S
        if clamp == "hard":
            state = state.clamp(-limit, limit)
        elif clamp == "soft":
            state = limit * torch.tanh(state / limit)
        out.append((state * C).sum(-1))
    return torch.stack(out, 1)


def selective_scan(
    u: Float[Tensor, "B L D"],
    delta: Float[Tensor, "B L D"],
    A: Float[Tensor, "D S"],
    B: Float[Tensor, "B L S"],
    C: Float[Tensor, "B L S"],
    D: Float[Tensor, "D"] | None = None,
    reverse: bool = False,
    method: str = "auto",
) -> Float[Tensor, "B L D"]:
    """h_k = exp(delta_k A) h_(k-1) + delta_k B_k u_k, y_k = C_k h_k + D u_k; ValueError for an unknown method."""
    method = _known("selective", method, "tree" if u.is_cuda else "fused" if _fusible(u, delta, A, B, C) else "blocked")
    given = [x.flip(1) for x in (u, delta, B, C)] if reverse else [u, delta, B, C]
    given.insert(2, A)
    if method == "loop":
        y = _selective_loop(*given)
    elif method == "fused":
        from lib import fused

        shared = (*u.shape[:2], A.shape[1])
        y = fused.Selective.apply(given[0], given[1].expand_as(u), A.expand(u.shape[2], -1), *(x.expand(shared) for x in given[3:]))
    else:
        y = scans.Selective.apply(*given, method == "tree")
    y = y.flip(1) if reverse else y
    return y if D is None else torch.addcmul(y, D, u)


def _known(scan: str, method: str, best: str) -> str:
    if method not in METHODS[scan]:
        raise ValueError(f"the {scan} scan has the methods {', '.join(METHODS[scan])}; got {method!r}")
    return best if method == "auto" else method


def _selective_loop(u, delta, A, B, C):
    state, out = u.new_zeros(u.shape[0], *A.shape), []
    for token, d, b, c in zip(u.unbind(1), delta.unbind(1), B.unbind(1), C.unbind(1), strict=True):
        state = torch.exp(d[..., None] * A) * state + (d * token)[..., None] * b[:, None]  # B D S
        out.append(torch.einsum("bds,bs->bd", state, c))
    return torch.stack(out, 1)


def ssd_scan(
    u: Float[Tensor, "B L H P"],
    delta: Float[Tensor, "B L H"],
    A: Float[Tensor, "H"],
    B: Float[Tensor, "B L S"],
    C: Float[Tensor, "B L S"],
    D: Float[Tensor, "H"] | None = None,
    reverse: bool = False,
    method: str = "auto",
) -> Float[Tensor, "B L H P"]:
    """h_k = exp(delta_k A) h_(k-1) + delta_k B_k u_k with one decay per head, y_k = C_k h_k + D u_k; ValueError for an unknown method."""
    method = _known("ssd", method, "chunked")
    given = [x.flip(1) for x in (u, delta, B, C)] if reverse else [u, delta, B, C]
    given.insert(2, A)
    y = _ssd_loop(*given) if method == "loop" else scans.ssd_chunked(*given)
    y = y.flip(1) if reverse else y
    return y if D is None else torch.addcmul(y, D[:, None], u)


def _ssd_loop(u, delta, A, B, C):
    state, out = u.new_zeros(*u[:, 0].shape, B.shape[2]), []
    for token, d, b, c in zip(u.unbind(1), delta.unbind(1), B.unbind(1), C.unbind(1), strict=True):
        state = torch.exp(d * A)[..., None, None] * state + (d[..., None] * token)[..., None] * b[:, None, None]  # B H P S
        out.append(torch.einsum("bhps,bs->bhp", state, c))
    return torch.stack(out, 1)
