"""What the house promises of the library's own text: read from it, as syntax, not run."""

import ast
import copy
import pickle
import re
import tomllib
from functools import cache
from pathlib import Path

import pytest

from fastadam import kernels, methods
from fastadam.kernels.formats import BFLOAT16, CODES, FORMATS, REMAINDER, RESTING, format_of

ROOT = Path(__file__).parents[1]
LIBRARY = sorted(
    path
    for folder in ("fastadam", "kernels")
    for path in (ROOT / folder).rglob("*.py")
    if not {"benchmarks", "kernels"} & set(path.relative_to(ROOT / folder).parts[:1])  # links
)
EVERYTHING = sorted([*LIBRARY, *(ROOT / "benchmarks").rglob("*.py")])


@cache
def tree(path):
    return ast.parse(path.read_text())


@cache
def nodes_of(text):
    """Every node of a module's text, which is walked once for all questions."""
    return tuple(ast.walk(text))


def where(path, node):
    return f"{path.relative_to(ROOT)}:{node.lineno}: {ast.unparse(node)}"


# ---- formats

NAMES = {*FORMATS, *RESTING, "complex64", "complex128"} - {"remainder"}  # the name of what rests beside p, too
KIND = re.compile(r"b?float\d+|u?int(8|16)|complex\d+")  # as attributes of np, torch, types
SIZE = "itemsize", "element_size", "bitwidth"


def is_kind(node):
    """Whether an expression is a dtype or the name of a format: np.uint8, torch.bfloat16, "8bit", np.dtype("f8")."""
    if isinstance(node, ast.Call) and ast.unparse(node.func) == "np.dtype":
        return is_kind(node.args[0])
    if isinstance(node, ast.Tuple | ast.List | ast.Set):
        return any(map(is_kind, node.elts))
    if isinstance(node, ast.Attribute):
        return bool(KIND.fullmatch(node.attr)) and ast.unparse(node.value) in ("np", "numpy", "torch", "types")
    return isinstance(node, ast.Constant) and node.value in NAMES


def is_size(node):
    """Whether an expression asks how wide a dtype is."""
    node = node.func if isinstance(node, ast.Call) else node
    return isinstance(node, ast.Attribute) and node.attr in SIZE


def is_text(node):
    """Whether an expression is a text, or begins with one."""
    return isinstance(getattr(node, "value", None), str) or (isinstance(node, ast.Tuple) and is_text(node.elts[0]))


def sniffing(text):
    """Where a text compares dtypes, names of formats or sizes with one it names: to find out a format."""
    for node in nodes_of(text):
        if isinstance(node, ast.Compare):
            sides = [node.left, *node.comparators]
            option = any(ast.unparse(side).rpartition(".")[2] == "master" for side in sides)  # has values of such names
            if any(map(is_size, sides)) or (any(map(is_kind, sides)) and not option):
                yield node


ALLOWED = {  # comparisons that ask for something else
    "torch.get_default_dtype() == torch.float64",  # what torch counts steps in
    "x.itemsize == 8",  # the words of a native call
    "real.dtype is torch.bfloat16",  # a tensor that has no .numpy()
}


def test_nobody_finds_out_a_format_but_the_registry():
    """`format is BFLOAT16`, `format.block`, `format.draws` are asked instead."""
    found = [(path, node) for path in LIBRARY for node in sniffing(tree(path))]
    assert [where(path, node) for path, node in found if ast.unparse(node) not in ALLOWED] == []
    assert {ast.unparse(node) for _, node in found} == ALLOWED


def test_benchmarks_ask_the_registry_too():
    """Their labels of layouts, such as "float32:moments=8bit", are texts of their own."""
    pairs = [(path, node) for path in EVERYTHING if path not in LIBRARY for node in sniffing(tree(path))]
    by_dtype = [where(path, node) for path, node in pairs if not any(map(is_text, [node.left, *node.comparators]))]
    assert [text for text in by_dtype if not text.endswith("tensor.element_size() >= 4")] == []  # what NumPy knows
    assert is_text(ast.parse("('float32', x.name)").body[0].value)
    assert not is_text(ast.parse("np.float32").body[0].value)


