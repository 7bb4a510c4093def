"""Holds every contestant against a float64 oracle before it is timed.

Two steps from shared values: the paper's in wider arithmetic (tests/papers.py), and how far roundings may move them
(fastadam/tools/bounds.py), carried from the first step to the second. Ours may round as the kernel does. A peer may
order the same operations otherwise, twice the roundings, and work out 1 - β^t in float32, which costs 1 / (1 - β) of
one.
What rests in a short format is off by one rounding to it more (lost); ours round v and bfloat16 p stochastically.
Chores are done first and last, in float64: the gradient is scaled and clipped, the parameters are averaged and copied.
"""

from functools import cache
from itertools import pairwise

import numpy as np

from fastadam import kernels
from fastadam.kernels.codes import GROUP, TINY, TOP
from fastadam.kernels.formats import FLOAT64, FORMATS, compute, format_of, is_drawn, is_signed
from fastadam.tools import bounds, papers
from fastadam.tools.verify import host_error, oracle_of

from .cases import EMA_DECAY, MAX_NORM, SCALE, setting
from .contestants import STEPS
from .matrices import Matrices

MOST = 1 << 20  # elements held against the oracle: all up to here; beyond, the ends of every leaf and pieces between
PIECE = 4096


def sample(shapes, rng, whole_leaves=False):
    """Choose elements: (leaf, slice) pieces of whole groups. The first and the last of every leaf are among them.

    whole_leaves: of these alone, the shortest first, since what becomes of each element depends on all of its leaf; of
    a leaf longer than all that is held nothing is.
    """
    sizes = [int(np.prod(shape)) for shape in shapes]
    if whole_leaves:
        shortest = np.argsort(sizes, kind="stable")
        held = shortest[np.cumsum(np.array(sizes)[shortest]) <= MOST]
        return [(leaf, slice(0, sizes[leaf])) for leaf in sorted(held.tolist())] or [(0, slice(0, 0))]
    share = MOST / max(sum(sizes), 1)
    pieces = []
    for leaf, n in enumerate(sizes):
        if share >= 1 or n <= 2 * PIECE:
            pieces.append((leaf, slice(0, n)))
            continue
        between = rng.integers(PIECE, n - PIECE, int(n * share / PIECE))
        firsts = [int(a) // GROUP * GROUP for a in (0, *np.sort(between), n - PIECE)]
        pieces += [(leaf, slice(a, a + PIECE)) for a in firsts[:-1]] + [(leaf, slice(firsts[-1], n))]
    return pieces


def groups_of(pieces):
    """Return where among the elements of the pieces the groups of 8-bit formats begin."""
    firsts, at = [], 0
    for _, part in pieces:
        n = part.stop - part.start
        firsts += range(at, at + n, GROUP)
        at += n
    return np.array(firsts, np.int64)


def pick(arrays, pieces):
    """Return the elements of the pieces, one after the other."""
    return np.concatenate([arrays[leaf].reshape(-1)[part] for leaf, part in pieces])


@cache
def spacing(format):
    """Return a format's step from 1 on and its least number: the least powers of 2 that rounding to nearest keeps."""
    powers = np.float32(2) ** -np.arange(150, dtype=np.float32)

    def kept(x):
        return format.decode(format.encode(x, None, None), None, x.size)

    one = np.float32(1)
    return float(powers[kept(one + powers) > one].min()), float(powers[kept(powers) > 0].min())


def lost(size, name, slot, drawn, groups):
    """Return how far numbers of at most this size are moved by a rounding to the format of that name.

    drawn: stochastically, so up to a whole step. groups: where each begins (8-bit). slot: None for p.
    """
    if FORMATS[name].block == 1:
        eps, least = spacing(FORMATS[name])
        step = eps * size + least
        return step if drawn else step / 2
    top = np.maximum.reduceat(size, groups) if size.size else size
    unit = np.where(top > 0, np.maximum(top / TOP[is_signed(slot)], TINY), 0.0)
    unit = np.repeat(unit, np.diff([*groups, size.size]))
    step = (size + 2.25 * unit) / 8  # the code is the start of the bits of a float, with three of mantissa
    return step + unit / 8 if drawn else step / 2


class Trivial:
    """Is what the limit computes: p + lr·(g1 + g2)."""

    def __init__(self, lr):
        self._lr = lr

    def steps(self, p, grads, groups, factors):
        """Yield (p, bound) after each step."""
        unit = bounds.Running.arithmetic(p.dtype)
        wide = np.longdouble if format_of(p.dtype) is FLOAT64 else np.float64
        c = bounds.Running(wide(self._lr), self._lr * unit[0], unit)
        p = bounds.Running(p.astype(wide), 0.0, unit)
        for g in grads:
            p = p + c * bounds.Running(g.astype(wide), 0.0, unit)
            yield p.value, p.error


class Papers:
    """Is what a setting's paper computes.

    peer: whether numbers that 1 - β enters may be off as float32 has them, and operations in another order.
    """

    def __init__(self, setting, peer):
        self._setting, self._peer = setting, peer
        self._kernel = kernels.ALL[setting.rule.kernel]

    def _row(self, t, carried):
        rule = self._setting.rule
        return rule.coefficients(t, rule.lr, *carried)[: len(self._kernel.Coefficients._fields)]

    def _host(self, t, dtype, carried):
        """Return how far each coefficient can be off before it is rounded."""
        rule = self._setting.rule
        if not self._peer:
            return host_error(rule, t)
        betas = getattr(rule, "betas", ()) or (getattr(rule, "alpha", 0.0),)
        off = np.finfo(dtype).eps / (1 - max(betas))
        rows = zip(self._kernel.Coefficients._fields, self._row(1, carried), self._row(2, carried), strict=True)
        return [off if name.startswith("one_minus") or a != b else 0.0 for name, a, b in rows]

    @np.errstate(all="ignore")
    def steps(self, p, grads, groups, factors):
        """Yield (p, bound) after each step.

        groups: where those of 8-bit formats begin. factors: `factor` of each step's gradients.
        """
        setting, dtype, slots = self._setting, compute(p.dtype), self._kernel.slots
        wide, unit = (np.longdouble if format_of(dtype) is FLOAT64 else np.float64), bounds.Running.arithmetic(dtype)
        paper, taken = oracle_of(setting.method, setting.hyperparameters)
        state = papers.start(paper.__name__, p.astype(wide), **taken)
        exact, errors = p.astype(wide), [0.0] * (1 + len(slots))
        lost_of = [0.0] * len(setting.rule.carried)  # how far what is carried is off
        for t, (g, (multiplier, off)) in enumerate(zip(grads, factors, strict=True), start=1):
            g = g.astype(wide) * multiplier
            g_error = np.abs(g) * off
            carried = [float(state[key]) for key in setting.rule.carried]
            values = [exact, *(state.get(slot.name) for slot in slots)]
            p_now, *now = (
                None if x is None else bounds.Running(x, error, unit) for x, error in zip(values, errors, strict=True)
            )
            streams = [p_now, bounds.Running(g, g_error, unit), *now]
            row = self._row(t, carried)
            summed = self._kernel.summed(setting.rule.options)
            # A peer's sums are of float32, in lanes: see `factor`.
            sums = self._peer * p.size / LANES * unit[0] / 2 if summed else None
            numbers = [bounds.wide_number(x, error) for x, error in zip(carried, lost_of, strict=True)]
            shared = numbers, setting.rule.judging
            host = self._host(t, dtype, carried)
            inner, *errors = bounds.one_step(self._kernel, dtype, streams, row, host, sums, shared)
            lost_of = [x.error if self._kernel.Judging else 0.0 for x in numbers]
            exact, state = paper(t, exact, g, state, **taken)
            shown = self._rested(exact, inner * (2 if self._peer else 1), p.dtype.name, None, groups)
            if "master" not in setting.format.options:
                inner = self._rested(exact, inner, p.dtype.name, None, groups)
            moments = setting.format.options.get("moments", dtype.name)
            parts = zip(slots, errors, strict=True)
            errors = [inner, *(self._rested(state.get(slot.name), e, moments, slot, groups) for slot, e in parts)]
            yield exact, shown

    def _rested(self, value, error, name, slot, groups):
        """Return a stream's error (None: absent) once it rests in the format of that name. slot: None for p."""
        if error is None or FORMATS[name].is_compute:
            return error
        alone = slot is None and "master" not in self._setting.format.options
        drawn = not self._peer and FORMATS[name].draws and (alone or (slot is not None and is_drawn(slot)))
        return error + lost(np.abs(value) + error, name, slot, drawn, groups)


LANES = 16  # at least so many sums of squares are added up beside each other


def factor(one, grads):
    """Return what a contestant's chores multiply these gradients by, all leaves of one set, and how far that is off.

    Ours is of a norm in float64, rounded once, as is its product with g. A peer sums n squares in float32: a lane of N
    like terms is off by at most N·u/2 of its sum, the root by half of that (torch 2.13 at n = 2^26: 5e-3); then it
    adds 1e-6 to the norm.
    """
    if not one.setting.chores:
        return 1.0, 0.0
    scale, u = (SCALE if one.setting.chores == "whole" else 1.0), float(np.finfo(compute(grads[0].dtype)).eps) / 2
    norm = scale * sum(float(np.square(g, dtype=np.float64).sum()) for g in grads) ** 0.5
    if norm == 0:
        return scale, 4 * u
    off = 4 * u + one.peer * (sum(g.size for g in grads) / LANES * u / 4 + 1e-6 / norm)
    return scale * min(1.0, MAX_NORM / norm), off


def oracle(one):
    """Return what a contestant's results are held against."""
    if one.paper is None:
        return Trivial(one.setting.rule.lr)
    if one.paper.kernel:
        return Papers(one.paper, one.peer)
    return Matrices(one.paper, Papers(setting("AdamW", one.paper.format.name), one.peer))


def by_leaf(truth, first, grads, how, cuts, shapes):
    """Return the steps of all elements, leaf by leaf where they were cut. how: what `steps` takes besides. shapes: of
    the leaves where they were, else one that means nothing."""
    groups, factors = how
    steps = []
    for shape, (a, b) in zip(shapes, pairwise([0, *cuts, first.size]), strict=True):
        truth.shape, of_leaf = shape, groups[(groups >= a) & (groups < b)] - a
        steps.append(list(truth.steps(first[a:b], [g[a:b] for g in grads], of_leaf, factors)))
    return [tuple(map(np.concatenate, zip(*of_leaves, strict=True))) for of_leaves in zip(*steps, strict=True)]


def check(contestants, start, rng, report=lambda name: None):
    """Let everyone take two steps, held against the oracle after each; averages and copies after the last.

    Returns {name: error in ulp of the larger of old and new p} and {name: what is wrong}. report(name) comes first.
    """
    whole_leaves = any(one.paper is not None and one.paper.by_leaf for one in contestants)
    pieces = sample(start.shapes, rng, whole_leaves)
    groups = groups_of(pieces)
    first, grads = pick(start.params, pieces), [pick(leaves, pieces) for leaves in start.grads]
    truths, ulps, wrong = {}, {}, {}
    for one in contestants:
        report(one.name)
        key = one.paper and (one.paper.name, one.setting.format.name), one.setting.chores, one.peer
        if key not in truths:
            factors = [factor(one, start.grads[k % len(grads)]) for k in range(STEPS)]
            given = [grads[k % len(grads)] for k in range(STEPS)]
            cuts = np.cumsum([part.stop - part.start for _, part in pieces])[:-1] if whole_leaves else []
            shapes = [start.shapes[leaf] for leaf, _ in pieces] if whole_leaves else [()]
            truths[key] = by_leaf(oracle(one), first, given, (groups, factors), cuts, shapes)
        for k, (exact, allowed) in enumerate(truths[key]):
            one.give(k)
            one.step()
            got = pick(one.params(), pieces)
            off = np.abs(got - exact)
            scale = np.spacing(np.maximum(np.abs(exact), np.abs(first)).astype(start.dtype))
            ulps[one.name] = float(np.max(off / scale, initial=0.0))
            if k < one.judged and not (off <= allowed).all():  # NaN is not
                wrong[one.name] = f"step {k + 1}: {difference(got, exact, allowed)}"
                break
        if one.setting.chores == "whole" and one.name not in wrong:
            why = chores_missed(one, first, truths[key], pieces)
            wrong |= {one.name: why} if why else {}
    return ulps, wrong


def difference(got, exact, allowed):
    """Say where a result is farthest beyond what is allowed."""
    worst = int(np.argmax(np.nan_to_num(np.abs(got - exact) - allowed, nan=np.inf)))
    return (
        f"{got[worst]:.9g} where the oracle has {float(exact[worst]):.9g}, "
        f"allowed {float(allowed[worst]):.1g} either way"
    )


def chores_missed(one, first, steps, pieces):
    """Say what is wrong with a contestant's averages or copies after these steps of p and its bound, or None."""
    unit = bounds.Running.arithmetic(first.dtype)
    ema, share = bounds.Running(first.astype(np.float64), 0.0, unit), 1 - EMA_DECAY
    for exact, allowed in steps:
        ema = ema + (bounds.Running(exact, allowed, unit) - ema) * bounds.Running(share, share * unit[0], unit)
    averages, p, short = (pick(arrays, pieces) for arrays in (one.averages(), one.params(), one.copies()))
    if not (np.abs(averages - ema.value) <= ema.error).all():
        return f"the average: {difference(averages, ema.value, ema.error)}"
    if not (np.abs(short - p) <= lost(np.abs(p), "bfloat16", None, False, None)).all():
        return f"the copy: {difference(short, p, lost(np.abs(p), 'bfloat16', None, False, None))}"
    return None
