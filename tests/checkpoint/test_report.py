"""python -m fastadam checkpoint: what is there, and an exit status that says whether every byte is as written."""

import numpy as np

import fastadam as fa
from fastadam.tools import cli


def saved(path):
    opt = fa.AdamW({"w": np.ones((30, 4), np.float32)}, backend="numpy")
    folder = fa.checkpoint.Folder(path)
    for _ in range(2):
        opt.step({"w": np.ones((30, 4), np.float32)})
        folder.save(opt)
    return folder


def test_a_whole_folder(tmp_path, capsys):
    folder = saved(tmp_path)
    assert cli.main(["checkpoint", str(tmp_path)]) == 0
    first, second, *tensors = capsys.readouterr().out.splitlines()
    assert first.startswith("00000001-step-1  AdamW  step 1  3 tensors  5,536 bytes in 1 file")
    assert first.endswith("whole")
    assert second.startswith("00000002-step-2")
    assert tensors == [f"  {name}['w']  float32(30, 4)  480 bytes" for name in ("params", "m", "v")]
    assert cli.main(["checkpoint", folder.checkpoints()[0]]) == 0


def test_damage(tmp_path, capsys):
    folder = saved(tmp_path)
    with open(f"{folder.checkpoints()[1]}/rank-00000.safetensors", "r+b") as file:
        file.write(b"x")
    assert cli.main(["checkpoint", str(tmp_path)]) == 1
    first, second, *_ = capsys.readouterr().out.splitlines()
    assert "rank-00000.safetensors is damaged in its 5,536 bytes from 0 on" in first
    assert second.endswith("whole")


def test_nothing(tmp_path, capsys):
    for path in (tmp_path, tmp_path / "none"):
        assert cli.main(["checkpoint", str(path)]) == 1
    assert "holds no checkpoint" in capsys.readouterr().err
