"""The search for plane waves of lib/waves.py, compiled by Numba: field by field, in place, over the readings that a field has.

The same iteration as waves._step, which is the specification and serves many readings: at 51 of them most of the time there goes into
calling operations. Lower triangles only; inner loops run over what lies side by side, which the compiler turns into vector instructions.
"""

from __future__ import annotations

import math
from typing import no_type_check

import numpy as np

from lib.fused import compiled

TAU = 0.3 * math.pi  # how far a wavevector may be from the truth
LONGEST = 0.5 * math.pi  # step of a wavevector
PRUNE, PRUNED, POLISH = 5, 15, 4  # iterations before waves may go, until they must have gone, and after
AT_A_TIME = 3  # waves that may go in one iteration: two that share a peak must not go together
LOW, HIGH = 6.0, 12.0  # |q|^2 / 2s that a wave needs at first and at last; 1 is what noise gives on average, Exp(1) its distribution
STILL = 0.01  # a field has settled when its waves move by less than this share of the noise, which itself changes by less
LARGEST = 1e4  # scale of the rest, over the one it starts with
WIDEST = 100.0  # width of a wave, over the readings' mean square
JITTER = 1e-13  # first share of the mean variance that is added where rounding leaves a covariance without a root; then tenfold


@compiled
@no_type_check
def climb(s, z, known, rest, scale, k, width, noise, spread, floor):
    """Improve scale (B, G), k (B, J, 2), width (B, J) and noise (B,) by the readings' evidence; a wave that went has width 0.

    s (B, N, 2), z (B, N), known (B, N), rest (B, G, N, N), and the readings' mean square and least noise (B,), all float64.
    """
    fields, most = z.shape
    for b in range(fields):
        n = 0
        at = np.empty(most, np.int64)
        for i in range(most):
            if known[b, i]:
                at[n] = i
                n += 1
        its_s, its_z = np.empty((2, n)), np.empty(n)
        its_rest = np.empty((rest.shape[1], n, n))
        for i in range(n):
            its_s[0, i], its_s[1, i], its_z[i] = s[b, at[i], 0], s[b, at[i], 1], z[b, at[i]]
            for g in range(rest.shape[1]):
                for j in range(n):
                    its_rest[g, i, j] = rest[b, g, at[i], at[j]]
        noise[b] = _one(its_s, its_z, its_rest, scale[b], k[b], width[b], noise[b], spread[b], floor[b])


@compiled
@no_type_check
def _one(s, z, rest, scale, k, width, noise, spread, floor):
    """The noise at the end; the waves that are left come first."""
    n, count, start = len(z), len(width), scale.copy()
    columns, tangents = np.empty((2 * count, n)), np.empty((2 * count, n))
    covariance, root, inverse = np.empty((n, n)), np.empty((n, n)), np.empty((n, n))
    weight, moved, worth, strength = np.empty(n), np.empty((count, 2)), np.empty(count), np.empty(count)
    for step in range(PRUNED + POLISH):
        _waves(s, k[:count], columns)
        _without_tangents(columns[: 2 * count], width[:count], rest, scale, noise, covariance)
        _root(covariance, root)
        _solve(root, z, weight)
        for j in range(count):
            cos, sin = columns[j], columns[count + j]
            a, b = width[j] * _dot(cos, weight), width[j] * _dot(sin, weight)
            strength[j] = a * a + b * b
            for i in range(n):
                slope = b * cos[i] - a * sin[i]  # d (a cos + b sin) / d phase
                tangents[j, i], tangents[count + j, i] = s[0, i] * slope, s[1, i] * slope
        for j in range(count):
            _add_squares(covariance, tangents[j], tangents[count + j], TAU**2)
        _root(covariance, root)
        _solve(root, z, weight)
        _invert(root, inverse)  # `root` is its own inverse from here
        shift, least, alive = 0.0, math.inf, 0
        for j in range(count):
            q2 = _dot(columns[j], weight) ** 2 + _dot(columns[count + j], weight) ** 2
            sharp2 = max(_whitened(root, columns[j], columns[count + j]), 1e-300)
            worth[j] = q2 / max(1 - 0.5 * width[j] * sharp2, 1e-9) / sharp2
            least = min(least, worth[j])
            for axis in range(2):
                step_of = TAU**2 * _dot(tangents[axis * count + j], weight)
                moved[j, axis] = min(max(step_of, -LONGEST), LONGEST)
                shift += moved[j, axis] ** 2 * strength[j]
                k[j, axis] += moved[j, axis]
            width[j] = min(width[j] * q2 / sharp2, WIDEST * spread)
        trace = 0.0
        for i in range(n):
            trace += inverse[i, i]
        new_noise = max(noise**2 * _dot(weight, weight) / max(noise * trace, 0.5), floor)
        for g in range(len(scale)):
            due = max(_product(inverse, rest[g]), 1e-300)
            scale[g] = min(max(scale[g] * _form(rest[g], weight) / due, 1e-12 * start[g]), LARGEST * start[g])
        if PRUNE <= step < PRUNED:
            _prune(width[:count], worth[:count], LOW + (HIGH - LOW) * (step - PRUNE) / (PRUNED - 1 - PRUNE))
            alive = _forward(k, width, count)
        else:
            alive = count
        still = shift < STILL**2 * noise and abs(math.log(new_noise / noise)) < STILL
        settled = step >= PRUNE and still and least >= HIGH and alive == count
        noise, count = new_noise, alive
        if settled:
            break
    width[count:] = 0
    return noise


