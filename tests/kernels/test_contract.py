"""What every kernel promises by its form, so that a new one cannot drift: read from the text."""

import ast
import inspect
import re
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from cases import METHODS, same_bits, variants

from fastadam import kernels
from fastadam.kernels import chores
from fastadam.kernels.contract import Kernel, Signed, maximum, select, sign

KERNELS = list(kernels.ALL.values())


@pytest.mark.parametrize("kernel", KERNELS, ids=lambda kernel: kernel.name)
def test_an_element_is_its_equation_and_no_more(kernel):
    tree = ast.parse(inspect.getsource(kernel.element))
    (function,) = tree.body
    arguments = [a.arg for a in function.args.args]
    numbers = [each.name for each in (*kernel.slots, *kernel.sums)]
    assert arguments == ["p", "g", *numbers, "c", *kernel.switches]
    assert [x.value for x in function.args.defaults] == [False] * len(kernel.switches)
    assert isinstance(function.body[-1], ast.Return)
    assert [x.id for x in function.body[-1].value.elts] == ["p", *numbers]
    texts = [tree, *([ast.parse(inspect.getsource(kernel.judged))] if kernel.judged else [])]
    nodes = [n for text in texts for n in ast.walk(text) if isinstance(n, ast.Attribute)]
    used = [n.attr for n in nodes if getattr(n.value, "id", "") == "c"]
    told = kernel.Judging._fields if kernel.Judging else ()
    assert set(used) == {*kernel.Coefficients._fields, *told}  # each coefficient, and none that is not there
    assert kernel.Coefficients._fields[0] == "grad_scale"  # the optimizer multiplies its own scale into the first
    called = {ast.unparse(n.func) for n in ast.walk(tree) if isinstance(n, ast.Call)}
    assert called <= {"np.sqrt", "np.abs", "maximum", "sign", "select", "agreement"}
    assert not any(isinstance(n, (ast.Pow, ast.For, ast.While, ast.Subscript)) for n in ast.walk(tree))
    numbers = [n.value for n in ast.walk(tree) if isinstance(n, ast.Constant) and isinstance(n.value, (int, float))]
    numbers = [x for x in numbers if x is not False]  # a switch's default
    assert set(numbers) <= {0}  # anything else would be rounded where no rule sees it
    branches = [ast.unparse(n.test) for n in ast.walk(tree) if isinstance(n, ast.If)]
    optional = [f"{each.name} is not None" for each in (*kernel.slots, *kernel.sums) if each.optional]
    assert sorted(branches) == sorted([*optional, *kernel.switches])


SUMMED = [kernel for kernel in KERNELS if kernel.sums and not kernel.Judging]
TOGETHER = [kernel for kernel in KERNELS if kernel.Judging]


@pytest.mark.parametrize("kernel", SUMMED, ids=lambda kernel: kernel.name)
def test_a_factor_is_its_formula_and_no_more(kernel):
    """One expression of float64 numbers, in CUDA too; the rule's placeholder, and what judges stand behind, are 1."""
    assert kernel.Coefficients._fields[-1] == "factor"
    assert len(kernel.sums) <= 2  # what one Note and scratch have room for
    assert len({each.optional for each in kernel.sums}) == 1
    (function,) = ast.parse(inspect.getsource(kernel.judged).replace("np.", "")).body
    assert [a.arg for a in function.args.args] == ["n", *(each.name for each in kernel.sums), "c"]
    _, statement = function.body
    called = {ast.unparse(n.func) for n in ast.walk(statement) if isinstance(n, ast.Call)}
    assert called <= {"sqrt", "abs", "maximum", "where", "inverse_share"}
    used = {n.attr for n in ast.walk(statement) if isinstance(n, ast.Attribute) and getattr(n.value, "id", "") == "c"}
    assert not used & {"factor", "grad_scale"}
    text = (Path(kernels.__file__).parent / kernel.name / f"{kernel.name}.cuh").read_text()
    arguments, body = re.search(r"static DEVICE f64 judged\(([^)]*)\) \{\n(.*?)\n    \}\n", text, re.DOTALL).groups()
    kinds = [*["f64"] * (1 + len(kernel.sums)), "const Coefficients<f64>&"]
    names = ["n", *(each.name for each in kernel.sums), "c"]
    for argument, kind, name in zip(arguments.split(", "), kinds, names, strict=True):
        assert argument in (kind, f"{kind} {name}")  # without a name where it is of no use
    assert ast.dump(statement) == ast.dump(ast.parse(f"def f():\n    {body.strip().rstrip(';')}").body[0].body[0])
    for method, chosen in variants():
        if method.rule.kernel == kernel.name:
            rule = method.rule(**chosen)
            assert rule.coefficients(3, 1e-2, *rule.carried.values())[len(kernel.Coefficients._fields) - 1] == 1


