"""Judges: a factor of its own for each leaf, as a method decides it, reaches the step; and parts of the leaves."""

import numpy as np
import pytest
from cases import same_bits

import fastadam as fa
from fastadam.host.judge import Judge
from fastadam.plans.judge import Part, Verdict

FACTORS = 0.5, 2.0, 0.0


class PerLeaf(Judge):
    """A method that multiplies each leaf's gradient by a factor of its own, once all sums are there."""

    def decide(self, measured, scale):
        self.squares = measured[:, 0].tolist()
        return Verdict(norm=1.0, clips=[1.0], factors=np.array(FACTORS))


def optimizer(tree, backend):
    """An optimizer whose steps are measured, and whose judge is PerLeaf."""
    opt = fa.SGD(tree, lr=1.0, backend=backend, max_norm=1.0)
    opt._table._apart = True
    opt._table.notice()
    opt._judge = PerLeaf(opt._plan, opt._chores, opt.paths)
    return opt


@pytest.mark.parametrize("backend", ["numpy", "numba"])
def test_each_leaf_has_a_factor(backend):
    rng = np.random.default_rng(0)
    tree = [rng.standard_normal(5).astype(np.float32) for _ in FACTORS]
    before, grads = [p.copy() for p in tree], [rng.standard_normal(5).astype(np.float32) for _ in FACTORS]
    opt = optimizer(tree, backend)
    info = opt.step(grads)
    assert (info.grad_norm, info.clip_factor) == (1.0, 1.0)
    assert opt._judge.squares == pytest.approx([float((g.astype(float) ** 2).sum()) for g in grads], rel=1e-15)
    for p, old, g, factor in zip(tree, before, grads, FACTORS, strict=True):
        assert same_bits(p, old - np.float32(factor) * g)
    opt.step([None, grads[1], None])
    assert opt._table.counts.tolist() == [1, 2, 1, 2]
    assert same_bits(tree[1], before[1] - np.float32(2) * grads[1] - np.float32(2) * grads[1])


@pytest.mark.parametrize("backend", ["numpy", "numba"])
def test_a_part_of_the_leaves(backend):
    tree, grads = [np.ones(3, np.float32) for _ in FACTORS], [np.full(3, 0.25, np.float32) for _ in FACTORS]
    opt = optimizer(tree, backend)
    opt._plan.accept(grads)
    opt._table.fill(1.0, [False, True, False])
    part = Part(opt._plan.work([opt._plan.dense_chunks(1)]), opt._table.row, opt._table.rows)
    opt._judge.step(1.0, grads, part=part)
    assert [p.tolist() for p in tree] == [[1.0] * 3, [0.5] * 3, [1.0] * 3]
    assert opt._table.counts.tolist() == [0, 1, 0, 1]
    assert opt._judge.squares == [0.0, 0.1875, 0.0]
