"""State-space layers: the fixed (LTI) bank of the as-described Mamba encoder and the selective scan of Mamba.

    LTI        h_k = exp(dt A) h_(k-1) + Bbar u_k          y_k = C h_k + D u_k          per channel, S states
               Bbar = B as the documents have it, or (exp(dt A) - 1) / A B, the zero-order hold (Gu and Dao, Mamba, 2023, eq. 4)
    selective  the same with delta, B and C given by the input (Mamba, algorithm 2); Bbar = delta B as in its implementation

With Bbar = B the state sums L inputs whatever dt is: its size grows with the length of the sequence, and changing dt does not stop that.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


def lti_scan(
    u: Float[Tensor, "B L D"],
    dt: Float[Tensor, "*"],
    A: Float[Tensor, "D S"],
    B: Float[Tensor, "D S"],
    C: Float[Tensor, "D S"],
    D: Float[Tensor, "D"] | None = None,
    hold: bool = False,
    method: str = "auto",
) -> Float[Tensor, "B L D"]:
    """Run the fixed linear recurrence over L tokens; dt is a number or one per field (B,); hold discretises B too.

    method: loop (the specification) or fft (the same as a causal convolution with the impulse response, O(L log L)).
    """
    dt = dt.reshape(-1)  # 1 or B
    decay = dt[:, None, None] * A  # 1|B D S
    gain = torch.expm1(decay) / A * B if hold else B.expand_as(decay)
    y = _lti_loop(u, decay, gain, C) if method == "loop" else _lti_fft(u, decay, gain, C)
    return y if D is None else y + D * u


def _lti_loop(u, decay, gain, C):
    state, out = torch.zeros_like(decay), []
    for token in u.unbind(1):
        state = decay.exp() * state + gain * token[..., None]  # B D S
        out.append((state * C).sum(-1))
    return torch.stack(out, 1)


def impulse_response(decay: Float[Tensor, "b D S"], gain: Tensor, C: Tensor, length: int) -> Float[Tensor, "b D L"]:
    """What one input of 1 adds to the output k tokens later: sum over states of C exp(k dt A) Bbar."""
    k = torch.arange(length, device=decay.device, dtype=decay.dtype)
    return torch.einsum("bdsl,bds->bdl", torch.exp(decay[..., None] * k), gain * C)


def _lti_fft(u, decay, gain, C):
    length = u.shape[1]
    kernel = impulse_response(decay, gain, C, length)
    size = 2 * length  # zero padding turns the circular convolution into the causal one
    spectrum = torch.fft.rfft(u.transpose(1, 2), size) * torch.fft.rfft(kernel, size)
    return torch.fft.irfft(spectrum, size)[..., :length].transpose(1, 2)


def selective_scan(
    u: Float[Tensor, "B L D"],
    delta: Float[Tensor, "B L D"],
    A: Float[Tensor, "D S"],
    B: Float[Tensor, "B L S"],
    C: Float[Tensor, "B L S"],
    D: Float[Tensor, "D"] | None = None,
    method: str = "auto",
) -> Float[Tensor, "B L D"]:
    """h_k = exp(delta_k A) h_(k-1) + delta_k B_k u_k, y_k = C_k h_k + D u_k.

    method: loop (the specification, differentiated by autograd) or blocked (its own backward pass, states recomputed block by block).
    """
    y = _selective_loop(u, delta, A, B, C) if method == "loop" else _Blocked.apply(u, delta, A, B, C)
    return y if D is None else y + D * u


def _selective_loop(u, delta, A, B, C):
    state, out = u.new_zeros(u.shape[0], *A.shape), []
    for token, d, b, c in zip(u.unbind(1), delta.unbind(1), B.unbind(1), C.unbind(1), strict=True):
        state = torch.exp(d[..., None] * A) * state + (d * token)[..., None] * b[:, None]  # B D S
        out.append(torch.einsum("bds,bs->bd", state, c))
    return torch.stack(out, 1)


class _Blocked(torch.autograd.Function):
    """The selective scan in blocks of tokens that fit the cache, layout (L, B, S, D) so that the inner loops run over channels.

    Forward keeps the state at each block's start only; backward runs the blocks in reverse, recomputes their states and carries
    g_k = C_k dy_k + exp(delta_(k+1) A) g_(k+1), from which every gradient is a product with the states.
    """

    @staticmethod
    def forward(ctx, u, delta, A, B, C):
        batch, length, width = u.shape
        block = max(4, min(length, 262_144 // (batch * width * A.shape[1])))  # about 1 MB of states
        At = A.t().contiguous()
        first = lambda x: x.transpose(0, 1).contiguous()  # noqa: E731  (B, L, ..) -> (L, B, ..)
        dt, inputs = first(delta)[:, :, None], first(delta * u)[:, :, None]  # L B 1 D
        Bt, Ct = first(B)[..., None], first(C)[..., None]  # L B S 1
        state, starts, out = u.new_zeros(batch, *At.shape), [], []
        for lo in range(0, length, block):
            starts.append(state)
            states = _run_block(torch.exp(dt[lo : lo + block] * At), inputs[lo : lo + block] * Bt[lo : lo + block], state)
            out.append((states * Ct[lo : lo + block]).sum(2))
            state = states[-1].clone()
        ctx.save_for_backward(u, delta, At, dt, inputs, Bt, Ct, torch.stack(starts))
        ctx.block = block
        return torch.cat(out).transpose(0, 1)

    @staticmethod
    def backward(ctx, gy):
        u, delta, At, dt, inputs, Bt, Ct, starts = ctx.saved_tensors
        length, block = u.shape[1], ctx.block
        g_out = gy.transpose(0, 1)[:, :, None]  # L B 1 D
        g_in, g_dt, g_B, g_C, g_A = [], [], [], [], torch.zeros_like(At)
        carry = torch.zeros_like(starts[0])
        for index in range(len(starts) - 1, -1, -1):
            here = slice(index * block, min(length, (index + 1) * block))
            a = torch.exp(dt[here] * At)
            states = _run_block(a, inputs[here] * Bt[here], starts[index])
            g_state = Ct[here] * g_out[here]  # k B S D
            decays, rows = a.unbind(0), g_state.unbind(0)
            rows[-1].add_(carry)
            for k in range(len(rows) - 2, -1, -1):
                rows[k].addcmul_(decays[k + 1], rows[k + 1])
            carry = decays[0] * rows[0]
            g_C.append((states * g_out[here]).sum(3))
            g_B.append((g_state * inputs[here]).sum(3))
            g_in.append((g_state * Bt[here]).sum(2))
            before = torch.cat([starts[index][None], states[:-1]])
            slope = before.mul_(a).mul_(g_state)  # gradient of the exponent delta A
            g_A += (slope * dt[here]).sum((0, 1))
            g_dt.append((slope * At).sum(2))
        back = lambda parts: torch.cat(parts[::-1]).transpose(0, 1)  # noqa: E731
        g_in, g_dt = back(g_in), back(g_dt)
        return g_in * delta, g_dt + g_in * u, g_A.t(), back(g_B), back(g_C)


def _run_block(decay, values, state):
    """States of one block, written over `values`: h_k = decay_k h_(k-1) + values_k."""
    for a, h in zip(decay.unbind(0), values.unbind(0), strict=True):
        h.addcmul_(a, state)
        state = h
    return values
