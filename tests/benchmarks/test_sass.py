"""The model of machine code: what it says of the plain kernels, of known code, and of the result that is committed."""

import json
from importlib.metadata import version
from pathlib import Path

import pytest
from cuda_host import plain_steps
from kept import kept

from fastadam.benchmarks import as_cupy, sass
from fastadam.benchmarks.machine import ROOT
from fastadam.kernels.cuda import OPTIONS, Instantiation
from fastadam.kernels.formats import BFLOAT16, CODES, FLOAT32

pytest.importorskip("cuda.bindings.nvrtc", reason="no cuda-bindings: pip install '.[cuda-ci]'")
try:
    sass.disassembler()
except RuntimeError as error:
    pytest.skip(str(error), allow_module_level=True)

MOST = 0.75  # of what can be issued while memory is busy


@pytest.fixture
def assemble(pytestconfig):
    """As sass.assembled, which takes 20 s of NVRTC's for all plain kernels; what it returned is kept."""
    texts = [*map(Path.read_text, [Path(sass.__file__), Path(as_cupy.__file__)]), *OPTIONS]
    versions = [as_cupy.version(), version("nvidia-cuda-nvdisasm")]

    def assemble(text):
        def write(new):
            new.write_text(json.dumps(sass.assembled(text)))

        return json.loads(kept(pytestconfig.cache.mkdir("sass"), [text, *texts, *versions], write).read_text())

    return assemble


def over(rows):
    """The plain kernels whose instructions come near to binding an H100; not what adds up their sums, see sass.py."""
    steps = [step for step in plain_steps() if step.name in rows and not step.chores.summing]
    plain = {step.name: rows[step.name]["issue"] for step in steps}
    return {name: issue for name, issue in plain.items() if issue is None or issue > MOST}


def test_memory_binds_every_plain_kernel_and_slots_of_8_bits_are_within_what_was_asked(assemble):
    asked = {step: most for step, most in sass.ADAM.values() if most}
    rows = sass.modelled([*plain_steps(), *asked], assemble)
    assert rows.keys() == {step.name for step in (*plain_steps(), *asked)}
    assert over(rows) == {}
    assert [step.name for step, most in asked.items() if rows[step.name]["a_byte"] > most] == []


def test_the_shortest_path_makes_all_accesses():
    code = [
        (None, "S2R", "R0, SR_TID.X"), ("P0", "BRA", "`(.L_x_0)"), (None, "LDG.E.128", "R4, [R2]"),
        (None, "FADD", "R4, R4, R5"), (None, "STG.E.64", "[R2], R4"), (None, "STG.E.64", "[R2+0x8], R4"),
        (None, "EXIT", ""), (None, "EXIT", ""),
    ]  # fmt: skip
    labels = {".L_x_0": 7}
    assert sass.shortest(code, labels, 0, 0) == ["S2R", "BRA", "EXIT"]
    assert sass.shortest(code, labels, 1, 4) == ["S2R", "BRA", "LDG.E.128", "FADD", "STG.E.64", "STG.E.64", "EXIT"]
    assert sass.shortest(code, labels, 2, 4) is None
    assert sass.shortest(code, labels, 1, 5) is None


def test_what_few_threads_store_for_all_of_a_block_does_not_count():
    code = [
        (None, "STG.E", "[R8], R9"), ("P0", "BRA", "`(.L_x_0)"), (None, "BAR.SYNC.DEFER_BLOCKING", "0x0"),
        (None, "STG.E.64", "[R6], R4"), (None, "EXIT", ""),
    ]  # fmt: skip
    assert sass.shortest(code, {".L_x_0": 4}, 0, 1) == ["STG.E", "BRA", "EXIT"]
    assert "STG.E.64" in sass.shortest(code, {".L_x_0": 4}, 0, 1, apart=0)


def test_bytes_and_accesses_of_a_step():
    adam = Instantiation("adam", "ByValue", (FLOAT32, FLOAT32, FLOAT32, FLOAT32, None))
    assert (sass.bytes_of(adam), sass.accesses_of(adam)) == (28, (4, 12))
    codes = adam._replace(streams=(BFLOAT16, BFLOAT16, CODES, CODES, None))
    assert (sass.bytes_of(codes), sass.accesses_of(codes)) == (10.25, (2 + 4, 4 + 2 + 2))


def test_what_adds_up_sums_reads_what_they_depend_on():
    four = Instantiation("lamb", "ByValue", (FLOAT32, FLOAT32, FLOAT32, FLOAT32)).sums
    assert (sass.bytes_of(four), sass.accesses_of(four)) == (16, (4, 0))
    two = Instantiation("lars", "ByValue", (FLOAT32, FLOAT32, FLOAT32)).sums
    assert (sass.bytes_of(two), sass.accesses_of(two)) == (8, (2, 0))


def test_the_committed_result_says_that_it_is_a_model():
    (path,) = (ROOT / "benchmarks/results").glob("sass-*.json")
    result = json.loads(path.read_text())
    assert "no GPU ran it" in result["model"]
    assert result["machine"]["gpu"] == "none"
    shown = [*plain_steps(), *(step for step, _ in sass.ADAM.values())]
    assert [step.name for step in shown if step.name not in result["cases"]] == []
    assert over(result["cases"]) == {}
    assert [name for name, row in result["cases"].items() if row["issue"] is None] == []


def test_the_commands_help_says_what_is_not_modelled(capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["sass", "--help"])
    with pytest.raises(SystemExit):
        sass.main()
    said = capsys.readouterr().out
    assert "no GPU ran it" in said
    assert "Not modelled: latency" in said
    assert "only adds up sums" in said
