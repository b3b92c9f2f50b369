"""The scans of ssm.py in one pass over their tokens, compiled by Numba for a CPU: no array of all states exists.

The inner loops run over channels, which the compiler turns into vector instructions. Forward keeps the state before each block of TOKENS;
backward runs the blocks in reverse, computes their states again and carries the gradient of the state, from which every other is a
product with the states; scans.Selective and scans.Clamped have the formulas. Sums over all tokens are sums of those of the blocks.
"""

from __future__ import annotations

import math
from typing import no_type_check

import numba
import numpy as np
import torch
from numba.extending import overload
from torch.autograd.function import once_differentiable

TOKENS = 32  # of a block: its states and decays are 0.5 MB for 128 channels of 16 states, which the second cache holds


def compiled(function):
    """The function in machine code, kept beside the module for the next process; without the lock of Python, so threads may share it."""
    how = {"nogil": True, "error_model": "numpy"}  # a division by zero is infinite
    how["fastmath"] = {"contract", "reassoc", "nsz"}  # sums reordered, products fused with them; NaN stays NaN
    try:
        return numba.njit(cache=True, **how)(function)
    except RuntimeError:  # no folder to keep it in
        return numba.njit(**how)(function)


class Selective(torch.autograd.Function):
    """y (B, L, D) of u and delta (B, L, D), A (D, S), B and C (B, L, S), float32 or float64; ssm.selective_scan says of what."""

    @staticmethod
    def forward(ctx, u, delta, A, B, C):
        given = [x.detach().contiguous() for x in (u, delta, A.t(), B, C)]
        fields, length, width = u.shape
        starts = u.new_empty(fields, -(-length // TOKENS), A.shape[1], width)
        out = torch.empty_like(given[0])
        _selective(*(x.numpy() for x in (*given, out, starts)))
        ctx.save_for_backward(*given, starts)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, gy):
        *given, starts = ctx.saved_tensors
        grads = [torch.empty_like(x) for x in given]
        grads[2].zero_()
        _selective_back(*(x.numpy() for x in (*given, starts, gy.contiguous(), *grads)))
        g_u, g_delta, g_A, g_B, g_C = grads
        return g_u, g_delta, g_A.t(), g_B, g_C


@compiled
@no_type_check
def _selective(u, delta, A, B, C, out, starts):
    fields, length, width = u.shape
    states = A.shape[0]
    h, x = np.zeros_like(A), np.empty_like(A[0])
    for b in range(fields):
        h[:] = 0
        for k in range(length):
            if k % TOKENS == 0:
                starts[b, k // TOKENS] = h
            for d in range(width):
                x[d] = delta[b, k, d] * u[b, k, d]
                out[b, k, d] = 0
            for s in range(states):
                gain, weight = B[b, k, s], C[b, k, s]
                for d in range(width):
                    h[s, d] = _exp(delta[b, k, d] * A[s, d]) * h[s, d] + gain * x[d]
                    out[b, k, d] += weight * h[s, d]


@compiled
@no_type_check
def _selective_back(u, delta, A, B, C, starts, gy, g_u, g_delta, g_A, g_B, g_C):
    fields, length, width = u.shape
    states, zero = A.shape[0], A.dtype.type(0)
    h = np.empty((TOKENS + 1, states, width), A.dtype)  # the state before the block, then those of its tokens
    a = np.empty((TOKENS, states, width), A.dtype)
    carry, of_A, x, g_x = np.empty_like(A), np.empty_like(A), np.empty_like(A[0]), np.empty_like(A[0])
    for b in range(fields):
        carry[:] = 0
        for block in range(starts.shape[1] - 1, -1, -1):
            first = block * TOKENS
            count = min(TOKENS, length - first)
            h[0], of_A[:] = starts[b, block], 0
            for j in range(count):
                for d in range(width):
                    x[d] = delta[b, first + j, d] * u[b, first + j, d]
                for s in range(states):
                    gain = B[b, first + j, s]
                    for d in range(width):
                        a[j, s, d] = _exp(delta[b, first + j, d] * A[s, d])
                        h[j + 1, s, d] = a[j, s, d] * h[j, s, d] + gain * x[d]
            for j in range(count - 1, -1, -1):
                k = first + j
                for d in range(width):
                    x[d] = delta[b, k, d] * u[b, k, d]
                    g_x[d] = 0
                    g_delta[b, k, d] = 0
                for s in range(states):
                    gain, weight, of_gain, of_weight = B[b, k, s], C[b, k, s], zero, zero
                    for d in range(width):
                        g = weight * gy[b, k, d] + carry[s, d]
                        carry[s, d] = a[j, s, d] * g
                        slope = carry[s, d] * h[j, s, d]  # gradient of the exponent delta A
                        of_A[s, d] += slope * delta[b, k, d]
                        g_delta[b, k, d] += slope * A[s, d]
                        g_x[d] += gain * g
                        of_gain += g * x[d]
                        of_weight += h[j + 1, s, d] * gy[b, k, d]
                    g_B[b, k, s], g_C[b, k, s] = of_gain, of_weight
                for d in range(width):
                    g_u[b, k, d] = g_x[d] * delta[b, k, d]
                    g_delta[b, k, d] += g_x[d] * u[b, k, d]
            g_A += of_A


class Bank(torch.autograd.Function):
    """The fixed bank: y (B, L, D) of u, decay and gain (1|B, D, S), C (D, S); the state is held to [-limit, limit], which may be inf.

    States and their decays are float64: rounded, exp(decay) would be wrong by the same amount at every token.
    """

    @staticmethod
    def forward(ctx, u, decay, gain, C, limit):
        given = [x.detach().contiguous() for x in (u, decay.mT.double().exp(), gain.mT, C.mT)]
        starts = given[1].new_empty(len(u), -(-u.shape[1] // TOKENS), *given[3].shape)
        out = torch.empty_like(given[0])
        _bank(*(x.numpy() for x in (*given, out, starts)), float(limit))
        ctx.save_for_backward(*given, starts)
        ctx.limit = limit
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, gy):
        *given, starts = ctx.saved_tensors
        grads = [torch.zeros_like(x) for x in given]
        _bank_back(*(x.numpy() for x in (*given, starts, gy.contiguous(), *grads)), float(ctx.limit))
        g_u, g_a, g_gain, g_C = grads
        return g_u, (g_a * given[1]).mT.to(gy.dtype), g_gain.mT, g_C.mT, None


@compiled
@no_type_check
def _bank(u, a, gain, C, out, starts, limit):
    fields, length, width = u.shape
    states = C.shape[0]
    h = np.zeros(C.shape)
    for b in range(fields):
        p = min(b, len(a) - 1)  # one step for all fields, or one each
        h[:] = 0
        for k in range(length):
            if k % TOKENS == 0:
                starts[b, k // TOKENS] = h
            for d in range(width):
                out[b, k, d] = 0
            for s in range(states):
                for d in range(width):
                    new = a[p, s, d] * h[s, d] + gain[p, s, d] * u[b, k, d]
                    h[s, d] = min(max(new, -limit), limit)
                    out[b, k, d] += C[s, d] * C.dtype.type(h[s, d])


@compiled
@no_type_check
def _bank_back(u, a, gain, C, starts, gy, g_u, g_a, g_gain, g_C, limit):
    fields, length, width = u.shape
    states = C.shape[0]
    h = np.empty((TOKENS + 1, states, width))
    carry, of_a, of_gain, of_C = np.empty(C.shape), np.empty(C.shape), np.empty_like(C), np.empty_like(C)
    for b in range(fields):
        p = min(b, len(a) - 1)
        carry[:] = 0
        for block in range(starts.shape[1] - 1, -1, -1):
            first = block * TOKENS
            count = min(TOKENS, length - first)
            h[0], of_a[:], of_gain[:], of_C[:] = starts[b, block], 0, 0, 0
            for j in range(count):
                for s in range(states):
                    for d in range(width):
                        new = a[p, s, d] * h[j, s, d] + gain[p, s, d] * u[b, first + j, d]
                        h[j + 1, s, d] = min(max(new, -limit), limit)
            for j in range(count - 1, -1, -1):
                k = first + j
                for s in range(states):
                    for d in range(width):
                        g = C[s, d] * gy[b, k, d] + carry[s, d]
                        g = 0.0 if abs(h[j + 1, s, d]) >= limit else g  # at the limit the state does not follow
                        carry[s, d] = a[p, s, d] * g
                        of_a[s, d] += g * h[j, s, d]
                        of_gain[s, d] += g * u[b, k, d]
                        of_C[s, d] += h[j + 1, s, d] * gy[b, k, d]
                        g_u[b, k, d] += gain[p, s, d] * g
            g_a[p] += of_a
            g_gain[p] += of_gain
            g_C += of_C


def _exp(x):
    """e^x, as Python has it; compiled, it is one of those below."""
    return math.exp(x)


@overload(_exp, inline="always")
@no_type_check
def _exp_of(x):
    """For float32 with vector instructions, which the C library's has not: e^x = 2^n e^r, |r| <= ln 2 / 2, e^r by its series to r^7 / 7!.

    2^n is made of its bits. Exponents are held to [-87, 88]: 1e-38 is as good as 0.
    """
    if x != numba.types.float32:
        return lambda x: math.exp(x)

    one, half, ln2, inverse, least, most = (np.float32(v) for v in (1, 0.5, math.log(2), 1 / math.log(2), -87, 88))
    c2, c3, c4, c5, c6, c7 = (np.float32(1 / math.factorial(k)) for k in range(2, 8))

    def exp(x):
        x = min(max(x, least), most)
        n = np.floor(x * inverse + half)
        r = x - n * ln2
        series = one + r * (one + r * (c2 + r * (c3 + r * (c4 + r * (c5 + r * (c6 + r * c7))))))
        power = np.int32((np.int32(n) + np.int32(127)) << np.int32(23))
        return series * np.float32(np.int32(power).view(np.float32))

    return exp