@pytest.mark.parametrize("kernel", TOGETHER, ids=lambda kernel: kernel.name)
def test_what_is_carried_on_is_its_formula_and_no_more(kernel):
    """Of sums over all leaves: statements of float64 numbers, the same in CUDA, which writes over what was carried."""
    *_, before, factor = kernel.Coefficients._fields
    (function,) = ast.parse(inspect.getsource(kernel.judged).replace("np.", "")).body
    sums, text = (
        [each.name for each in kernel.sums],
        (Path(kernels.__file__).parent / kernel.name / f"{kernel.name}.cuh").read_text(),
    )
    for method, chosen in variants():
        if method.rule.kernel == kernel.name:
            rule, carried = method.rule(**chosen), list(method.rule.carried)
            assert [a.arg for a in function.args.args] == [*sums, *carried, "c"]
            assert [x.id for x in function.body[-1].value.elts] == carried
            assert (before, factor, len(sums)) == (carried[0], "factor", 2)
            assert rule.coefficients(3, 1e-2, *rule.carried.values())[len(kernel.Coefficients._fields) - 1] == 1
            assert rule.judging._fields == kernel.Judging._fields
    called = {ast.unparse(n.func) for n in ast.walk(function) if isinstance(n, ast.Call)}
    assert called <= {"sqrt", "abs", "maximum", "where"}
    arguments, body = re.search(r"static DEVICE void judged\(([^)]*)\) \{\n(.*?)\n    \}\n", text, re.DOTALL).groups()
    assert arguments.split(", ") == [
        *(f"f64 {name}" for name in sums), *(f"f64& {name}" for name in carried), "const Judging& c",
    ]  # fmt: skip
    assert tuple(re.search(r"struct Judging \{\s*f64 ([^;]*);", text)[1].split(", ")) == kernel.Judging._fields
    statements = ast.Module(function.body[1:-1], [])
    assert ast.dump(statements) == ast.dump(ast.Module(ast.parse(as_python(body)).body, []))


def as_python(body):
    """The statements of a C++ element function as Python text: no types, no semicolons, indentation for braces."""
    lines, depth = [], 0
    for line in filter(None, map(str.strip, body.splitlines())):
        if line == "}":
            depth -= 1
            continue
        branch = re.fullmatch(r"if constexpr \((?:there<(\w+)>|(\w+))\) \{", line)
        text = line.removeprefix("real ").removeprefix("f64 ").removesuffix(";")
        if branch:
            text = f"if {branch[2]}:" if branch[2] else f"if {branch[1].lower()} is not None:"
        lines.append("    " * depth + text)
        depth += line.endswith("{")
    return "\n".join(lines)


@pytest.mark.parametrize("kernel", KERNELS, ids=lambda kernel: kernel.name)
def test_the_cuda_text_says_the_same_statements(kernel):
    text = (Path(kernels.__file__).parent / kernel.name / f"{kernel.name}.cuh").read_text()
    switches = ", ".join(f"bool {name}" for name in kernel.switches)
    head = rf"^template <{switches}>\nstruct" if switches else r"\n\nstruct"
    assert re.search(rf"{head} {kernel.name} {{$", text, re.MULTILINE)
    fields = re.search(r"struct Coefficients \{\s*real ([^;]*);", text)[1]
    assert tuple(re.split(r",\s*", fields)) == kernel.Coefficients._fields
    arguments, body = re.search(r"DEVICE void element\(([^)]*)\) \{\n(.*?)\n    \}\n", text, re.DOTALL).groups()
    numbers = (*kernel.slots, *kernel.sums)
    references = [f"{each.name.capitalize() if each.optional else 'real'}& {each.name}" for each in numbers]
    assert arguments.split(", ") == ["real& p", "real g", *references, "const Coefficients<real>& c"]
    (function,) = ast.parse(inspect.getsource(kernel.element).replace("np.", "")).body
    statements = [x for x in function.body if not isinstance(x, ast.Return) and not isinstance(x, ast.Expr)]
    assert ast.dump(ast.Module(statements, [])) == ast.dump(ast.Module(ast.parse(as_python(body)).body, []))


@pytest.mark.parametrize("function", [chores.clip, chores.average], ids=lambda function: function.__name__)
def test_the_chores_say_the_same_in_cuda(function):
    text = (Path(kernels.__file__).parent / "cuda" / "chores.cuh").read_text()
    arguments, body = re.search(
        rf"DEVICE real {function.__name__}\(([^)]*)\) {{\n(.*?)\n}}\n", text, re.DOTALL
    ).groups()
    (python,) = ast.parse(inspect.getsource(function)).body
    assert [x.split()[-1].strip("&") for x in arguments.split(", ")] == [a.arg for a in python.args.args]
    statements = [x for x in python.body if not isinstance(x, ast.Expr)]
    assert ast.dump(ast.Module(statements, [])) == ast.dump(ast.Module(ast.parse(as_python(body)).body, []))
    numbers = re.search(r"struct Numbers \{\s*real ([^;]*);", text)[1]
    assert (*re.split(r",\s*", numbers), "key") == chores.Numbers._fields  # which travels as bits


