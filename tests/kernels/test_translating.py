"""What is translated from a text does what Python does with that text; what has no translation is refused."""

import ctypes
import math
import sys
from types import FunctionType, ModuleType

import numpy as np
import pytest
from numba import types
from numba.extending import intrinsic

from fastadam.kernels.cpu import entry, syntax
from fastadam.kernels.cpu.words import number, put_number, put_word, share, word

u64, ONE = np.uint64, np.uint64(1)
PAIRS, RESULTS, EACH = 100, 1 + 2 * 100, 16  # a table of pairs, then what is made of each


def counted(at, x):
    """Note a call, for what should not be called."""
    put_word(at, 0, word(at, 0) + 1)
    return x


def first_beyond(at, limit):
    for k in range(1, 1 + 2 * PAIRS, 2):
        if word(at, k) > limit:
            return k
    return -1


def clear(at, k):
    if word(at, k) == 0:
        return
    put_word(at, k, 0)


def whole(at):
    for i in range(PAIRS):
        x, y = word(at, 1 + 2 * i), word(at, 2 + 2 * i)
        to, k = at + 8 * (RESULTS + EACH * i), 0
        if y == 0:
            continue
        put_word(to, 0, x // y)
        put_word(to, 1, x % y)
        put_word(to, 2, min(x, y) - (x & 0xFF) * 3)
        put_word(to, 3, -x)
        put_word(to, 4, 1 if x < y else 2 if x <= y else 3)
        put_word(to, 5, 1 if (x > 0 and counted(at, y) > 0) or counted(at, x) == -7 else 0)
        put_word(to, 6, 1 if not x >= y and (x != 3 or y == 4) else 0)
        put_word(to, 7, x == y)
        while k < y:
            k += 3
            if k % 2:
                continue
            for j in range(0, k, 5):
                put_word(to, 8, word(to, 8) + j * (1 << 3))
        put_word(to, 9, k)
        put_word(to, 10, first_beyond(at, x))
        put_word(to, 11, 5)
        clear(to, 11)
        put_word(to, 12, share(at, 2) if x & 1 else share(at, 1))
    return word(at, 0)


def real(at):
    for i in range(PAIRS):
        x, y, to = number(at, 1 + 2 * i), number(at, 2 + 2 * i), at + 8 * (RESULTS + EACH * i)
        put_number(to, 0, x + y)
        put_number(to, 1, x - y)
        put_number(to, 2, x * y / 3.0)
        put_number(to, 3, math.sqrt(abs(x)))
        put_number(to, 4, math.exp(-abs(x)))
        put_number(to, 5, math.expm1(y))
        put_number(to, 6, math.log(abs(x)))
        put_number(to, 7, math.pow(abs(x), y))
        put_number(to, 8, x if (x > y) | (x != x) else y)
        put_number(to, 9, float(word(at, 1 + 2 * i) // 1024))
        put_number(to, 10, 1.0 if not x <= y else -1.0)
        put_number(to, 11, -x)
        put_number(to, 12, min(x, y))


def unsigned(at):
    for i in range(PAIRS):
        x, y, to = u64(word(at, 1 + 2 * i)), u64(word(at, 2 + 2 * i)), at + 8 * (RESULTS + EACH * i)
        put_word(to, 0, x // y)
        put_word(to, 1, x % y)
        put_word(to, 2, min(x, y) - u64(3) * (x & u64(0xFF)))
        put_word(to, 3, 1 if x < y else 2)
        put_word(to, 4, 1 if x >= y else 2)
        put_word(to, 5, x - y)
        k = ONE
        put_word(to, 7, k + x if x != y else y)
        put_number(to, 8, float(x))
        put_number(to, 9, float(x < y))
        for j in range(u64(i), u64(i) + u64(8), u64(3)):
            put_word(to, 6, u64(word(to, 6)) + j)


def asked(flag, count, at):
    if flag:
        put_word(at, 0, count)
    else:
        put_word(at, 0, [])
    return 0 if not flag else 1


class PythonWords:
    """The functions of words.py that these use, in Python, and u64 as compiled code has it."""

    def u64(x):
        return np.uint64(int(x) % 2**64)

    def word(at, k):
        return ctypes.c_int64.from_address(at + 8 * k).value

    def put_word(at, k, x):
        ctypes.c_int64.from_address(at + 8 * k).value = int(x)

    def share(at, n):
        before = ctypes.c_int64.from_address(at).value
        ctypes.c_int64.from_address(at).value += n
        return before

    def number(at, k):
        return ctypes.c_double.from_address(at + 8 * k).value

    def put_number(at, k, x):
        ctypes.c_double.from_address(at + 8 * k).value = x


def in_python(function, memory):
    space = {**globals(), **vars(PythonWords)}
    for name in ("counted", "first_beyond", "clear"):
        space[name] = FunctionType(space[name].__code__, space)
    return FunctionType(function.__code__, space)(memory.ctypes.data)


def compiled(function, result, monkeypatch):
    monkeypatch.setenv("FASTADAM_CACHE", "0")
    return entry.native_text("translated", function, result(types.int64)).entry_point


def test_whole_numbers(monkeypatch):
    memory = np.zeros(RESULTS + EACH * PAIRS, np.int64)
    memory[1:RESULTS] = np.random.default_rng(0).integers(-9, 9, 2 * PAIRS)
    ours, theirs = memory.copy(), memory.copy()
    assert compiled(whole, types.int64, monkeypatch)(ours.ctypes.data) == in_python(whole, theirs)
    np.testing.assert_array_equal(ours, theirs)
    assert len(np.unique(theirs)) > 50


def test_real_numbers(monkeypatch):
    memory = np.zeros(RESULTS + EACH * PAIRS)
    memory[1:RESULTS] = np.random.default_rng(1).standard_normal(2 * PAIRS)
    memory[3:6] = np.nan, 1.0, np.nan
    ours, theirs = memory.copy(), memory.copy()
    compiled(real, types.void, monkeypatch)(ours.ctypes.data)
    in_python(real, theirs)
    np.testing.assert_array_equal(ours, theirs)
    assert len(np.unique(theirs)) > 5 * PAIRS


def test_unsigned_numbers(monkeypatch):
    memory = np.zeros(RESULTS + EACH * PAIRS, np.int64)
    memory[1:RESULTS] = np.random.default_rng(2).integers(-9, 9, 2 * PAIRS) | 1
    ours, theirs = memory.copy(), memory.copy()
    compiled(unsigned, types.void, monkeypatch)(ours.ctypes.data)
    with np.errstate(over="ignore"):
        in_python(unsigned, theirs)
    np.testing.assert_array_equal(ours, theirs)
    assert len(np.unique(theirs)) > 50


def test_of_what_is_known_before_only_one_side_is_translated(monkeypatch):
    monkeypatch.setenv("FASTADAM_CACHE", "0")
    kind, memory = types.int64(types.int64), np.zeros(1, np.int64)
    code = entry.native_text("translated", asked, kind, "asked", constants={"flag": True, "count": 7})
    assert (code.entry_point(memory.ctypes.data), *memory) == (1, 7)
    with pytest.raises(NotImplementedError, match=r"asked has '\[\]'"):
        entry.native_text("translated", asked, kind, "not asked", constants={"flag": False, "count": 7})


def stored(count, at):
    total = 0
    for _ in range(3):
        total += count
        count = 2 * count
    return total


def test_a_constant_is_not_stored_to():
    with pytest.raises(NotImplementedError, match="stored has count, a constant, stored to"):
        entry.native_text("translated", stored, types.int64(types.int64), "stored", constants={"count": 1})


def inner(count, x):
    return count + x


def chosen(flag, count, math, at):
    put_word(at, 0, (word(at, 0) if flag else nothing) + inner(10, 1))  # noqa: F821
    if not flag or (flag and word(at, 1) < 0):
        put_word(at, 1, math)
    return count if word(at, 2) else -count


def test_constants_hide_the_modules_names_and_reach_no_other_function(monkeypatch):
    monkeypatch.setenv("FASTADAM_CACHE", "0")
    memory, given = np.array([5, -1, -1]), {"flag": True, "count": 7, "math": 3}
    code = entry.native_text("translated", chosen, types.int64(types.int64), "chosen", constants=given)
    assert code.entry_point(memory.ctypes.data) == 7
    assert memory.tolist() == [16, 3, -1]


def with_a_real_literal(at):
    return word(at, 0) * 0.5


def with_a_negative_literal(at):
    return 1 if u64(at) < -1 else 0


@pytest.mark.parametrize("function", [with_a_real_literal, with_a_negative_literal])
def test_a_literal_of_another_kind_is_refused(function, monkeypatch):
    with pytest.raises(TypeError, match="say which is meant"):
        compiled(function, types.int64, monkeypatch)


def with_an_unsigned_literal(at):
    return at + ONE


def with_an_unsigned_number(at):
    return at + u64(word(at, 0))


@pytest.mark.parametrize("function", [with_an_unsigned_literal, with_an_unsigned_number])
def test_signed_and_unsigned_numbers_do_not_meet_unsaid(function, monkeypatch):
    with pytest.raises(TypeError, match=r"int64 meets u?int64"):
        compiled(function, types.int64, monkeypatch)


def with_list(at):
    return [at]


def with_else(at):
    for k in range(at):
        put_word(at, k, 0)
    else:
        put_word(at, 0, 1)


def with_tuple_of_many(at):
    for k in (1, 2):
        put_word(at, k, 0)


def with_chain(at):
    return 0 < at < 2


def with_another_function(at):
    return max(at, 0)


def with_two_signs(at):
    x = word(at, 0)
    x = u64(x)
    return x


def with_an_operator_of_what_has_none(at):
    return 1 if gathered(at) == gathered(at) else 0


def with_a_truth_of_what_has_none(at):
    return 1 if gathered(at) else 0


def with_a_whole_number_for_a_real(at):
    put_number(at, 0, 1)


def with_a_float_of_what_has_no_number(at):
    return float(gathered(at))


def with_an_addition_to_an_unknown_name(at):
    unknown += at  # noqa: F821, F841
    return at


def with_an_unknown_name(at):
    return at + nothing  # noqa: F821


def with_two_types(at):
    x = 1
    x = 2.0
    return x


@intrinsic
def gathered(typing, at):
    """Return something that only intrinsics read."""
    kind = types.UniTuple(types.int64, 1)
    return kind(types.int64), lambda cx, builder, sig, args: cx.make_tuple(builder, kind, args)


REFUSED = (
    with_list,
    with_two_signs,
    with_an_operator_of_what_has_none,
    with_a_truth_of_what_has_none,
    with_an_unknown_name,
    with_a_float_of_what_has_no_number,
    with_an_addition_to_an_unknown_name,
    with_a_whole_number_for_a_real,
    with_else,
    with_tuple_of_many,
    with_chain,
    with_two_types,
    with_another_function,
)


@pytest.mark.parametrize("function", REFUSED)
def test_what_has_no_translation_is_refused(function, monkeypatch):
    with pytest.raises(NotImplementedError, match=rf"{function.__name__} has .*translate"):
        compiled(function, types.int64, monkeypatch)


def test_a_text_that_has_changed_is_refused():
    changed = FunctionType(with_list.__code__.replace(co_consts=(None, 7)), globals(), "with_list")
    changed.__module__ = __name__
    with pytest.raises(RuntimeError, match="has changed since with_list was imported"):
        syntax.syntax_of(changed)


@pytest.mark.parametrize("file", ["/nowhere/frozen_module.pyc", None])
def test_a_module_without_a_text_is_refused(file, monkeypatch):
    """As in a program that was frozen with bytecode only."""
    module = ModuleType("frozen_module")
    if file is not None:
        module.__file__ = file
    monkeypatch.setitem(sys.modules, "frozen_module", module)
    function = FunctionType(with_list.__code__, vars(module), "with_list")
    assert function.__module__ == "frozen_module"
    with pytest.raises(RuntimeError, match=r"frozen_module has no text, expected its \.py file"):
        syntax.syntax_of(function)
