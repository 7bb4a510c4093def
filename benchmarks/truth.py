"""The float64 oracle that every contestant is held against before it is timed.

Two steps from shared values: the paper's in wider arithmetic (fastadam/papers.py), and how far roundings may move them
(fastadam/bounds.py), carried from the first step to the second. Ours may round as the kernel does. A peer may order
the same operations otherwise, twice the roundings, and work out 1 - β^t in float32, which costs 1 / (1 - β) of one.
"""

import numpy as np

from fastadam import bounds, kernels, papers
from fastadam.verify import host_error, oracle_of

STEPS = 2
MOST = 1 << 20  # elements held against the oracle: all up to here; beyond, the ends of every leaf and pieces between
PIECE = 4096


def sample(shapes, rng):
    """Which elements: (leaf, slice) pieces. The first and the last of every leaf are among them."""
    sizes = [int(np.prod(shape)) for shape in shapes]
    share = MOST / max(sum(sizes), 1)
    pieces = []
    for leaf, n in enumerate(sizes):
        if share >= 1 or n <= 2 * PIECE:
            pieces.append((leaf, slice(0, n)))
            continue
        between = rng.integers(PIECE, n - PIECE, int(n * share / PIECE))
        pieces += [(leaf, slice(int(a), int(a) + PIECE)) for a in (0, *np.sort(between), n - PIECE)]
    return pieces


def pick(arrays, pieces):
    """Those elements, one after the other."""
    return np.concatenate([arrays[leaf].reshape(-1)[part] for leaf, part in pieces])


class Trivial:
    """What the limit computes: p + lr·(g1 + g2)."""

    def __init__(self, lr):
        self._lr = lr

    def steps(self, p, grads):
        """Yields (p, bound) after each step."""
        unit = bounds.Running.arithmetic(p.dtype)
        wide = np.longdouble if p.dtype == np.float64 else np.float64
        c = bounds.Running(wide(self._lr), self._lr * unit[0], unit)
        p = bounds.Running(p.astype(wide), 0.0, unit)
        for g in grads:
            p = p + c * bounds.Running(g.astype(wide), 0.0, unit)
            yield p.value, p.error


class Method:
    """What a setting's paper computes.

    peer: whether numbers that 1 - β enters may be off as float32 has them, and operations in another order.
    """

    def __init__(self, setting, peer):
        self._setting, self._peer = setting, peer
        self._kernel = kernels.ALL[setting.rule.kernel]

    def _row(self, t, carried):
        rule = self._setting.rule
        return rule.coefficients(t, rule.lr, *carried)[: len(self._kernel.Coefficients._fields)]

    def _host(self, t, dtype, carried):
        """How far each coefficient can be off before it is rounded."""
        rule = self._setting.rule
        if not self._peer:
            return host_error(rule, t)
        betas = getattr(rule, "betas", ()) or (getattr(rule, "alpha", 0.0),)
        off = np.finfo(dtype).eps / (1 - max(betas))
        rows = zip(self._kernel.Coefficients._fields, self._row(1, carried), self._row(2, carried), strict=True)
        return [off if name.startswith("one_minus") or a != b else 0.0 for name, a, b in rows]

    @np.errstate(all="ignore")
    def steps(self, p, grads):
        """Yields (p, bound) after each step."""
        setting, dtype = self._setting, p.dtype
        wide, unit = (np.longdouble if dtype == np.float64 else np.float64), bounds.Running.arithmetic(dtype)
        oracle, taken = oracle_of(setting.method, setting.hyperparameters)
        state = papers.start(oracle.__name__, p.astype(wide), **taken)
        exact, errors = p.astype(wide), [0.0] * (1 + len(self._kernel.slots))
        for t, g in enumerate(grads, start=1):
            carried = [float(state[key]) for key in setting.rule.carried]
            values = [exact, *(state.get(slot.name) for slot in self._kernel.slots)]
            p_now, *slots = (
                None if x is None else bounds.Running(x, error, unit) for x, error in zip(values, errors, strict=True)
            )
            streams = [p_now, bounds.Running(g.astype(wide), 0.0, unit), *slots]
            row = self._row(t, carried)
            errors = bounds.one_step(self._kernel, dtype, streams, row, self._host(t, dtype, carried))
            exact, state = oracle(t, exact, g.astype(wide), state, **taken)
            yield exact, errors[0] * (2 if self._peer else 1)


def check(contestants, start, rng, report=lambda name: None):
    """Two steps of everyone, held against the oracle after each.

    Returns {name: error in ulp of the larger of old and new p} and {name: what is wrong}. report(name) comes first.
    """
    pieces = sample(start.shapes, rng)
    first, grads = pick(start.params, pieces), [pick(some, pieces) for some in start.grads]
    truths, ulps, wrong = {}, {}, {}
    for one in contestants:
        report(one.name)
        key = one.oracle_key
        if key not in truths:
            truths[key] = list(one.oracle().steps(first, [grads[k % len(grads)] for k in range(STEPS)]))
        for k, (exact, allowed) in enumerate(truths[key]):
            one.give(k)
            one.step()
            got = pick(one.params(), pieces)
            off = np.abs(got - exact)
            scale = np.spacing(np.maximum(np.abs(exact), np.abs(first)).astype(start.dtype))
            ulps[one.name] = float(np.max(off / scale, initial=0.0))
            if k < one.judged and not (off <= allowed).all():  # NaN is not
                worst = int(np.argmax(np.nan_to_num(off - allowed, nan=np.inf)))
                wrong[one.name] = (
                    f"step {k + 1}: {got[worst]:.9g} where the oracle has {float(exact[worst]):.9g}, "
                    f"allowed {float(allowed[worst]):.1g} either way"
                )
                break
    return ulps, wrong
