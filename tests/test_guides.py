"""Every Python block of every README runs, from a file's first to its last, or stands in NEEDS with what it needs.

A block needs a module, or a GPU, where the line above its fence is the comment `<!-- needs: NAME -->`.
"""

import importlib.util
import re
from pathlib import Path

import pytest
from sybil import Sybil
from sybil.parsers.markdown import PythonCodeBlockParser

import fastadam as fa
from fastadam.tools.cli import optimizers

ROOT = Path(__file__).parents[1]
WINGS = "checkpoint", "distributed", "jax", "keras", "scipy", "sklearn", "state", "torch"
FOLDERS = ".", "benchmarks", "fastadam", *(f"fastadam/{wing}" for wing in WINGS), "kernels", "tests"
GUIDES = [str(Path(folder, "README.md")) for folder in FOLDERS]
NEEDS = {  # the blocks that do not run everywhere, in their order
    "README.md": ["torch"],
    "fastadam/README.md": ["gpu"],
    "fastadam/jax/README.md": ["jax"] * 6,
    "fastadam/keras/README.md": ["keras"] * 3,
    "fastadam/scipy/README.md": ["autograd", "pyro", "numpyro", "flax", "equinox"],
    "fastadam/state/README.md": ["torch"],
    "fastadam/torch/README.md": [*["torch"] * 6, "transformers", "torch"],
}
MARK = re.compile(r"<!-- needs: (\w+) -->\n\Z")


def blocks(guide):
    """The examples of a guide, in one namespace, each with what it needs or None."""
    document = Sybil([PythonCodeBlockParser()]).parse(ROOT / guide)
    for example in document.examples():
        mark = MARK.search(document.text[: example.region.start])
        yield example, mark and mark[1]


def absent(need):
    """Whether a module is not installed, or whether there is no GPU to run on."""
    return fa.backends()["cuda"] != "ready" if need == "gpu" else not importlib.util.find_spec(need)


def test_every_readme_is_a_guide():
    tracked = {str(path.relative_to(ROOT)) for folder in FOLDERS for path in (ROOT / folder).glob("README.md")}
    beside = {str(path.relative_to(ROOT)) for part in ("benchmarks", "fastadam", "kernels", "tests")
              for path in (ROOT / part).rglob("README.md")}  # fmt: skip
    linked = {name for name in beside if name.startswith(("fastadam/kernels", "fastadam/benchmarks"))}
    assert tracked == set(GUIDES) == {"README.md", *beside} - linked


@pytest.mark.parametrize("guide", GUIDES)
@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")
@pytest.mark.filterwarnings("ignore::DeprecationWarning:keras")
@pytest.mark.filterwarnings("ignore::FutureWarning:torch")
def test_its_blocks_run(guide, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    left = []
    for example, need in blocks(guide):
        if need and absent(need):
            compile(example.parsed, guide, "exec")
            left.append(need)
        else:
            example.evaluate()
    if left:
        pytest.skip(f"{guide}: all blocks ran but {len(left)}, which need {', '.join(dict.fromkeys(left))}")


def test_the_blocks_that_need_more_are_listed():
    marked = {guide: [need for _, need in blocks(guide) if need] for guide in GUIDES}
    assert {guide: needs for guide, needs in marked.items() if needs} == NEEDS


def test_every_method_stands_in_the_table_that_helps_to_choose():
    text = (ROOT / "fastadam/README.md").read_text(encoding="utf-8")
    table = text[text.index("## Choose a method") : text.index("## Give parts")]
    assert [name for name in optimizers() if not re.search(rf"`{name}\b", table)] == []


@pytest.mark.parametrize("guide", GUIDES)
def test_it_is_short(guide):
    assert len((ROOT / guide).read_text(encoding="utf-8").splitlines()) <= (150 if guide == "README.md" else 199)


@pytest.mark.parametrize("guide", [*GUIDES, "CONTRIBUTING.md"])
def test_its_links_lead_somewhere(guide):
    """To files, and to the headings that are named."""
    text = (ROOT / guide).read_text(encoding="utf-8")
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        path, _, heading = link.partition("#")
        target = (ROOT / guide).parent / path if path else ROOT / guide
        assert target.exists(), link
        if heading:
            titles = re.findall(r"^#+ (.*)$", target.read_text(encoding="utf-8"), re.MULTILINE)
            slugs = {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}
            assert heading in slugs, link
