"""The guide's blocks are a program that runs."""

import re
from pathlib import Path

import fastadam.checkpoint

GUIDE = Path(fastadam.checkpoint.__file__).parent / "README.md"


def test_the_guide_runs(tmp_path, fresh):
    blocks = re.findall(r"^```python\n(.*?)^```", GUIDE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    assert len(blocks) == 7
    assert fresh("".join(blocks), cwd=tmp_path).count("rounded") == 2  # m and v; the log's last resort is stderr


def test_the_guide_is_short():
    assert len(GUIDE.read_text(encoding="utf-8").splitlines()) < 200