@compiled
@no_type_check
def _waves(s, k, columns):
    """cos of all waves, then sin, at the sites: a row for each."""
    count = len(k)
    for j in range(count):
        for i in range(s.shape[1]):
            phase = k[j, 0] * s[0, i] + k[j, 1] * s[1, i]
            columns[j, i], columns[count + j, i] = math.cos(phase), math.sin(phase)


@compiled
@no_type_check
def _without_tangents(columns, width, rest, scale, noise, covariance):
    n, count = columns.shape[1], len(width)
    for i in range(n):
        for j in range(i + 1):
            covariance[i, j] = 0
        for g in range(len(scale)):
            for j in range(i + 1):
                covariance[i, j] += scale[g] * rest[g, i, j]
        covariance[i, i] += noise
    for j in range(count):
        _add_squares(covariance, columns[j], columns[count + j], width[j])


@compiled
@no_type_check
def _add_squares(covariance, a, b, variance):
    """covariance + variance (a a' + b b')."""
    for i in range(len(a)):
        gain, other = variance * a[i], variance * b[i]
        for j in range(i + 1):
            covariance[i, j] += gain * a[j] + other * b[j]


@compiled
@no_type_check
def _root(covariance, root):
    """Its Cholesky factor, with the least jitter in powers of ten where rounding asks for it."""
    n, mean = len(covariance), 0.0
    for i in range(n):
        mean += covariance[i, i] / n
    added, share = 0.0, JITTER
    while share < 1 and not _factor(covariance, added, root):
        added += share * mean
        share *= 10


@compiled
@no_type_check
def _factor(covariance, added, root):
    for i in range(len(covariance)):
        for j in range(i + 1):
            left = covariance[i, j] - _dot(root[i, :j], root[j, :j])
            if i == j:
                if not left + added > 0:
                    return False
                root[i, i] = math.sqrt(left + added)
            else:
                root[i, j] = left / root[j, j]
    return True


@compiled
@no_type_check
def _solve(root, z, x):
    """x = (root root')^-1 z."""
    n = len(z)
    for i in range(n):
        x[i] = (z[i] - _dot(root[i, :i], x[:i])) / root[i, i]
    for i in range(n - 1, -1, -1):
        x[i] /= root[i, i]
        for j in range(i):
            x[j] -= root[i, j] * x[i]


@compiled
@no_type_check
def _invert(root, inverse):
    """(root root')^-1, its upper triangle filled too; `root` becomes its own inverse."""
    n = len(root)
    row = np.empty(n)
    for i in range(n):
        row[:i] = 0
        for m in range(i):  # row i of the inverse: the rows before it, by the entries of this one
            for j in range(m + 1):
                row[j] -= root[i, m] * root[m, j]
        root[i, i] = 1 / root[i, i]
        for j in range(i):
            root[i, j] = row[j] * root[i, i]
        for j in range(i + 1):
            inverse[i, j] = 0
    for m in range(n):
        for i in range(m + 1):
            gain = root[m, i]
            for j in range(i + 1):
                inverse[i, j] += gain * root[m, j]
    for i in range(n):
        for j in range(i):
            inverse[j, i] = inverse[i, j]


@compiled
@no_type_check
def _dot(a, b):
    total = 0.0
    for i in range(len(a)):
        total += a[i] * b[i]
    return total


@compiled
@no_type_check
def _whitened(inverse_root, a, b):
    """|root^-1 a|^2 + |root^-1 b|^2."""
    total = 0.0
    for i in range(len(a)):
        first, second = 0.0, 0.0
        for j in range(i + 1):
            first += inverse_root[i, j] * a[j]
            second += inverse_root[i, j] * b[j]
        total += first * first + second * second
    return total


@compiled
@no_type_check
def _form(matrix, a):
    """a' matrix a."""
    total = 0.0
    for i in range(len(a)):
        total += a[i] * _dot(matrix[i], a)
    return total


@compiled
@no_type_check
def _product(a, b):
    """The sum of the products of their elements."""
    total = 0.0
    for i in range(len(a)):
        total += _dot(a[i], b[i])
    return total


@compiled
@no_type_check
def _prune(width, worth, least):
    """Widths of the least worthy waves below `least` become zero, AT_A_TIME at most."""
    for _ in range(min(AT_A_TIME, len(width))):
        worst = -1
        for j in range(len(width)):
            if width[j] > 0 and worth[j] < least and (worst < 0 or worth[j] < worth[worst]):
                worst = j
        if worst >= 0:
            width[worst] = 0


@compiled
@no_type_check
def _forward(k, width, count):
    """Move the waves that are left to the front; how many they are."""
    alive = 0
    for j in range(count):
        if width[j] > 0:
            k[alive], width[alive] = k[j], width[j]
            alive += 1
    return alive
