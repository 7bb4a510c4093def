"""advise: its bytes are those of optimizers, its choice follows from them, its times from what was measured."""

import json

import ml_dtypes  # noqa: F401  # NumPy knows bfloat16 from then on
import numpy as np
import pytest

import fastadam as fa
from fastadam.tools import advise, cli

N = 1 << 12


@pytest.fixture
def quick(monkeypatch):
    """Small steps: what they take is not looked at."""
    monkeypatch.setattr(advise, "MEASURED", N)
    monkeypatch.setattr(advise, "ROUNDS", 1)


@pytest.mark.parametrize("way", advise.WAYS, ids=lambda way: way.name)
def test_bytes_are_an_optimizers(way):
    p = np.ones(N, way.params)
    opt = fa.AdamW(p, moments=way.moments, master=way.master)
    assert way.stored() * N == 2 * p.nbytes + opt.state_bytes
    assert way.moved() * N == opt.bytes_per_step


def test_ways_get_smaller():
    sizes = [way.stored() for way in advise.WAYS]
    assert sizes == sorted(sizes, reverse=True) == [16, 14, 12, 10.125, 10, 8.125, 8, 6.125]


@pytest.mark.parametrize(
    ("memory", "expected"),
    [
        (None, "float32 parameters"),
        ("16GB", "float32 parameters"),
        (15.9e9, "bfloat16 parameters, master='remainder'"),
        ("12 GB", "float32 parameters, moments='bfloat16'"),
        ("11 GiB", "float32 parameters, moments='8bit'"),
        ("6.125GB", "bfloat16 parameters, moments='8bit'"),
        ("6GB", None),
    ],
)
def test_the_first_that_fits_is_recommended(memory, expected):
    advice = fa.advise(1e9, memory, gpu="H100")
    assert advice["recommended"] == expected
    assert ("none fits" in advice["reason"]) == (expected is None)


@pytest.mark.parametrize(
    ("size", "words"), [(999, "999 B"), (1234, "1.23 KB"), (2e6, "2 MB"), (15.9e9, "15.9 GB"), (3e15, "3e+03 TB")]
)
def test_bytes_in_words(size, words):
    assert advise.in_words(size) == words
    assert advise.in_bytes(words) == pytest.approx(size, rel=0.005)


def test_times_of_a_gpu_are_a_model():
    advice = fa.advise(1e9, gpu="H100")
    assert "a model" in advice["basis"]
    assert advice["formats"][0]["seconds"] == pytest.approx(28e9 / 3350e9, rel=1e-12)


def test_times_of_this_machine_are_in_proportion(monkeypatch):
    monkeypatch.setattr(advise, "measured", lambda n: {way: n * 1e-9 for way in advise.WAYS[:1]})
    for params, seconds in ({"a": np.ones((10, 10)), "b": [fa.FlatBuffer(np.ones(900))]}, 1e-6), (1e9, 1):
        rows = fa.advise(params)["formats"]
        assert [row["seconds"] for row in rows] == [pytest.approx(seconds), *[None] * 7]


def test_text_and_json_say_the_same(quick, capsys):
    assert cli.main(["advise", "--params", "1e6", "--memory", "13MB"]) == 0
    text = capsys.readouterr().out
    assert cli.main(["advise", "--params", "1e6", "--memory", "13MB", "--json"]) == 0
    advice = json.loads(capsys.readouterr().out)
    assert advice["recommended"] == "float32 parameters, moments='bfloat16'"
    assert f"take: {advice['recommended']}\nbecause {advice['reason']}\n" in text
    assert all(row["format"] in text and row["seconds"] > 0 for row in advice["formats"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0,), "params is 0, expected at least 1 parameter"),
        (([1.5],), "params holds float, expected arrays, or the number of parameters"),
        ((1, "24 apples"), "memory is '24 apples', expected a size such as '24GB' or '16GiB', or bytes as a number"),
        ((1, "24"), "memory is '24', expected a size such as '24GB'"),  # bytes it would be, which nobody means
        ((1, -1), "memory is -1, expected"),
        ((1, None, "TPU"), "gpu is 'TPU', expected one of A100, H100, H200, or None for this machine"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises((TypeError, ValueError), match=message.replace("(", r"\(")):
        fa.advise(*arguments)


def test_the_command_names_them_too(capsys):
    with pytest.raises(SystemExit) as end:
        cli.main(["advise", "--params", "1", "--memory", "x"])
    assert end.value.code == 2
    assert "memory is 'x', expected" in capsys.readouterr().err
    with pytest.raises(SystemExit) as end:
        cli.main(["advise", "--params", "1.3B"])
    assert end.value.code == 2
    assert "argument --params: expected a number such as 1.3e9, got '1.3B'" in capsys.readouterr().err


@pytest.mark.parametrize(("seconds", "ms"), [(1.9034, "1,903"), (0.0999, "99.9"), (2.5e-6, "0.0025")])
def test_milliseconds_are_written_out(seconds, ms):
    assert advise.milliseconds(seconds) == ms
