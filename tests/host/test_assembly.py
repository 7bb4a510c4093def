"""What noise cannot blur: every kernel's hot loop is packed vector code, read from the assembly."""

import os
import platform
import re
import subprocess
import sys

import pytest
from cases import kernels_in_use, label

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


PROGRAM = """
import sys
import numpy as np
import fastadam as fa
from cases import kernels_in_use
from test_assembly import judge
from fastadam.kernels.cpu import traversal

method, chosen = kernels_in_use()[int(sys.argv[1])]
for dtype, kind in ((np.float32, "s"), (np.float64, "d")):
    opt = method(np.ones(32_768, dtype), backend="numba", **chosen)
    print(np.dtype(dtype).name, *judge(list(traversal.pieces.values())[-1].assembly, kind))
"""


def run_apart(program, number):
    """The lines that a program prints in a process of its own, without cached code, which has no text."""
    environment = {**os.environ, "FASTADAM_CACHE": "0", "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", program, str(number)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.splitlines()


NARROW = """
import sys
import numpy as np
import fastadam as fa
from fastadam.tools.cover import stored
from test_assembly import innermost_loops, judge
from fastadam.kernels.cpu import traversal

one = stored()[int(sys.argv[1])]
(p, g), kind = one.dtypes(), "d" if one.p == "float64" else "s"
opt = fa.AdamW(np.ones(32_768, p), backend="numba", **one.chosen())
opt.step(np.ones(32_768, g))
text = list(traversal.pieces.values())[-1].assembly
print(*judge(text, kind), sum("pmovzxwd" in body for body in innermost_loops(text)))
"""


# float16 and bfloat16, both ways to round, 8 bits, words of bfloat16 with a remainder, a master that takes p over:
# compiling all takes minutes
ONE_OF_EACH, WORDS = [1, 5, 11, 12, 14, 17], [1, 14]


@pytest.mark.parametrize("number", ONE_OF_EACH, ids=[str(stored()[k]) for k in ONE_OF_EACH])
def test_every_format_is_vectorised(number):
    """With the conversions and the random bits in the loop, which a call or a carry would make scalar."""
    for hot, mixed, remainders, widening in map(str.split, run_apart(NARROW, number)):
        assert int(hot) >= 1, "no packed loop"
        assert int(widening) == 0 or number not in WORDS, "bfloat16 is widened one by one"
        assert int(mixed) == 0, "scalar roots or quotients in a packed loop"
        assert int(remainders) <= 2 * int(hot), "more scalar loops than remainders of packed ones"


@pytest.mark.parametrize("number", range(len(kernels_in_use())), ids=[label(case) for case in kernels_in_use()])
def test_hot_loops_are_packed(number):
    rows = [line.split() for line in run_apart(PROGRAM, number)]
    assert [row[:1] for row in rows] == [["float32"], ["float64"]]
    for *what, hot, mixed, remainders in rows:
        assert int(hot) >= 1, (what, "no packed loop")
        assert int(mixed) == 0, (what, "scalar roots or quotients in a packed loop")
        # A remainder, and a version that LLVM makes for pieces of one element, which stay in registers.
        assert int(remainders) <= 2 * int(hot), (what, "more scalar loops than remainders of packed ones")