TABLES = {  # displays of several kinds, each the only one of its processor or for something else
    "kernels/formats.py": 1,  # the two dtypes of the arithmetic
    "fastadam/torch/formats.py": 2,  # torch's dtypes of formats, and of what is two reals
    "fastadam/checkpoint/tensors.py": 1,  # the names that safetensors gives dtypes
    "fastadam/tools/cover.py": 2,  # what copies are verified in, and parameters beside new moments
}


def tables(text):
    """The displays with two or more kinds, but for arguments of calls."""
    for node in nodes_of(text):
        if isinstance(node, ast.Dict):
            items = [*(key for key in node.keys if key is not None), *node.values]
        elif isinstance(node, ast.Tuple | ast.List | ast.Set):
            items = node.elts
        else:
            continue
        if len({ast.unparse(item) for item in items if is_kind(item) and not isinstance(item, ast.Tuple)}) > 1:
            yield node


def test_each_processor_has_one_table_of_formats():
    counts = {str(path.relative_to(ROOT)): [where(path, node) for node in tables(tree(path))] for path in LIBRARY}
    assert {file: len(found) for file, found in counts.items() if found} == TABLES, list(filter(None, counts.values()))


@pytest.mark.parametrize(
    "text",
    [
        "x.dtype == np.uint8", "dtype.itemsize < 4", "dtype.name == 'bfloat16'", "moments in ('8bit', 'bfloat16')",
        "kind is torch.uint8", "not x.itemsize == 1", "dtype != types.float32", "name in [np.dtype(np.float16)]",
        "x.element_size() > 2",
    ],
)  # fmt: skip
def test_the_search_finds(text):
    assert len(list(sniffing(ast.parse(text)))) == 1


@pytest.mark.parametrize(
    "text",
    ["g.dtype != p.dtype", "format is BFLOAT16", "master == 'float32'", "x.dtype.name not in FLOATS", "2 * x.itemsize"],
)
def test_the_search_leaves(text):
    assert list(sniffing(ast.parse(text))) == []


def test_every_processor_has_a_text_of_every_format():
    from fastadam.kernels import cuda
    from fastadam.kernels.cpu.formats import TEXTS

    assert set(TEXTS) == set(FORMATS.values())
    assert set(cuda.FORMATS) == set(FORMATS.values()) - {REMAINDER}  # which CUDA knows together with its p


def test_an_arrays_dtype_tells_its_format():
    assert {name: format_of(format.dtype) for name, format in FORMATS.items()} == FORMATS
    assert len(RESTING) == len(FORMATS)
    assert (BFLOAT16.bytes_of(3), BFLOAT16.length(3)) == (6, 3)
    assert (CODES.bytes_of(1), CODES.bytes_of(1024), CODES.bytes_of(1025)) == (1088, 1088, 2176)  # 64 share a float32
    assert CODES.length(1025) * CODES.dtype.itemsize == 2176


def test_copies_of_a_format_are_itself():
    for format in FORMATS.values():
        assert copy.deepcopy(format) is format
        assert pickle.loads(pickle.dumps(format)) is format


# ---- streams

STREAMS = {
    "streams",
    "columns",
    "slots",
    "own",
    "at",
    "base",
    "bases",
    "pieces",
    "values",
    "addresses",
    "labels",
    "names",
    "kinds",
    "formats",
    "types",
    "tag",
    "found",
    "resting",
}  # fmt: skip  what a row of a leaf's streams has been called, with and without an underscore


def is_negative(index):
    """Whether an index, or an end of a slice, is a number below zero."""
    ends = (index.lower, index.upper) if isinstance(index, ast.Slice) else (index,)
    return any(isinstance(end, ast.UnaryOp) and isinstance(end.op, ast.USub) for end in ends)


def from_the_end(text):
    """Where a text counts a leaf's streams from the end, such as own[-3] or at[2:-3]."""
    for node in nodes_of(text):
        if isinstance(node, ast.Subscript) and is_negative(node.slice):
            names = {getattr(part, "id", getattr(part, "attr", "")).strip("_") for part in ast.walk(node.value)}
            if names & STREAMS:
                yield node


