"""What every kernel promises by its form, so that a new one cannot drift: read from the text."""

import ast
import inspect

import numpy as np
import pytest
from cases import METHODS, same_bits, variants

from fastadam import kernels
from fastadam.kernels.contract import maximum, sign

KERNELS = list(kernels.ALL.values())


@pytest.mark.parametrize("kernel", KERNELS, ids=lambda kernel: kernel.name)
def test_an_element_is_its_equation_and_no_more(kernel):
    tree = ast.parse(inspect.getsource(kernel.element))
    (function,) = tree.body
    arguments = [a.arg for a in function.args.args]
    assert arguments == ["p", "g", *(slot.name for slot in kernel.slots), "c"]
    assert isinstance(function.body[-1], ast.Return)
    assert [x.id for x in function.body[-1].value.elts] == ["p", *(slot.name for slot in kernel.slots)]
    used = [n.attr for n in ast.walk(tree) if isinstance(n, ast.Attribute) and getattr(n.value, "id", "") == "c"]
    assert set(used) == set(kernel.Coefficients._fields)  # each coefficient, and none that is not there
    assert kernel.Coefficients._fields[0] == "grad_scale"  # the optimizer multiplies its own scale into the first
    called = {ast.unparse(n.func) for n in ast.walk(tree) if isinstance(n, ast.Call)}
    assert called <= {"np.sqrt", "np.abs", "maximum", "sign"}
    assert not any(isinstance(n, (ast.Pow, ast.For, ast.While, ast.Subscript)) for n in ast.walk(tree))
    numbers = [n.value for n in ast.walk(tree) if isinstance(n, ast.Constant) and isinstance(n.value, (int, float))]
    assert set(numbers) <= {0}  # anything else would be rounded where no rule sees it
    branches = [ast.unparse(n.test) for n in ast.walk(tree) if isinstance(n, ast.If)]
    assert sorted(branches) == sorted(f"{slot.name} is not None" for slot in kernel.slots if slot.optional)


def test_every_kernel_is_reached_by_a_method():
    assert {method.rule.kernel for method in METHODS} == set(kernels.ALL)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_rule_gives_what_its_kernel_takes(dtype):
    for method, chosen in variants():
        rule = method.rule(**chosen)
        kernel = kernels.ALL[rule.kernel]
        assert rule.options <= {slot.name for slot in kernel.slots if slot.optional}
        assert set(rule.initial()) <= {slot.name for slot in kernel.slots}
        for t in (1, 2, 10, 2**20, 2**40):
            numbers = rule.coefficients(t, chosen["lr"], *rule.carried.values())
            assert len(numbers) == len(kernel.Coefficients._fields) + len(rule.carried)
            assert all(type(x) is float for x in numbers)
            assert np.isfinite(np.array(numbers, dtype)).all()


ODD = np.array([0.0, -0.0, 1.0, -1.0, 1e-45, -1e-45, np.inf, -np.inf, np.nan, 3e38, -7.5], np.float32)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_maximum_and_sign_mean_one_thing_everywhere(dtype):
    from numba import njit

    from fastadam.kernels.cpu import elements  # noqa: F401  registers what the two mean in compiled code

    compiled_maximum = njit(error_model="numpy")(lambda a, b: maximum(a, b))
    compiled_over_zero = njit(error_model="numpy")(lambda a: maximum(a, 0))
    compiled_sign = njit(error_model="numpy")(lambda x: sign(x))
    odd = ODD.astype(dtype)
    for a in odd:
        assert same_bits(np.array([sign(a)]), np.array([compiled_sign(a)], dtype))
        assert same_bits(np.array([maximum(a, 0)], dtype), np.array([compiled_over_zero(a)], dtype))
        for b in odd:
            both = np.array([maximum(a, b)]), np.array([compiled_maximum(a, b)], dtype)
            assert same_bits(*both), (a, b)
            assert np.isnan(both[0][0]) == (np.isnan(a) or np.isnan(b))
    assert np.array_equal(sign(odd)[:8], np.array([0, 0, 1, -1, 1, -1, 1, -1], dtype))
    assert not np.signbit(sign(odd)[1])
    assert sign(odd).dtype == maximum(odd, 0).dtype == dtype
