"""The CUDA backend's text as NVRTC compiles it, without a GPU: with --all, which .ci/ptx gives, every instantiation for
every generation of GPUs."""

import re
from itertools import pairwise

import pytest
from cuda_host import steps, stored_steps

from fastadam.kernels.cuda import Instantiation, Pass, source
from fastadam.tools.cover import in_pairs

pytest.importorskip("cuda.bindings.nvrtc", reason="no cuda-bindings: pip install '.[cuda-ci]'")

# By default the H100's alone.
ARCHITECTURES = [90, *(pytest.param(others, marks=pytest.mark.whole) for others in (80, 100, 120))]
ASSEMBLER = "ptxas info", "ptxas         ."  # how the lines begin that -Xptxas=-v asks for
VECTOR = r"(?:v4\.[fbu]32|v2\.[fbu]64)"  # of 16 bytes; newer generations load float32 in pairs, too


def some(instantiations, request):
    """All with --all; else those in which every pair occurs of kernels, tables, types and what rides along."""
    if request.config.getoption("--all"):
        return instantiations
    walks = [step for step in instantiations if isinstance(step, Instantiation)]
    told = [
        (step.type, step.table, step.real.name, step.streams.count(None), *step.chores, step.split) for step in walks
    ]
    chosen = {walks[k] for k in in_pairs(told)}
    return tuple(step for step in instantiations if isinstance(step, Pass) or step in chosen)


@pytest.fixture(scope="module", params=ARCHITECTURES, ids="sm_{}".format)
def program(request, assembled):
    """What is compiled, and what NVRTC makes of it: (instantiations, PTX, messages)."""
    instantiations = some(steps(), request)
    return instantiations, *assembled(source(instantiations), request.param)


def bodies(ptx):
    """The text of each kernel by name."""
    return dict(re.findall(r"\.entry (\w+)\((.*?)^\}", ptx, re.DOTALL | re.MULTILINE))