def test_a_stream_is_no_position():
    """Their order is said once, in kernels/streams.py; everybody else says which stream."""
    assert [where(path, node) for path in LIBRARY for node in from_the_end(tree(path))] == []


@pytest.mark.parametrize("text", ["own[-3]", "at[2:-3]", "self._streams[leaf][-1]", "[at[0], *values[2:-3]]"])
def test_the_search_finds_positions(text):
    assert len(list(from_the_end(ast.parse(text)))) == 1


@pytest.mark.parametrize("text", ["streams.ema", "rows[now, 3]", "counts[-1]", "measured[:, -1]", "at[2:k]"])
def test_the_search_leaves_names(text):
    assert list(from_the_end(ast.parse(text))) == []


def test_columns_follow_from_names():
    from fastadam.kernels import ALL
    from fastadam.kernels.streams import Columns
    from fastadam.plans.streams import Streams, labels

    names = labels(ALL["adam"], "['w']", p="params", g="grads")
    assert list(names) == [
        f"{x}['w']" for x in ["params", "grads", "m", "v", "vmax", "ema", "copy_to", "remainder", "master"]
    ]
    assert names.columns.row == tuple(
        f"{x}['w']" for x in ["master", "grads", "m", "v", "vmax", "ema", "copy_to", "remainder", "params"]
    )
    assert Columns.of(names.columns.row) == names.columns
    plain = Streams("p", slots=["m", None], copy="short")
    assert plain.columns == Columns("p", None, ("m", None), None, "short", None)
    assert plain.map(str.upper) == Streams("P", slots=["M", None], copy="SHORT")
    assert plain.map(lambda x, y: x + y, Streams("1", "2", "34", "5", "6", "7", "8")).columns.row == (
        "p1", None, "m3", None, None, "short6", None, None
    )  # fmt: skip
    assert plain.kept == ("m", None, None, None, None)


# ---- state


def peeking(text):
    """Where a text reads a private attribute of an optimizer that it was given."""
    for node in nodes_of(text):
        if isinstance(node, ast.Attribute) and node.attr.startswith("_") and not node.attr.startswith("__"):
            owner = getattr(node.value, "id", getattr(node.value, "attr", "")).strip("_")
            if owner in ("opt", "optimizer"):
                yield node


def test_an_optimizers_own_is_its_own():
    """No function outside an optimizer, of arrays or of tensors, reads what it keeps to itself."""
    assert [where(path, node) for path in EVERYTHING for node in peeking(tree(path))] == []
    assert len(list(peeking(ast.parse("def convert(opt): return opt._slots, self._opt._table, opt.t")))) == 2


OWNERS = {"self", "cls", "mcs"}
FOREIGN = {"_replace", "_fields", "_make"}  # of named tuples, public in spite of their names
OF_OTHERS = {  # private names of other projects
    "_dynamo", "_foreach_lerp", "_nnz", "_global_optimizer_pre_hooks", "_global_optimizer_post_hooks",
    "_profiler_enabled", "_disable_dynamo", "_aoti", "_comm", "_defn", "_exit", "_lock", "_rebuild", "_reduce",
    "_threading_layer",
}  # fmt: skip


def is_private(name):
    return isinstance(name, str) and re.fullmatch(r"_[a-z]\w*", name) is not None and name not in FOREIGN | OF_OTHERS


def is_owner(node):
    """Whether an expression is the object whose method this is, or its super()."""
    return ast.unparse(node) == "super()" or (isinstance(node, ast.Name) and node.id in OWNERS)


def private(node):
    """(whose, name) of a private attribute that an expression reads or writes: by a dot, by vars() or __dict__, by
    getattr or setattr; None of any other expression."""
    if isinstance(node, ast.Attribute):
        return node.value, node.attr
    if isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Constant):
        home, name = node.value, node.slice.value
    elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.args:
        home, name = node.func.value, getattr(node.args[0], "value", None)  # vars(x).get("_y")
    elif isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("getattr", "setattr", "hasattr", "delattr"):
        return node.args[0], getattr(node.args[1], "value", None)
    else:
        return None
    if isinstance(home, ast.Call) and getattr(home.func, "id", "") == "vars" and home.args:
        return home.args[0], name
    return (home.value, name) if isinstance(home, ast.Attribute) and home.attr == "__dict__" else None


