"""The suite narrow: who is wrong is not timed, targets are judged by what is in the result, the tables show it."""

import json

import numpy as np
import pytest

from fastadam.benchmarks import markdown, report, suites, targets, truth
from fastadam.benchmarks.ours import Fastadam
from fastadam.benchmarks.suites import ALL, CODED, FASTADAM, MOMENTS, PLAIN, REMAINDER, SHORT_CODED, label
from fastadam.benchmarks.summary import number
from fastadam.tools.cli import main


def run(*words):
    """The exit status of a run in small."""
    return main(["bench", "--suite", "narrow", *words])


@pytest.fixture(scope="module")
def written(tmp_path_factory, here):
    """A small run, and its result."""
    path = tmp_path_factory.mktemp("narrow") / "narrow-x.json"
    with here():
        assert run("--sizes", "5000", "--rounds", "2", "--json", str(path)) == 0
    return path, json.loads(path.read_text())


def test_ours_is_right_in_every_format_and_moves_what_it_says(written):
    _, result = written
    (entry,) = result["cases"].values()
    assert not entry["wrong"]
    moved = {name: of["bytes"] for name, of in entry["contestants"].items() if name.startswith(FASTADAM)}
    coded = 2 * 5 * 1088 * 2 / 5000  # five blocks each of m and v, read and written
    assert moved == {
        label(FASTADAM, format, PLAIN): bytes
        for format, bytes in {
            PLAIN: 28, MOMENTS: 20, ALL: 14, REMAINDER: 18, CODED: 12 + coded, SHORT_CODED: 6 + coded,
        }.items()
    }  # fmt: skip
    for of in entry["contestants"].values():
        assert 0 < of["p10"] <= of["seconds"] <= of["p90"]


def made_up(case, **ns):
    """A result of one case in which contestants, by label, took so many ns per parameter."""
    contestants = {
        name.replace("_", " "): {"seconds": x, "medians": [x], "p10": x, "p90": x, "bytes": 1, "ns_per_param": x}
        for name, x in ns.items()
    }
    cases = {case: {"n": 2**24, "contestants": contestants}}
    return {"bench": "narrow", "rule": "Adam", "dtype": PLAIN, "machine": {}, "absent": {}, "cases": cases}


@pytest.mark.parametrize(("ns", "met"), [(0.85, True), (0.86, False)])
def test_a_share_of_float32s_time(ns, met):
    result = made_up("2^24", **{FASTADAM: 1.0, label(FASTADAM, ALL, PLAIN): ns})
    (target,) = (
        one for one in targets.of(result) if (one.contestant, one.other) == (label(FASTADAM, ALL, PLAIN), FASTADAM)
    )
    assert target.measured(result) == (ns, ns, ns, met)


@pytest.mark.parametrize(("ns", "met"), [(20.0, True), (19.0, False)])
def test_times_as_fast_compares_what_stepped_as_many_parameters(ns, met):
    mine, other = label(FASTADAM, CODED, PLAIN), label("torchao 8-bit", CODED, PLAIN)
    result = made_up("2^20", **{mine: 1.0, other: ns})
    result["cases"]["2^24"] = made_up("2^24", **{mine: 0.1})["cases"]["2^24"]
    (target,) = (one for one in targets.of(result) if one.other == other)
    assert target.measured(result) == (ns, ns, ns, met)
    verdict = "met" if met else "missed"
    assert f"{ns:.1f}, asked ≥ 20 times as fast: {verdict}" in "\n".join(targets.lines(result))


def test_who_was_not_timed_is_not_judged():
    result = made_up("2^24", **{label(FASTADAM, ALL, PLAIN): 1.0})
    assert {target.measured(result) for target in targets.of(result)} == {None}
    assert not list(targets.lines(result))
    rows = list(markdown.verdicts(result))[2:]
    assert len(rows) == 9
    assert all(row.endswith("|  | not measured |") for row in rows)


def test_another_method_is_not_judged():
    assert not targets.of(made_up("2^24", **{FASTADAM: 1.0}) | {"rule": "Lion"})


def test_the_tables_show_the_newest_result(written, monkeypatch):
    path, result = written
    monkeypatch.setattr(report, "RESULTS", path.parent)
    text = report.filled(report.FILES[0].read_text(encoding="utf-8"))
    shown = text.partition("<!-- narrow -->")[2].partition("<!-- /narrow -->")[0]
    rows = [line for line in shown.splitlines() if line.startswith("| 5000: p, g, m, v bfloat16 |")]
    of = result["cases"]["5000"]["contestants"][label(FASTADAM, ALL, PLAIN)]
    assert len(rows) == 1
    assert rows[0].split(" | ")[1] == "14"
    assert rows[0].split(" | ")[3].startswith(f"{number(of['seconds'] / 5000 * 1e9)} (")
    assert shown.count(" times as fast | ") + shown.count(" of its time | ") == len(targets.of(result)) == 9


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("float32", "float32"),
        ("float32:moments=bfloat16", "m, v bfloat16"),
        ("float32:moments=8bit", "m, v 8-bit"),
        ("bfloat16", "p, g bfloat16"),
        ("bfloat16:moments=8bit", "p, g bfloat16, m, v 8-bit"),
        ("bfloat16:moments=bfloat16", "p, g, m, v bfloat16"),
        ("bfloat16:moments=bfloat16:master=remainder", "p, g, m, v bfloat16, p's other 16 bits beside"),
    ],
)
def test_a_format_in_words(name, words):
    assert markdown.words(name) == words
    assert markdown.split(label("torch fused", name, "float64"), "float64") == ("torch fused", name)
    assert markdown.split("torchao 8-bit", PLAIN) == ("torchao 8-bit", PLAIN)


def test_what_is_wrong_is_not_timed(monkeypatch, capsys, in_process):
    step = Fastadam.step

    def off(self):
        step(self)
        if self.setting.format.name == MOMENTS:
            self.p[0] += np.float32(0.1)

    monkeypatch.setattr(Fastadam, "step", off)
    monkeypatch.setattr(suites, "NARROW", suites.NARROW[:3])
    monkeypatch.setattr(suites, "SLOW", ())
    assert run("--sizes", "100", "--rounds", "1") == 1
    assert capsys.readouterr().out.count(f"{FASTADAM} {MOMENTS} is wrong, so not timed: step 1") == 1


def test_ctrl_c_keeps_what_is_finished(monkeypatch, tmp_path, in_process, interrupted):
    monkeypatch.setattr(suites, "NARROW", suites.NARROW[:2])
    monkeypatch.setattr(suites, "SLOW", suites.SLOW[:1])
    monkeypatch.setattr(suites, "SLOW_SIZE", 64)
    monkeypatch.setattr(truth, "MOST", 100)
    assert run("--sizes", "100", "--rounds", "1", "--json", str(tmp_path / "x.json")) == 130
    result = json.loads((tmp_path / "x.json").read_text())
    assert (len(result["cases"]["100"]["contestants"]), result["partial"]) == (2, "interrupted")