def test_it_compiles_without_warnings_and_spills_nothing(program):
    instantiations, _, log = program
    assert [line for line in log.splitlines() if line and not line.startswith(ASSEMBLER)] == []
    memory = re.findall(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", log)
    assert len(memory) == len(instantiations) + 1  # and `advance`
    assert set(memory) == {("0", "0", "0")}
    registers = [int(n) for n in re.findall(r"Used (\d+) registers", log)]
    assert max(registers) <= 128  # four blocks of 128 threads stay on a multiprocessor


def test_arithmetic_is_never_fused_never_flushed_and_of_one_type(program):
    instantiations, ptx, _ = program
    found = bodies(ptx)
    others = {*(each.name for each in instantiations if isinstance(each, Pass)), "advance"}
    assert found.keys() == {*(step.name for step in instantiations), *others}
    for name, text in found.items():
        assert ".ftz" not in text, name
        assert ".approx" not in text, name
        assert not re.search(r"\b(fma|mad)(\.\w+)*\.f(32|64)\b", text), name
        operations = re.findall(r"\b(?:add|sub|mul|div|sqrt)(?:\.\w+)*\.f\d\d\b", text)
        assert all(".rn.f" in operation for operation in operations), name  # without .rn they may be fused later
        if name in others or "NOTED" in name or "SUMMING" in name:  # sums are of float64
            continue
        assert len(set(operations)) >= 3, name
        if ("SCALED" in name or "SUMMED" in name) and "_f32_" in name:  # factors are, and rounded once
            assert operations.count("mul.rn.f64") == 2 * ("SCALED" in name), name
            text = re.sub(r"(ld\.global|mul\.rn|mov)\.f64|cvt\.rn\.f32\.f64|(ld\.global|mov)\.b64", "", text)
        other = "f32" if "_f64_" in name else "f64"
        if "f16" in name:  # a copy of float64 goes through float32
            text = re.sub(r"cvt\.rn\.(f32\.f64|f16\.f32)|setp\.neu\.f32|mov\.b32", "", text)
        assert not re.search(rf"\b(add|sub|mul|div|sqrt|neg|abs|cvt|setp|mov|ld|st)(\.\w+)*\.{other}\b", text), name


def test_whole_accesses_are_of_16_bytes_and_all_loads_come_before_arithmetic(program):
    instantiations, ptx, _ = program
    found = bodies(ptx)
    for step in (step for step in instantiations if isinstance(step, Instantiation)):
        text = found[step.name]
        streams = sum(format is not None for format in (*step.streams, step.chores.ema))
        loads = [m.start() for m in re.finditer(rf"ld\.global\.{VECTOR}", text)]
        stores = [m.start() for m in re.finditer(r"st\.global\.(v4\..32|v2\..64)", text)]
        copies = len(re.findall(rf"st\.global\.[bu]{512 // step.real.itemsize // 2}\b", text))
        cleared = step.chores.clear and step.table != "Rows"
        written = 0 if step.chores.summing else streams - 1 + cleared
        skipped = cleared and step.chores.scaled
        assert not re.search(r"\b(ld|st)\.(v\d|f\d|u\d|b\d|local)", text), step.name  # generic, or the stack
        more = step.table == "Rows"  # values that belong to the same row, and are added to the first
        # Twice: where every stream can be accessed whole, and where each is looked at by itself.
        if step.chores.summing:  # which leaves out what no sum needs
            assert (len(loads) <= 2 * streams, len(stores)) == (True, 0), step.name
            continue
        assert (len(loads), len(stores)) == (2 * (streams + more), 2 * written + skipped), step.name
        if not step.chores.noted and not step.chores.summing:  # whose notes are words of 64 bits too
            assert copies == (0 if step.chores.copy is None else 2), step.name
        apart = [a for a, b in pairwise(loads) if re.search(r"(mul|add)\.rn", text[a:b])]
        assert len(apart) <= 1 + 2 * more, step.name  # between the two walks, and before a further value
        runs = [text[a:b] for a, b in zip(loads, loads[streams - 1 :], strict=False)]
        assert any(not re.search(r"\bbra\b|\.rn\.", run) for run in runs), step.name  # one walk loads in one go


def test_what_these_tests_look_for_is_there_in_plain_cuda(assembled):
    """The same options on plain arithmetic give what the others must not hold."""
    text = 'extern "C" __global__ void f(float* x) { x[0] = x[1] * x[2] + x[3] > 0 ? x[4] : x[5]; }'
    ptx, _ = assembled(text, 90)
    assert "fma.rn.ftz.f32" in ptx
    assert re.search(r"setp\.\w+\.ftz\.f32", ptx)


@pytest.fixture(scope="module", params=ARCHITECTURES, ids="sm_{}".format)
def formats(request, assembled):
    """As `program`, of what formats need."""
    instantiations = some(stored_steps(), request)
    return instantiations, *assembled(source(instantiations), request.param)


def test_formats_spill_nothing_and_keep_to_one_type(formats):
    """As above, for streams of 16 and 8 bits and what draws random bits."""
    instantiations, ptx, log = formats
    assert [line for line in log.splitlines() if line and not line.startswith(ASSEMBLER)] == []
    memory = re.findall(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", log)
    assert len(memory) == len(instantiations) + 1
    assert set(memory) == {("0", "0", "0")}
    assert max(int(n) for n in re.findall(r"Used (\d+) registers", log)) <= 128
    found = bodies(ptx)
    for step in instantiations:
        text = found[step.name]
        assert ".ftz" not in text, step.name
        assert ".approx" not in text, step.name
        assert not re.search(r"\b(fma|mad)(\.\w+)*\.f(32|64)\b", text), step.name
        operations = re.findall(r"\b(?:add|sub|mul|div|sqrt)(?:\.\w+)*\.f\d\d\b", text)
        assert all(".rn.f" in operation for operation in operations), step.name
        assert not re.search(r"\b(ld|st)\.(v\d|f\d|u\d|b\d|local)", text), step.name  # generic, or the stack
        if isinstance(step, Instantiation) and not step.chores.noted and not step.chores.summing:
            other = "f32" if step.real == "float64" else "f64"
            assert step.chores.scaled or not re.search(rf"\b(add|sub|mul|div|sqrt)\.rn\.{other}\b", text), step.name


def test_whole_accesses_of_16_bits_are_of_16_bytes(formats):
    instantiations, ptx, _ = formats
    found = bodies(ptx)
    for step in instantiations:
        if not isinstance(step, Instantiation) or step.table == "Rows" or step.width != 8 or step.chores.summing:
            continue  # of what is added up the compiler leaves out loads that no sum needs
        short = [format for format in step.streams if format is not None and format.bytes == 2]
        # Of 8 bits a thread loads the words which hold its codes.
        wide = [format for format in step.streams if format is not None and (format.block > 1 or format.bytes == 4)]
        wide += [format for format in [step.chores.ema] if format is not None]
        doubles = sum(format is not None and format.bytes == 8 for format in step.streams)
        loads = re.findall(rf"ld\.global\.{VECTOR}", found[step.name])
        whole = len(short) + step.split + step.chores.followed + 2 * len(wide) + 4 * doubles
        assert len(loads) == 2 * whole, step.name  # as above, twice
