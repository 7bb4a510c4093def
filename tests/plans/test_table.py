"""Tables of coefficients: who shares a row, what is counted, and that looking ahead changes nothing."""

from itertools import pairwise

import numpy as np
import pytest

from fastadam import rules
from fastadam.group import Group
from fastadam.kernels.formats import key
from fastadam.plans.chores import Chores
from fastadam.plans.table import EVERY, Table

FLOAT32 = {np.dtype(np.float32)}


def table(rule=None, sizes=(3, 2), **chosen):
    """A table of some groups, of which each has so many leaves and a learning rate of its own."""
    rule = rule or rules.Adam
    edges = np.cumsum([0, *sizes]).tolist()
    groups = [
        Group(rule(lr=0.1 * (k + 1)), f"groups[{k}].", range(first, last), FLOAT32)
        for k, (first, last) in enumerate(pairwise(edges))
    ]
    return Table(rule, groups, **chosen)


def numbers(rule, count, lr, *carried):
    """A row's coefficients and what the rule carries, as the rule has them."""
    return list(rule(lr=lr).coefficients(count, lr, *carried))


def count(some, live=EVERY):
    """Take the step that was filled in, as a plan does."""
    some.fill(1.0, live)
    for array, where, values in some.counted(some.row, some.rows):
        array[where] = values


def test_leaves_of_a_group_share_a_row_while_they_take_the_same_steps():
    some = table()
    count(some)
    assert (some.row.tolist(), some.counts.tolist()) == ([0, 0, 0, 1, 1, 0], [1, 1, 1, 1, 1, 1])
    count(some, [True, False, True, True, True])
    assert (some.row.tolist(), some.counts.tolist()) == ([0, -1, 0, 1, 1, 0], [2, 1, 2, 2, 2, 2])
    some.fill(0.5)
    assert some.row.tolist() == [0, 1, 0, 2, 2, 0]
    assert some.cohorts == [0, 1, 3]
    for row, (at, lr) in enumerate(((3, 0.1), (2, 0.1), (3, 0.2))):
        scale, *rest = numbers(rules.Adam, at, lr)
        assert some.rows[row].tolist() == [0.5 * scale, *rest, 0.0, 0.0, 0.0]


def test_a_row_may_belong_to_one_leaf():
    some = table(apart=True)
    count(some, [True, True, False, True, True])
    some.fill(1.0)
    assert some.row.tolist() == [0, 1, 2, 3, 4, 0]
    for row, (at, lr) in enumerate(((2, 0.1), (2, 0.1), (1, 0.1), (2, 0.2), (2, 0.2))):
        assert some.rows[row, : some.width].tolist() == numbers(rules.Adam, at, lr)


def test_what_a_rule_carries_goes_from_step_to_step():
    some, product = table(rules.NAdam), 1.0
    for t in (1, 2, 3):
        some.fill(1.0)
        *rest, product = numbers(rules.NAdam, t, 0.1, product)
        assert some.rows[0, : some.width + 1].tolist() == [*rest, product]
        assert some.after(0) == (t, product)
        count(some)
    assert some.carried[:3].tolist() == [[product]] * 3
    assert some.carried[3, 0] != 1.0
    some.counts[1], some.carried[1] = 0, 1.0
    some.notice()
    some.fill(1.0)
    assert some.row.tolist() == [0, 1, 0, 2, 2, 0]
    assert some.rows[1, : some.width + 1].tolist() == numbers(rules.NAdam, 1, 0.1, 1.0)


@pytest.mark.parametrize("rule", [rules.Adam, rules.NAdam])
def test_a_copy_looks_ahead(rule):
    some = table(rule)
    count(some)
    before = [x.copy() for x in (some.row, some.rows, some.counts, some.carried)]
    ahead, rows = some.copy(), []
    for _ in range(3):
        ahead.fill(1.0)
        ahead.count()
        rows.append(ahead.rows.copy())
    assert all(map(np.array_equal, before, (some.row, some.rows, some.counts, some.carried)))
    for expected in rows:
        some.fill(1.0)
        assert np.array_equal(some.rows, expected)
        count(some)
    assert np.array_equal(ahead.counts, some.counts)


def test_chores_and_random_bits_stand_behind():
    some = table(chores=Chores(max_value=2.0, ema_decay=lambda t: 1 - 0.5**t), seed=7, drawing=True)
    count(some, [True, False, False, True, True])
    some.fill(1.0)
    assert some.rows[:3, -3:].tolist() == [[2.0, 0.25, key(7, count)] for count in (2, 1, 2)]


def test_a_schedule_is_asked_once_a_step_for_each_group():
    asked = []
    groups = [
        Group(rules.Adam(lr=lambda t, k=k: asked.append((k, t)) or 0.1), "", leaves, FLOAT32)
        for k, leaves in enumerate((range(2), range(2, 2), range(2, 3)))
    ]
    some = Table(rules.Adam, groups)
    count(some)
    count(some, [True, False, False])
    count(some)
    assert asked == [(k, t) for t in (1, 2, 3) for k in (0, 1, 2)]


def test_a_refused_step_changes_no_count():
    some = table()
    count(some)
    with pytest.raises(ValueError, match=r"groups\[0\]\.lr is 0\.1 and grad_scale is 1e\+39"):
        some.fill(1e39, [True, False, True, True, True])
    assert some.counts.tolist() == [1, 1, 1, 1, 1, 1]
    some.fill(1.0)
    assert some.row.tolist() == [0, 0, 0, 1, 1, 0]
    assert some.rows[0, : some.width].tolist() == numbers(rules.Adam, 2, 0.1)
