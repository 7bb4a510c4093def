"""What is not as it was written is noticed, before anything changes, and the checkpoint before it is loaded."""

import errno
import json
import os
import random
import shutil
import sys
import zlib

import numpy as np
import pytest
from checkpoint.team import together

import fastadam as fa
from fastadam.checkpoint import checksum, manifest, saving

N = 6000
RANKS = 2


def shard(rank):
    """The optimizer of one of two ranks over halves of a vector."""
    p = np.arange(N, dtype=np.float32)[rank * N // 2 : (rank + 1) * N // 2].copy()
    return fa.AdamW({"w": p}, lr=0.1, backend="numpy", index_offset=rank * N // 2)


def whole():
    return fa.AdamW({"w": np.zeros(N, np.float32)}, lr=0.1, backend="numpy")


def save(path, opts):
    def work(rank, gather):
        parts = {"['w']": fa.checkpoint.Shard((N,), rank * N // 2)}
        return fa.checkpoint.Folder(path, keep=9).save(
            opts[rank], {"t": opts[rank].t}, shards=parts, rank=rank, size=RANKS, gather=gather
        )

    assert together(RANKS, work) == [None] * RANKS


def bits(opt):
    state = opt.state_dict()
    own = state["leaves"]["params['w']"]
    return state["t"], own["count"], opt.params["w"].tobytes(), own["m"].tobytes(), own["v"].tobytes()


@pytest.fixture(scope="module", params=["crc32", "crc32c"])
def run(request, tmp_path_factory):
    """A folder of two checkpoints of two files each, and another run's."""
    if request.param == "crc32c":
        pytest.importorskip("crc32c", reason="crc32c is not installed")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(saving, "best", lambda: request.param)
        root, opts = tmp_path_factory.mktemp(request.param), [shard(rank) for rank in range(RANKS)]
        for folder in ("run", "run", "other"):
            for opt in opts:
                opt.step({"w": np.full(N // 2, 0.25, np.float32)})
            save(str(root / folder), opts)
    return root


def flip(rng, data):
    at = rng.randrange(len(data))
    return data[:at] + bytes([data[at] ^ 1 << rng.randrange(8)]) + data[at + 1 :]


def cut(rng, data):
    return data[: rng.randrange(len(data))]


def lengthen(rng, data):
    return data + rng.randbytes(rng.randrange(1, 100))


def swap_pieces(rng, data):
    n = rng.randrange(16, 400)
    a, b = sorted(rng.sample(range(0, len(data) - n, n), 2))
    other = data[:a] + data[b : b + n] + data[a + n : b] + data[a : a + n] + data[b + n :]
    return other if other != data else flip(rng, data)


def zero(rng, data):
    at = rng.randrange(len(data) - 512)
    other = data[:at] + bytes(512) + data[at + 512 :]
    return other if other != data else flip(rng, data)


def damage(rng, folder, other):
    """Do something to one file of a checkpoint; what was done."""
    name = rng.choice(sorted(os.listdir(folder)))
    files = [x for x in sorted(os.listdir(folder)) if x != manifest.NAME]
    kind = rng.choice([flip, flip, cut, lengthen, swap_pieces, zero, "swap files", "another's", "gone"])
    path = folder / name
    if kind == "swap files":
        a, b = folder / files[0], folder / files[1]
        x, y = a.read_bytes(), b.read_bytes()
        a.write_bytes(y)
        b.write_bytes(x)
    elif kind == "another's":
        shutil.copy(other / name, path)
    elif kind == "gone":
        path.unlink()
    else:
        path.write_bytes(kind(rng, path.read_bytes()))
    return f"{kind} {name}"


def test_every_damage_is_noticed(run, tmp_path, request, caplog):
    rng, times = random.Random(7), 200 if request.config.getoption("--all") else 30
    names = sorted(os.listdir(run / "run"))
    other = run / "other" / os.listdir(run / "other")[0]
    expected = whole()
    assert fa.checkpoint.load(run / "run" / names[0], expected) == {"t": 1}
    for k in range(times):
        folder = tmp_path / str(k)
        shutil.copytree(run / "run", folder)
        done = damage(rng, folder / names[1], other)
        opt = whole()
        before = bits(opt)
        with pytest.raises((fa.checkpoint.Damaged, FileNotFoundError)):
            fa.checkpoint.load(folder / names[1], opt)
        assert bits(opt) == before, done
        caplog.clear()
        assert fa.checkpoint.Folder(folder).load(opt) == {"t": 1}, done
        assert bits(opt) == bits(expected), done
        assert names[1] in caplog.text
        assert "passed over" in caplog.text
        shutil.rmtree(folder)


def test_without_a_whole_one_nothing_is_loaded(run, tmp_path):
    for name in os.listdir(run / "run"):
        shutil.copytree(run / "run" / name, tmp_path / name)
        (tmp_path / name / "rank-00001.safetensors").unlink()
    with pytest.raises(fa.checkpoint.Damaged, match=r"rank-00001\.safetensors is missing.*missing"):
        fa.checkpoint.Folder(tmp_path).load(whole())


def test_read_checks_what_it_touches(run, tmp_path):
    name = max(os.listdir(run / "run"))
    opt = whole()
    fa.checkpoint.load(run / "run" / name, opt)
    assert fa.checkpoint.read(run / "run", "params['w']").tobytes() == opt.params["w"].tobytes()
    shutil.copytree(run / "run" / name, tmp_path / name)
    second = tmp_path / name / "rank-00001.safetensors"
    second.write_bytes(flip(random.Random(3), second.read_bytes()))
    first_half = fa.checkpoint.read(tmp_path / name, "params['w']", rows=slice(0, N // 2))
    assert first_half.tobytes() == opt.params["w"][: N // 2].tobytes()
    with pytest.raises(fa.checkpoint.Damaged, match="rank-00001"):
        fa.checkpoint.read(tmp_path / name, "params['w']", rows=slice(N // 2 - 1, N // 2 + 1))


# ---- hostile files: refused in bounded time and memory


def forged(change):
    """A manifest's text with another content and the right checksum."""

    def forge(text):
        body = json.loads(text)
        del body["checksum"]
        change(body)
        text = json.dumps(body).encode()[:-1]
        return text + manifest.END + f'{zlib.crc32(text):08x}"}}\n'.encode()

    return forge


def put(*path_and_value):
    *path, last, value = path_and_value

    def change(body):
        for key in path:
            body = body[key]
        body[last] = value

    return forged(change)


W = "tensors", "params['w']"
HOSTILE = {
    "path above": put("files", 0, "name", "../../x"),
    "absolute path": put("files", 0, "name", "/etc/passwd"),
    "path by another name": put("files", 0, "name", "rank-00000.safetensors/../../x"),
    "no name": put("files", 0, "name", 3),
    "same file twice": put("files", 1, "name", "rank-00000.safetensors"),
    "size below 0": put("files", 0, "bytes", -1),
    "size beyond the file": put("files", 0, "bytes", 2**61),
    "size no number": put("files", 0, "bytes", "1"),
    "size True": put("files", 0, "bytes", True),
    "no checksums": put("files", 0, "checksums", []),
    "checksum text": put("files", 0, "checksums", ["0"]),
    "span 0": put("span", 0),
    "span below 0": put("span", -5),
    "offset beyond": put(*W, "pieces", 0, 3, 2**50),
    "offset below 0": put(*W, "pieces", 0, 3, -4),
    "file beyond": put(*W, "pieces", 0, 0, 7),
    "elements left out": put(*W, "pieces", 0, 2, 5),
    "huge shape": put(*W, "shape", [2**61, 2**61]),
    "shape of text": put(*W, "shape", ["6000"]),
    "shape of floats": put(*W, "shape", [6000.0]),
    "many dimensions": put(*W, "shape", [1] * 100_000),
    "no dtype": put(*W, "dtype", "object"),
    "dtype a list": put(*W, "dtype", ["float32"]),
    "pieces a number": put(*W, "pieces", 3),
    "no pieces": put(*W, "pieces", []),
    "tensor a list": put(*W, []),
    "tensors a list": put("tensors", []),
    "files a dict": put("files", {}),
    "coded": put(*W, "coded", {"paths": ["['w']"] * 2}),
    "leaves of numbers": put("leaves", "['w']", 5),
    "another algorithm": put("algorithm", "none"),
    "optimizer a list": put("optimizer", []),
    "groups a number": put("optimizer", "groups", 7),
    "count huge": put("leaves", "['w']", "count", 10**30),
    "no count": put("leaves", "['w']", {}),
    "t a text": put("optimizer", "t", "2"),
    "deep": lambda text: b"[" * 1_000_000 + manifest.END,
    "NaN": put("extra", float("nan")),
    "no manifest": lambda text: b"",
    "zeros": lambda text: bytes(10_000),
    "binary": lambda text: os.urandom(10_000),
    "large": lambda text: b" " * (manifest.LARGEST + 1),
    "many tensors": forged(lambda body: body.update(tensors={str(k): None for k in range(300_000)})),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_manifests_are_refused(case, run, tmp_path):
    name = max(os.listdir(run / "run"))
    shutil.copytree(run / "run" / name, tmp_path / name)
    path = tmp_path / name / manifest.NAME
    path.write_bytes(HOSTILE[case](path.read_bytes()))
    opt = whole()
    before = bits(opt)
    for strict in (True,) if case in ("groups a number", "no count") else (True, False):  # then the parameters fit
        with pytest.raises((ValueError, TypeError)):
            fa.checkpoint.load(tmp_path / name, opt, strict=strict)
        assert bits(opt) == before


def test_deep_json_is_refused(run, tmp_path):
    name = max(os.listdir(run / "run"))
    shutil.copytree(run / "run" / name, tmp_path / name)
    path = tmp_path / name / manifest.NAME
    text = path.read_bytes().rpartition(manifest.END)[0] + b', "deep": ' + b"[" * 500_000 + b"]" * 500_000
    path.write_bytes(text + manifest.END + f'{zlib.crc32(text):08x}"}}\n'.encode())
    with pytest.raises(fa.checkpoint.Damaged, match="recursion"):
        fa.checkpoint.load(tmp_path / name, whole())


def test_links_and_pipes_are_not_followed(run, tmp_path):
    name = max(os.listdir(run / "run"))
    for kind in ("link", "pipe", "folder"):
        folder = tmp_path / kind
        shutil.copytree(run / "run" / name, folder)
        file = folder / "rank-00000.safetensors"
        file.rename(tmp_path / f"{kind} kept")
        if kind == "link":
            file.symlink_to(tmp_path / f"{kind} kept")
        elif kind == "pipe":
            os.mkfifo(file)
        else:
            file.mkdir()
        with pytest.raises((OSError, fa.checkpoint.Damaged)):
            fa.checkpoint.load(folder, whole())


@pytest.mark.parametrize(("key", "value"), [("version", 2), ("byteorder", "big")])
def test_another_version_is_no_damage(key, value, run, tmp_path):
    """It is an error, not a reason to go on from an older checkpoint."""
    name = max(os.listdir(run / "run"))
    shutil.copytree(run / "run", tmp_path / "run")
    path = tmp_path / "run" / name / manifest.NAME
    path.write_bytes(put(key, value)(path.read_bytes()))
    with pytest.raises(ValueError, match=f"{key} is {value!r}, expected") as caught:
        fa.checkpoint.Folder(tmp_path / "run").load(whole())
    assert not isinstance(caught.value, fa.checkpoint.Damaged)


def test_a_checksum_that_is_not_installed_says_what_to_install(run, tmp_path, monkeypatch):
    name = max(os.listdir(run / "run"))
    content = json.loads((run / "run" / name / manifest.NAME).read_bytes())
    if content["algorithm"] == "crc32c":
        monkeypatch.setitem(sys.modules, "crc32c", None)
        monkeypatch.setitem(sys.modules, "google_crc32c", None)
        checksum.update.cache_clear()
        with pytest.raises(ImportError, match="pip install"):
            fa.checkpoint.load(run / "run" / name, whole())
        checksum.update.cache_clear()


@pytest.mark.parametrize("library", ["crc32c", "google_crc32c"])
def test_the_checksums_are_crc32c(library, monkeypatch):
    pytest.importorskip(library, reason=f"{library} is not installed")
    if library == "google_crc32c":
        monkeypatch.setitem(sys.modules, "crc32c", None)
    checksum.update.cache_clear()
    update = checksum.update("crc32c")
    checksum.update.cache_clear()
    for data in (b"123456789", np.frombuffer(b"123456789", np.uint8).data):
        assert update(data, 0) == 0xE3069283  # the check value of the polynomial of RFC 3720
        assert update(data[5:], update(data[:5], 0)) == 0xE3069283


def test_a_disk_that_cannot_be_read(run, monkeypatch, caplog):
    """EIO: that checkpoint is passed over, or refused where it is the one asked for, before anything changes."""
    names, opt, real = sorted(os.listdir(run / "run")), whole(), os.preadv
    before, descriptor = bits(opt), "/proc/self/fd/{}"

    def preadv(fd, rooms, at):
        path = os.readlink(descriptor.format(fd))
        if names[1] in path and path.endswith("rank-00001.safetensors"):
            raise OSError(errno.EIO, os.strerror(errno.EIO), path)
        return real(fd, rooms, at)

    monkeypatch.setattr(os, "preadv", preadv)
    with pytest.raises(OSError, match="Input/output error"):
        fa.checkpoint.load(run / "run" / names[1], opt)
    assert bits(opt) == before
    assert fa.checkpoint.Folder(run / "run").load(opt) == {"t": 1}
    assert "Input/output error" in caplog.text


def test_a_process_without_descriptors_does_not_blame_the_checkpoint(run, monkeypatch):
    """Nor does it go on from an older one."""
    newest, opt, real = max(os.listdir(run / "run")), whole(), os.open
    before = bits(opt)

    def full(path, *rest, **named):
        if newest in str(path):
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE), path)
        return real(path, *rest, **named)

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", full)
        with pytest.raises(OSError, match="Too many open files"):
            fa.checkpoint.Folder(run / "run").load(opt)
    assert bits(opt) == before
