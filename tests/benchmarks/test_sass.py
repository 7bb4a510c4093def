"""The model of machine code: what it says of the plain kernels, of known code, and of the result that is committed."""

import json

import pytest
from cases import needed

from fastadam.benchmarks import sass
from fastadam.benchmarks.machine import ROOT
from fastadam.kernels import ALL
from fastadam.kernels.cuda import Instantiation, Riding
from fastadam.kernels.formats import BFLOAT16, CODES, FLOAT32

pytest.importorskip("cuda.bindings.nvrtc", reason="no cuda-bindings: pip install '.[cuda-ci]'")
try:
    sass.disassembler()
except RuntimeError as error:
    pytest.skip(str(error), allow_module_level=True)

DRAWN = Riding(drawn=True)
MOST = 0.75  # of what can be issued while memory is busy


def plain(format, chores):
    """Every kernel with all of its required slots in one format, nothing else."""
    slots = {
        name: [format if slot in needed(kernel) else None for slot in kernel.slots] for name, kernel in ALL.items()
    }
    riding = {name: chores._replace(summed=ALL[name].summed(())) for name in slots}
    return [Instantiation(name, "ByValue", (format, format, *rested), riding[name]) for name, rested in slots.items()]


def test_memory_binds_every_plain_kernel():
    steps = plain(FLOAT32, Riding()) + plain(BFLOAT16, DRAWN)
    rows = sass.modelled(steps)
    assert rows.keys() == {step.name for step in steps}
    over = {name: row["issue"] for name, row in rows.items() if row["issue"] is None or row["issue"] > MOST}
    assert over == {}


def test_slots_of_8_bits_are_within_what_was_asked():
    adam = [Instantiation("adam", "ByValue", (p, p, CODES, CODES, None), DRAWN) for p in (FLOAT32, BFLOAT16)]
    narrow, short = sass.modelled(adam).values()
    assert narrow["a_byte"] <= 8.0
    assert short["a_byte"] <= 10.0


def test_the_shortest_path_makes_all_accesses():
    code = [
        (None, "S2R", "R0, SR_TID.X"), ("P0", "BRA", "`(.L_x_0)"), (None, "LDG.E.128", "R4, [R2]"),
        (None, "FADD", "R4, R4, R5"), (None, "STG.E.128", "[R2], R4"), (None, "EXIT", ""), (None, "EXIT", ""),
    ]  # fmt: skip
    labels = {".L_x_0": 6}
    assert sass.shortest(code, labels, 0, 0) == ["S2R", "BRA", "EXIT"]
    assert sass.shortest(code, labels, 2, 0) == ["S2R", "BRA", "LDG.E.128", "FADD", "STG.E.128", "EXIT"]
    assert sass.shortest(code, labels, 3, 0) is None
    assert sass.shortest(code, labels, 2, 1) is None


def test_what_few_threads_store_for_all_of_a_block_does_not_count():
    code = [
        (None, "STG.E", "[R8], R9"), ("P0", "BRA", "`(.L_x_0)"), (None, "BAR.SYNC.DEFER_BLOCKING", "0x0"),
        (None, "STG.E.64", "[R6], R4"), (None, "EXIT", ""),
    ]  # fmt: skip
    assert sass.shortest(code, {".L_x_0": 4}, 0, 1) == ["STG.E", "BRA", "EXIT"]
    assert "STG.E.64" in sass.shortest(code, {".L_x_0": 4}, 0, 1, apart=0)


def test_bytes_and_accesses_of_a_step():
    adam = Instantiation("adam", "ByValue", (FLOAT32, FLOAT32, FLOAT32, FLOAT32, None))
    assert (sass.bytes_of(adam), sass.accesses_of(adam)) == (28, (7, 0))
    codes = adam._replace(streams=(BFLOAT16, BFLOAT16, CODES, CODES, None))
    assert (sass.bytes_of(codes), sass.accesses_of(codes)) == (10.25, (3 + 4, 2))


def test_the_committed_result_says_that_it_is_a_model():
    (path,) = (ROOT / "benchmarks/results").glob("sass-*.json")
    result = json.loads(path.read_text())
    assert "no GPU ran it" in result["model"]
    assert result["machine"]["gpu"] == "none"
    assert "adam_ByValue_f32_f32_f32_f32_f32_None" in result["cases"]
