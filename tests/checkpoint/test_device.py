"""Arrays on a device, of the stand-in for CuPy: saved through pinned memory, loaded by either side."""

import cuda_host
import numpy as np
import pytest
from cases import same_bits

import fastadam as fa

pytestmark = pytest.mark.skipif(cuda_host.COMPILER is None, reason="no g++: the .cu text cannot run on the host")


def tree(put=np.array):
    rng = np.random.default_rng(0)
    return {"w": put(rng.standard_normal((40, 30)).astype(np.float32).T.copy().T), "b": put(np.ones(5, np.float32))}


def steps(opt, first, last, put=np.array):
    for t in range(first, last):
        opt.step({"w": put(np.full((40, 30), t + 0.5, np.float32)), "b": put(np.full(5, t, np.float32))})


@pytest.mark.parametrize("background", [False, True], ids=["at once", "in the background"])
@pytest.mark.parametrize("moments", [None, "8bit"])
def test_a_device_and_the_host_have_the_same_checkpoints(moments, background, cupy, tmp_path):
    chosen = {"lr": 0.01, "moments": moments, "seed": 2, "ema_decay": 0.5}
    whole, there, back = (fa.AdamW(tree(), backend="numpy", **chosen) for _ in range(3))
    here, again = (fa.AdamW(tree(cupy.asarray), **chosen) for _ in range(2))
    assert here.backend == "cuda"
    steps(whole, 0, 6)
    steps(here, 0, 2, cupy.asarray)
    folder = fa.checkpoint.Folder(tmp_path)
    for source, target, first, put in (
        (here, there, 2, np.array),
        (there, again, 3, cupy.asarray),
        (again, back, 4, None),
    ):
        handle = folder.save(source, first, background=background)
        if background:
            handle.wait()
        assert folder.load(target) == first
        if put:
            steps(target, first, first + 1, put)
    steps(back, 4, 6)
    assert all(same_bits(back.params[key], whole.params[key]) for key in whole.params)
    one, other = back.state_dict()["leaves"], whole.state_dict()["leaves"]
    for path, leaf in other.items():
        assert all(same_bits(one[path][name], x) for name, x in leaf.items() if isinstance(x, np.ndarray))


def test_a_device_is_copied_from_by_the_thread_whose_stream_it_is(cupy, tmp_path):
    opt = fa.AdamW(tree(cupy.asarray))
    with pytest.raises(ValueError, match="copy is False, expected True for arrays on a device"):
        fa.checkpoint.Folder(tmp_path).save(opt, background=True, copy=False)
    assert not list(tmp_path.iterdir())


def test_copies_on_a_device_follow(cupy, tmp_path):
    def make():
        copies = {"w": cupy.zeros((5,), np.float16)}
        return fa.SGD({"w": cupy.asarray(np.linspace(0, 1, 5, dtype=np.float32))}, lr=0.5, copy_to=copies), copies

    (first, copies), (second, others) = make(), make()
    first.step({"w": cupy.asarray(np.ones(5, np.float32))})
    fa.checkpoint.save(tmp_path / "one", first)
    fa.checkpoint.load(tmp_path / "one", second)
    assert same_bits(others["w"].get(), copies["w"].get())
