"""What noise cannot blur: every kernel's hot loop is packed vector code, read from the assembly."""

import platform
import re

import numpy as np
import pytest
from cases import kernels_in_use, label
from kept import kept
from numba.core.registry import cpu_target

import fastadam as fa
from fastadam.host import compiled
from fastadam.kernels.cpu import cache, prefetch, traversal
from fastadam.tools.cover import stored

pytestmark = pytest.mark.skipif(
    platform.machine() not in ("x86_64", "AMD64"),
    reason="the test reads x86-64 assembly; this is " + platform.machine(),
)

PACKED = r"\tv?(?:sqrt|div|mul|add|sub)p{kind}\t.*%[yz]mm"
SCALAR = r"\tv?(?:sqrt|div)s{kind}\t"


def innermost_loops(text):
    """The bodies of the loops that hold no other loop: from a label to the jump back to it."""
    lines = text.splitlines()
    at = {m[1]: k for k, line in enumerate(lines) if (m := re.match(r"(\.L\w+):", line))}
    loops = []
    for k, line in enumerate(lines):
        target = re.match(r"\tj\w+\t(\.L\w+)$", line)
        if target and at.get(target[1], k + 1) <= k:
            loops.append((at[target[1]], k))
    inner = [(a, b) for a, b in loops if not any((c, d) != (a, b) and a <= c and d <= b for c, d in loops)]
    return ["\n".join(lines[a : b + 1]) for a, b in inner]


def judge(text, kind):
    """Loops of packed arithmetic, those of them with scalar roots or quotients, and other loops with scalar ones."""
    packed, scalar = re.compile(PACKED.format(kind=kind)), re.compile(SCALAR.format(kind=kind))
    loops = innermost_loops(text)
    hot = [body for body in loops if packed.search(body)]
    rest = [body for body in loops if not packed.search(body)]
    return len(hot), sum(bool(scalar.search(body)) for body in hot), sum(bool(scalar.search(body)) for body in rest)


def test_the_judge_knows_scalar_code():
    assert judge(".LA:\n\tvsqrtss\t%xmm0, %xmm1, %xmm1\n\tjne\t.LA", "s") == (0, 0, 1)
    assert judge(".LA:\n\tvdivps\t%zmm0, %zmm1, %zmm1\n\tjne\t.LA", "s") == (1, 0, 0)
    assert judge(".LA:\n\tvdivps\t%ymm0, %ymm1, %ymm1\n\tvdivss\t%xmm0, %xmm1, %xmm1\n\tjne\t.LA", "s") == (1, 1, 0)
    assert judge(".LB:\n.LA:\n\tvdivps\t%ymm0, %ymm1, %ymm1\n\tjne\t.LA\n\tjne\t.LB", "d") == (0, 0, 0)


alive = []  # code that others of the same name may have been linked to


@pytest.fixture
def assembly_of(pytestconfig, monkeypatch):
    """assembly_of(act): the text of the last piece that act() needs.

    Pieces from the disk have none, so it is compiled once more, and the text kept by all that decides it.
    """

    def last(act, **environment):
        with monkeypatch.context() as patch:
            patch.setattr(traversal, "pieces", {})
            patch.setattr(compiled, "PIECES", {})
            for name, value in environment.items():
                patch.setenv(name, value)
            act()
            alive.append(traversal.pieces)
            return list(traversal.pieces.items())[-1]

    def assembly(act):
        kind, _ = last(act)
        processor = cpu_target.target_context.codegen().magic_tuple()
        return kept(
            pytestconfig.cache.mkdir("assembly"),
            [cache.stamp(), str(kind), repr(processor), prefetch.GAINING],
            lambda path: path.write_text(last(act, FASTADAM_CACHE="0")[1].assembly),
        ).read_text()

    return assembly


# float16 and bfloat16, both ways to round, 8 bits, words of bfloat16 with a remainder, a master that takes p over:
# compiling all takes minutes
ONE_OF_EACH, WORDS = [1, 5, 11, 12, 14, 17], [1, 14]