def test_every_kernel_is_reached_by_a_method():
    assert {method.rule.kernel for method in METHODS} == set(kernels.ALL)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_rule_gives_what_its_kernel_takes(dtype):
    for method, chosen in variants():
        rule = method.rule(**chosen)
        kernel = kernels.ALL[rule.kernel]
        optional = {each.name for each in (*kernel.slots, *kernel.sums) if each.optional}
        assert rule.options <= {*optional, *kernel.switches}
        assert set(rule.initial()) <= {slot.name for slot in kernel.slots}
        for t in (1, 2, 10, 2**20, 2**40):
            numbers = rule.coefficients(t, chosen["lr"], *rule.carried.values())
            assert len(numbers) == len(kernel.Coefficients._fields) + len(rule.carried)
            assert all(type(x) is float for x in numbers)
            assert np.isfinite(np.array(numbers, dtype)).all()


ODD = np.array([0.0, -0.0, 1.0, -1.0, 1e-45, -1e-45, np.inf, -np.inf, np.nan, 3e38, -7.5], np.float32)


def compiled(function):
    """A function of two floats as native code, written as elements are."""
    from numba import njit
    from numba.extending import intrinsic

    from fastadam.kernels.cpu.tracing import Number

    @intrinsic
    def written(typing, a, b):
        return a(a, b), lambda context, builder, signature, args: function(*(Number(builder, x) for x in args)).value

    return njit(error_model="numpy")(lambda a, b: written(a, b))


def test_a_slot_that_becomes_another_number_is_written():
    """Told from numbers that differ: of g, of p, of another slot or of a coefficient; not what stays as it was."""

    class Coefficients(NamedTuple):
        lr: float

    def moved(p, g, m, v, u, w, x, c):
        return p - c.lr * m, g, p, u, c.lr, u

    slots = tuple(map(Signed, "mvuwx"))
    written = Kernel("moved", moved, slots, Coefficients).walked(frozenset(), [True] * 5)[2]
    assert written.slots == (True, True, False, True, True)


def test_compiled_code_refuses_what_it_cannot_write():
    with pytest.raises(TypeError, match=r"no numpy\.exp of a Number: add it to what .*tracing has written"):
        compiled(lambda a, b: np.exp(a))(1.0, 2.0)
    with pytest.raises(TypeError, match=r"no numpy\.sum"):
        compiled(lambda a, b: np.sum(a))(1.0, 2.0)
    with pytest.raises(TypeError, match=r"cannot branch on a number.* np\.where, maximum or sign"):
        compiled(lambda a, b: a if a > b else b)(1.0, 2.0)
    with pytest.raises(TypeError, match="cannot branch on a number"):
        compiled(lambda a, b: max(a, b))(1.0, 2.0)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_maximum_sign_and_select_mean_one_thing_everywhere(dtype):
    compiled_maximum = compiled(maximum)
    compiled_select = compiled(lambda a, b: select(a, b, -b))
    compiled_over_zero_of_two = compiled(lambda a, b: maximum(a, 0))
    compiled_sign_of_two = compiled(lambda a, b: sign(a))

    def compiled_over_zero(a):
        return compiled_over_zero_of_two(a, a)

    def compiled_sign(a):
        return compiled_sign_of_two(a, a)

    odd = ODD.astype(dtype)
    for a in odd:
        assert same_bits(np.array([sign(a)]), np.array([compiled_sign(a)], dtype))
        assert same_bits(np.array([maximum(a, 0)], dtype), np.array([compiled_over_zero(a)], dtype))
        for b in odd:
            both = np.array([maximum(a, b)]), np.array([compiled_maximum(a, b)], dtype)
            assert same_bits(*both), (a, b)
            either = np.array([select(a, b, -b)], dtype)
            assert same_bits(either, np.array([compiled_select(a, b)], dtype)), (a, b)
            assert same_bits(either, np.array([-b if a < 0 else b], dtype)), (a, b)
            assert np.isnan(both[0][0]) == (np.isnan(a) or np.isnan(b))
    assert np.array_equal(sign(odd)[:8], np.array([0, 0, 1, -1, 1, -1, 1, -1], dtype))
    assert not np.signbit(sign(odd)[1])
    assert sign(odd).dtype == maximum(odd, 0).dtype == dtype