def prying(text):
    """Where a text reads or writes a private attribute of an object of another module."""
    nodes = nodes_of(text)
    kept_here = {node.attr for node in nodes if isinstance(node, ast.Attribute) and is_owner(node.value)}
    kept_here |= {node.name for node in nodes if isinstance(node, ast.FunctionDef)}
    for node in nodes:
        whose, name = private(node) or (None, None)
        if is_private(name) and name not in kept_here and not is_owner(whose):
            yield node


@pytest.mark.parametrize(
    "text",
    [
        "group._rule", "opt.groups[0]._rule.lr", "self._group._leaves", "vars(opt)['_chores']", "x.__dict__['_y'] = 1",
        "vars(opt).get('_chores')", "getattr(opt, '_chores', None)", "a()._step()", "self.state._groups[0]",
    ],
)  # fmt: skip
def test_the_search_finds_what_is_private(text):
    assert len(list(prying(ast.parse(text)))) == 1


@pytest.mark.parametrize(
    "text",
    [
        "self._rule", "super()._step()", "coefficients._replace(lr=1)", "self.__dict__['_loaded']", "group.rule",
        "def copy(self):\n    other._memory = self._memory", "groups['_x']",
    ],
)  # fmt: skip
def test_the_search_leaves_what_is_ones_own(text):
    assert list(prying(ast.parse(text))) == []


def test_what_is_private_to_an_object_stays_in_its_module():
    assert [where(path, node) for path in EVERYTHING for node in prying(tree(path))] == []


# ---- names

PRONOUNS = {"own", "found", "here", "there", "made", "known", "ours", "theirs", "mine", "OURS", "THEIRS", "MINE"}
ALONE = {"whole", "both", "some"}  # which say something of a noun, as in check_whole, and nothing by themselves
OTHERS = {"found_inf", "ours_cuda"}  # a GradScaler's, a file's
PUBLIC = {"fastadam/checkpoint/contents.py": {"whole"}}  # of a Shard, as users give it


def pronouns(text, file=""):
    """The names in a text, of values, attributes, functions and classes, that say of nothing what it is."""
    for node in nodes_of(text):
        name = next(
            (x for field in ("id", "attr", "arg", "name") if isinstance(x := getattr(node, field, None), str)), ""
        )
        words = name.strip("_")
        says_nothing = words in ALONE or PRONOUNS & set(words.split("_"))
        if says_nothing and name not in OTHERS | PUBLIC.get(file, set()) and not isinstance(node, ast.keyword):
            yield node


def test_no_pronoun_names_anything():
    text = "found, x = 1, y\ndef f(own): pass\nclass Made: x._here\ndef _known(): x.there_are\nx.found_inf\nOURS"
    assert len(list(pronouns(ast.parse(text)))) == 6
    assert [node.id for node in pronouns(ast.parse("check_whole, both, some_rows, _whole"))] == ["both", "_whole"]
    assert [
        where(path, node) for path in EVERYTHING for node in pronouns(tree(path), str(path.relative_to(ROOT)))
    ] == []


METHODS = ["Muon", *(name for name, x in vars(methods).items() if isinstance(x, type) and "rule" in vars(x))]
SHARED_CLASSES = {
    **dict.fromkeys(METHODS, "the paper's name: a rule, and the optimizer of arrays and of tensors over it"),
    "Coefficients": "what a kernel must know of one step: each kernel has its own",
    "Judge": "of every plan, and of one processor's",
    "Method": "what the optimizers by name share, of arrays and of tensors",
    "Replacing": "the part of an optimizer that puts another array, or tensor, in a leaf's place",
}
SHARED_FILES = {
    **dict.fromkeys(
        ["chores", "codes", "formats", "norm", "reference", "streams"], "what it is, and its text per processor"
    ),
    **dict.fromkeys(["cuda", "gradients", "host", "judge", "plan"], "of every processor, and of one"),
    **dict.fromkeys(["group", "methods", "muon", "optimizer", "replacing"], "of arrays, and of PyTorch's tensors"),
}


