"""Trains for ever and saves each second step, from where it was left; see test_kill.py.

Arguments: path, how, how often at most. Prints "R t hash" for what it has loaded, and "S t" when a save has returned.
"""

import hashlib
import sys

import numpy as np

import fastadam as fa
from fastadam.checkpoint import writing

N = 40_000
KEEP = {"two": 60}


def optimizer():
    params = {"w": [np.linspace(-1, 1, N, dtype=np.float32)], "b": np.ones(7, np.float32)}
    return fa.AdamW(params, lr=1e-2, moments="bfloat16", seed=5, backend="numpy")


def step(opt):
    rng = np.random.default_rng(opt.t)
    g = rng.standard_normal(N).astype(np.float32)
    opt.step({"w": [g], "b": g[:7].copy()})


def digest(opt):
    leaves = [opt.params["w"][0], opt.params["b"], *(x for own in opt.moments().values() for x in own.values())]
    return hashlib.sha256(b"".join(x.tobytes() for x in leaves)).hexdigest()[:16]


def say(*words):
    print(*words, flush=True)


def main(path, how):
    writing.CHUNK = 1 << 15  # so that each save is several writes, past the page cache
    opt, folder = optimizer(), None if how == "alone" else fa.checkpoint.Folder(path, keep=KEEP.get(how, 2))
    try:
        extra = folder.load(opt) if folder else fa.checkpoint.load(path, opt)
    except FileNotFoundError:
        extra = None
    assert extra is None or extra == {"t": opt.t}
    say("R", opt.t, digest(opt))
    before = None  # a save in the background
    while True:
        step(opt)
        if opt.t % 2 == 0:
            if folder is None:
                fa.checkpoint.save(path, opt, {"t": opt.t})
            elif how in ("background", "still"):
                if before is not None:
                    before[1].wait()
                    say("S", before[0])
                before = opt.t, folder.save(opt, {"t": opt.t}, background=True, copy=how != "still")
                if how == "still":
                    before[1].wait()
                continue
            else:
                folder.save(opt, {"t": opt.t})
            say("S", opt.t)


if __name__ == "__main__":
    main(*sys.argv[1:])
