"""benchmarks/narrow.py: who is wrong is not timed, targets are judged by what is in the result, README shows it."""

import json

import numpy as np
import pytest

import fastadam as fa
from fastadam.benchmarks import narrow, report
from fastadam.benchmarks.ours import Fastadam


@pytest.fixture(autouse=True, scope="module")
def threads():
    """Contestants set the count of threads for their process, which is the tests' own here."""
    with fa.num_threads(fa.get_num_threads()):
        yield


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A small run, and its result."""
    path = tmp_path_factory.mktemp("narrow") / "narrow-x.json"
    assert narrow.main(["--size", "5000", "--rounds", "2", "--json", str(path)]) == 0
    return path, json.loads(path.read_text())


def test_ours_is_right_in_every_format_and_moves_what_it_says(written):
    _, result = written
    assert not result["wrong"]
    ours = {one["format"]: one["bytes"] for one in result["entries"] if one["name"] == narrow.OURS}
    coded = 2 * 5 * 1088 * 2 / 5000  # five blocks each of m and v, read and written
    assert ours == {
        narrow.PLAIN: 28, narrow.MOMENTS: 20, narrow.ALL: 14, narrow.REMAINDER: 18,
        narrow.CODED: 12 + coded, narrow.SHORT_CODED: 6 + coded,
    }  # fmt: skip
    for one in result["entries"]:
        low, middle, high = one["ns"]
        assert 0 < low <= middle <= high


def test_what_is_printed_is_what_is_written(written, capsys):
    _, result = written
    narrow.show(result)
    text = capsys.readouterr().out
    assert all(narrow.line(one) in text for one in result["entries"])
    assert text.count(" asked ") == len(narrow.TARGETS)


def made_up(*times):
    """A result in which contestants in formats took so many ns per parameter."""
    entries = [
        {"name": name, "format": format, "size": size, "ns": [ns] * 3, "bytes": 1, "gb_per_s": 1}
        for name, format, size, ns in times
    ]
    return {"entries": entries, "absent": [], "wrong": [], "size": 2**24}


@pytest.mark.parametrize(("ns", "met"), [(0.85, True), (0.86, False)])
def test_a_share_of_float32s_time(ns, met):
    result = made_up((narrow.OURS, narrow.PLAIN, 2**24, 1.0), (narrow.OURS, narrow.ALL, 2**24, ns))
    (target,) = (one for one in narrow.TARGETS if (one.format, one.other) == (narrow.ALL, narrow.OURS))
    assert target.measured(result) == (ns, met)


@pytest.mark.parametrize(("ns", "met"), [(20.0, True), (19.0, False)])
def test_times_as_fast_compares_what_stepped_as_many_parameters(ns, met):
    result = made_up(
        (narrow.OURS, narrow.CODED, 2**24, 0.1),
        (narrow.OURS, narrow.CODED, 2**20, 1.0),
        ("torchao 8-bit", narrow.CODED, 2**20, ns),
    )
    (target,) = (one for one in narrow.TARGETS if one.other == "torchao 8-bit")
    assert target.measured(result) == (ns, met)
    assert f"asked ≥ 20 times as fast: {ns:.2f}, {'met' if met else 'missed'}" in "\n".join(narrow.verdicts(result))


def test_who_was_not_timed_is_not_judged():
    result = made_up((narrow.OURS, narrow.ALL, 2**24, 1.0))
    assert {target.measured(result) for target in narrow.TARGETS} == {None}
    assert all(text.endswith("not measured") for text in narrow.verdicts(result))


def test_readme_shows_the_newest_result(written, monkeypatch):
    path, result = written
    monkeypatch.setattr(report, "RESULTS", path.parent)
    text = report.filled(report.README.read_text(encoding="utf-8"))
    shown = text.partition("<!-- narrow -->")[2].partition("<!-- /narrow -->")[0]
    rows = [line for line in shown.splitlines() if line.startswith("| p, g, m, v bfloat16 |")]
    (mine,) = (one for one in result["entries"] if (one["name"], one["format"]) == (narrow.OURS, narrow.ALL))
    assert len(rows) == 1
    assert rows[0].split(" | ")[1] == "14"
    assert rows[0].split(" | ")[3].startswith(f"{report.number(mine['ns'][1])} (")
    assert shown.count(" times as fast | ") + shown.count(" of its time | ") == len(narrow.TARGETS)


def test_what_is_wrong_is_not_timed(monkeypatch, capsys):
    step = Fastadam.step

    def off(self):
        step(self)
        if self.setting.format.name == narrow.MOMENTS:
            self.p[0] += np.float32(0.1)

    monkeypatch.setattr(Fastadam, "step", off)
    monkeypatch.setattr(narrow, "ENTRANTS", narrow.ENTRANTS[:3])
    monkeypatch.setattr(narrow, "SLOW", ())
    assert narrow.main(["--size", "100", "--rounds", "1"]) == 1
    text = capsys.readouterr().out
    assert text.count("WRONG, not timed: step 1") == 1
    assert f"{narrow.MOMENTS} against {narrow.OURS} float32: asked ≤ 0.85 of its time: not measured" in text


def test_ctrl_c_keeps_what_is_finished(monkeypatch, tmp_path):
    race, turns = narrow.race, []

    def interrupted(*args):
        turns.append(args)
        if len(turns) == 2:
            raise KeyboardInterrupt
        race(*args)

    monkeypatch.setattr(narrow, "race", interrupted)
    monkeypatch.setattr(narrow, "ENTRANTS", narrow.ENTRANTS[:2])
    assert narrow.main(["--size", "100", "--rounds", "1", "--json", str(tmp_path / "x.json")]) == 130
    result = json.loads((tmp_path / "x.json").read_text())
    assert (len(result["entries"]), result["partial"]) == (2, "interrupted")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--size", "0"], "argument --size: expected numbers from 1 to 2^34 such as 2^20,100000, got '0'"),
        (["--size", "2^34"], "argument --size: 2^34 needs about 2240.0 GiB of memory"),
        (["--rounds", "0"], "argument --rounds: expected an integer of at least 1, got '0'"),
    ],
)
def test_options_are_refused_with_both_sides(words, message, capsys):
    with pytest.raises(SystemExit) as caught:
        narrow.main(words)
    assert caught.value.code == 2
    assert message in capsys.readouterr().err