def namesakes(pairs):
    """{name: places} of what stands in more than one of them, from (name, place)."""
    places = {}
    for name, place in pairs:
        places.setdefault(name, set()).add(place)
    return {name: sorted(homes) for name, homes in places.items() if len(homes) > 1}


def test_no_two_classes_and_no_two_files_share_a_name_for_different_ideas():
    """A namesake is one idea said for several sides, and SHARED_CLASSES or SHARED_FILES says which."""
    classes = [
        (node.name.strip("_"), str(path.relative_to(ROOT)))
        for path in EVERYTHING
        for node in ast.walk(tree(path))
        if isinstance(node, ast.ClassDef)
    ]
    assert {name: homes for name, homes in namesakes(classes).items() if name not in SHARED_CLASSES} == {}
    assert SHARED_CLASSES.keys() <= namesakes(classes).keys()
    files = [
        (path.parent.name if path.stem == "__init__" else path.stem, str(path.relative_to(ROOT))) for path in EVERYTHING
    ]
    assert {name: homes for name, homes in namesakes(files).items() if name not in SHARED_FILES} == {}
    assert SHARED_FILES.keys() <= namesakes(files).keys()


# ---- docstrings

FRAGMENTS = set(
    [
        "a",
        "an",
        "another",
        "every",
        "how",
        "one",
        "some",
        "the",
        "those",
        "what",
        "where",
        "whether",
        "which",
        "who",
        "why",
    ]
)
AS_IN_EVERY_KERNEL = "One element, or whole arrays, of one step", "What the kernel must know of one step"


def fragments(text):
    """The classes and functions whose docstring begins as no sentence does that says what they are or do."""
    for node in nodes_of(text):
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and (first := ast.get_docstring(node)):
            word = first.split()[0].strip(",:;.").lower()
            if (word in FRAGMENTS or not word.isidentifier()) and not first.startswith(AS_IN_EVERY_KERNEL):
                yield node


def test_docstrings_begin_with_a_sentence():
    """It begins with a verb: Return, Refuse, Holds, Is. Oracles begin with their paper."""
    (bad,) = fragments(ast.parse('def f():\n    "What each has."\ndef g():\n    "Return what each has."'))
    assert bad.name == "f"
    found = [(path, node) for path in EVERYTHING if path.name != "papers.py" for node in fragments(tree(path))]
    assert [f"{path.relative_to(ROOT)}:{node.lineno}: {node.name}" for path, node in found] == []


ENTRY = re.compile(r"(?:^|\n\n|\.\n)([a-z]\w*(?:, [a-z]\w*)*): ")


def entries_of_nothing(text):
    """(function, word) where a docstring's line begins by explaining an argument that the function has not."""
    for node in nodes_of(text):
        if isinstance(node, ast.FunctionDef) and node.args.kwarg is None:
            names = {each.arg for each in ast.walk(node.args) if isinstance(each, ast.arg)}
            for words in ENTRY.findall(ast.get_docstring(node) or ""):
                yield from ((node, word) for word in words.split(", ") if word not in names)


def test_docstrings_explain_arguments_that_there_are():
    (bad,) = entries_of_nothing(ast.parse('def f(a, b):\n    """Return.\n\n    a, c: what. b: that.\n    """'))
    assert bad[1] == "c"
    found = [(path, *one) for path in EVERYTHING for one in entries_of_nothing(tree(path))]
    assert [f"{path.relative_to(ROOT)}:{node.lineno}: {word}" for path, node, word in found] == []


# ---- sizes