@pytest.mark.parametrize("number", ONE_OF_EACH, ids=[str(stored()[k]) for k in ONE_OF_EACH])
def test_every_format_is_vectorised(number, assembly_of):
    """With the conversions and the random bits in the loop, which a call or a carry would make scalar."""
    one = stored()[number]
    p, g = one.dtypes()
    text = assembly_of(lambda: fa.AdamW(np.ones(32_768, p), backend="numba", **one.chosen()).step(np.ones(32_768, g)))
    hot, mixed, remainders = judge(text, "d" if one.p == "float64" else "s")
    assert hot >= 1, "no packed loop"
    widening = sum("pmovzxwd" in body for body in innermost_loops(text))
    assert widening == 0 or number not in WORDS, "bfloat16 is widened one by one"
    assert mixed == 0, "scalar roots or quotients in a packed loop"
    assert remainders <= 2 * hot, "more scalar loops than remainders of packed ones"


@pytest.mark.parametrize(("dtype", "kind"), [(np.float32, "s"), (np.float64, "d")], ids=["float32", "float64"])
@pytest.mark.parametrize("case", kernels_in_use(), ids=label)
def test_hot_loops_are_packed(case, dtype, kind, assembly_of):
    method, chosen = case
    hot, mixed, remainders = judge(assembly_of(lambda: method(np.ones(32_768, dtype), backend="numba", **chosen)), kind)
    assert hot >= 1, "no packed loop"
    assert mixed == 0, "scalar roots or quotients in a packed loop"
    # A remainder, and a version that LLVM makes for pieces of one element, which stay in registers.
    assert remainders <= 2 * hot, "more scalar loops than remainders of packed ones"


# In lines of 64 bytes for 64 elements: p, g, m and v in float32; words of bfloat16; m and v in codes with scales.
LINES = [("float32", None, 4 + 4 + 4 + 4), ("bfloat16", "bfloat16", 2 + 2 + 2 + 2), ("float32", "8bit", 4 + 4 + 2 + 2)]


@pytest.mark.parametrize(("dtype", "moments", "lines"), LINES)
def test_memory_is_asked_for_ahead(dtype, moments, lines, assembly_of, monkeypatch):
    monkeypatch.setattr(prefetch, "GAINING", "")  # of any processor
    p = np.ones(32_768, dtype)
    text = assembly_of(lambda: fa.AdamW(p, backend="numba", moments=moments).step(p.copy()))
    asked = [int(m[1] or 0) for m in re.finditer(r"\tprefetcht0\t(\d*)\(", text)]
    assert len(asked) == lines
    assert set(asked) == {2_048 + 64 * k for k in range(p.itemsize)}
    hot = [body for body in innermost_loops(text) if "sqrtps" in body]
    assert hot
    assert not any("prefetch" in body for body in hot), "asked for at every vector"


def test_where_nothing_is_asked_for_no_code_is(assembly_of, monkeypatch):
    monkeypatch.setattr(prefetch, "GAINING", "no such feature")
    text = assembly_of(lambda: fa.AdamW(np.ones(32_768, np.float32), backend="numba"))
    assert "sqrtps" in text
    assert "prefetch" not in text


@pytest.mark.skipif(
    "+avx512f" not in cpu_target.target_context.codegen().magic_tuple()[2], reason="this processor has no AVX-512"
)
def test_words_are_stepped_in_vectors_of_512_bits(assembly_of):
    p = np.ones(32_768, "bfloat16")
    text = assembly_of(lambda: fa.AdamW(p, backend="numba", moments="bfloat16").step(p.copy()))
    hot = max((body for body in innermost_loops(text) if "sqrtps" in body), key=len)
    assert len(re.findall(r"\tvmovdqu64\t%zmm\d+, \(", hot)) == 3, "p, m and v are not stored 64 bytes at a time"
    assert not re.search(r"\tv(?:sqrt|div)ps\t.*%ymm", hot)
