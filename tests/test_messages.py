"""Every error that the library raises, as one text for review: tests/messages.txt.

`python tests/test_messages.py` writes it anew; a change of a message then shows in its diff. A message is what
stands in a raise statement, with the code of what is filled in between braces.
"""

import ast
import difflib
from pathlib import Path

ROOT = Path(__file__).parents[1]
APPROVED = Path(__file__).with_name("messages.txt")
LINKS = {"kernels", "benchmarks"}  # within fastadam: what has no users but the library and its developers
PLAIN = {"NotImplementedError", "AttributeError", "SystemExit", "ImportError"}  # said to programs, not to their users


def text_of(node):
    """A message's text: of a string, of an f-string, of strings that are added or chosen."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(v.value if isinstance(v, ast.Constant) else f"{{{ast.unparse(v.value)}}}" for v in node.values)
    if isinstance(node, ast.BinOp):
        return text_of(node.left) + text_of(node.right)
    if isinstance(node, ast.IfExp):
        return f"{text_of(node.body)} | {text_of(node.orelse)}"
    return f"{{{ast.unparse(node)}}}"


def raised(tree):
    """(exception, message) of each raise statement that has both; one that raises again what was caught has neither."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) and node.exc.args:
            yield ast.unparse(node.exc.func), text_of(node.exc.args[0])


def messages():
    """The lines of all messages: a heading for each file, then its messages in the order of the alphabet."""
    for path in sorted((ROOT / "fastadam").rglob("*.py")):
        name = path.relative_to(ROOT).as_posix()
        pairs = sorted(set(raised(ast.parse(path.read_text(encoding="utf-8")))))
        lines = [f"  {error}: {text!r}" for error, text in pairs if error not in PLAIN]
        if lines and name.split("/")[1] not in LINKS:
            yield from [name, *lines]


def test_messages_are_those_that_were_reviewed():
    approved, current = APPROVED.read_text(encoding="utf-8").splitlines(), list(messages())
    difference = "\n".join(difflib.unified_diff(approved, current, "reviewed", "raised", lineterm="", n=0))
    assert not difference, f"read the new messages as who made that mistake, then python {__file__}\n{difference}"


def test_messages_say_something():
    """Five words or more, or values that other code has put into words."""
    short = [line for line in messages() if line.startswith("  ") and len(line.split()) < 6 and "{" not in line]
    assert short == []


def test_every_kind_of_message_is_read():
    tree = ast.parse("raise A('x' + f'{y} z')\nraise B('a' if c else 'b')\nraise\nraise error\nraise C(text)")
    assert list(raised(tree)) == [("A", "x{y} z"), ("B", "a | b"), ("C", "{text}")]


if __name__ == "__main__":
    APPROVED.write_text("\n".join(messages()) + "\n", encoding="utf-8")