MOST_PARAMETERS = 7
OPTIONS_BY_NAME = "users give options by name"
IN_NATIVE_CODE = "emitted into, or called as, native code: its parameters are those of a C function or of a walk"
MANY_PARAMETERS = {  # files, and functions of a file
    "fastadam/functional.py": "a kernel is launched: one step's streams, and options by name",
    "fastadam/stepping.py": "a kernel is launched: one step's streams, and what they are stepped with",
    "fastadam/tools/papers.py": "oracles take a method's hyperparameters by name",
    "fastadam/optimizer.py:__init__": OPTIONS_BY_NAME,
    "fastadam/stepper.py:__init__": OPTIONS_BY_NAME,
    "fastadam/torch/optimizer.py:__init__": OPTIONS_BY_NAME,
    "fastadam/muon.py:__init__": OPTIONS_BY_NAME,
    "fastadam/torch/muon.py:__init__": OPTIONS_BY_NAME,
    "fastadam/jax/transformations.py:adam": OPTIONS_BY_NAME,
    "fastadam/jax/transformations.py:adamw": OPTIONS_BY_NAME,
    "fastadam/checkpoint/folder.py:save": OPTIONS_BY_NAME,
    "fastadam/distributed/sharded.py:__init__": OPTIONS_BY_NAME,
    "fastadam/tools/demo/__init__.py:run": OPTIONS_BY_NAME,
    "kernels/adam/__init__.py:adam": "an element's arithmetic: a number for each stream and each sum",
    "kernels/prodigy/__init__.py:prodigy": "an element's arithmetic: a number for each stream and each sum",
    "benchmarks/compiling.py:adam": "an element's arithmetic: its coefficients one by one, as a plain loop has them",
    "kernels/reference.py:step": "a kernel is launched",
    "kernels/cpu/handles.py:_differing": IN_NATIVE_CODE,
    "kernels/cpu/memory.py:bases": IN_NATIVE_CODE,
    "kernels/cpu/statistics.py:_block": IN_NATIVE_CODE,
    "kernels/cpu/words.py:call_workers": IN_NATIVE_CODE,
}


def parameters(function):
    """How many parameters a function has, but for the object that a method is of."""
    given = function.args
    names = [arg.arg for arg in (*given.posonlyargs, *given.args, *given.kwonlyargs)]
    return len([name for name in names if name not in ("self", "cls")]) + bool(given.vararg) + bool(given.kwarg)


def test_functions_have_few_parameters():
    """At most seven, but where a kernel is launched or users give options by name."""
    (example,) = ast.parse("def f(self, a, /, b, *c, d, **e): pass").body
    assert parameters(example) == 5
    many = {}
    for path in EVERYTHING:
        for node in nodes_of(tree(path)):
            if (
                isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
                and parameters(node) > MOST_PARAMETERS
            ):
                file = str(path.relative_to(ROOT))
                key = file if file in MANY_PARAMETERS else f"{file}:{getattr(node, 'name', 'lambda')}"
                many[key] = node.lineno
    assert many.keys() - MANY_PARAMETERS.keys() == set()
    assert MANY_PARAMETERS.keys() - many.keys() == set()


def test_the_first_lines_of_a_wing_are_a_readers_map():
    """At most five lines: what the wing is, what it may import, and what does not belong there."""
    wings = {path.parent for path in EVERYTHING} - {ROOT / "kernels" / name for name in kernels.ALL}
    for wing in wings:
        what, *rest = [line for line in (ast.get_docstring(tree(wing / "__init__.py")) or "").splitlines() if line]
        assert what.endswith("."), wing
        assert len(rest) <= 4, wing
        for fact in (r"\bMay import\b", r"\bbelongs?\b"):
            assert re.search(fact, " ".join(rest)), (wing, fact)


def test_every_module_has_a_layer():
    """What pyproject.toml's contract does not name, import-linter does not look at."""
    contract, *_ = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    layers = {name.strip("() ") for layer in contract["layers"] for name in layer.split("|")}
    for path in EVERYTHING:
        parts = path.relative_to(ROOT).with_suffix("").parts
        module = ".".join(["fastadam", *parts[parts[0] == "fastadam" :]]).removesuffix(".__init__")
        holder = any(layer.startswith(f"{module}.") for layer in layers)  # the package of layers
        assert holder or any(f"{module}.".startswith(f"{layer}.") for layer in layers), module


def test_no_module_is_longer_than_a_reader_holds():
    lengths = sorted(len(path.read_text().splitlines()) for path in LIBRARY if path.name != "papers.py")
    assert lengths[-1] <= 300
    assert lengths[len(lengths) // 2] <= 150
