"""The rules of the house: layers, light imports, documented and runnable public names."""

import ast
import doctest
import importlib
import re
import subprocess
import sys
from inspect import isclass, isfunction, ismodule
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jaxablate as ja

PACKAGE = Path(ja.__file__).parent
LAYERS = (
    {"_typing", "_checks", "_files", "_precision", "devices", "statistics", "_rundir", "_progress"},
    {"datasets", "fills", "quantizers", "histograms", "metrics", "orders", "streams"},
    {"models", "protocols", "interactions", "uncertainty", "linear_compensation"},
    {"training", "activations", "ablation", "pruning"},
    {"results", "scores"},
    {"layer_analysis"},
    {"claims"},
    {"charts"},
    {"figures", "report"},
    {"study"},
    {"cli"},
)
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}
MODULES = sorted(PACKAGE.rglob("*.py"))
ATTRIBUTES = {name: getattr(ja, name) for name in dir(ja) if not name.startswith("_")}
SUBMODULES = [m for m in ATTRIBUTES.values() if ismodule(m) and re.fullmatch(r"jaxablate\.[a-z]\w*", m.__name__)]


def public_things() -> dict[str, object]:
    """Functions, classes and tables by the one path that documents them: at the top level, or in their submodule."""
    top = {name: ATTRIBUTES[name] for name in ja.__all__ if not ismodule(ATTRIBUTES[name])}
    things = dict(top)
    for module in SUBMODULES:
        defined = [n for n, thing in vars(module).items() if getattr(thing, "__module__", "") == module.__name__]
        for name in getattr(module, "__all__", [n for n in defined if not n.startswith("_")]):
            thing = getattr(module, name)
            if isfunction(thing) or isclass(thing):
                things.setdefault(f"{module.__name__.split('.')[-1]}.{name}", thing)
    once = {id(thing) for thing in top.values()}
    return {name: thing for name, thing in things.items() if name in top or id(thing) not in once}


PUBLIC = public_things()


def modules_imported(path: Path) -> set[str]:
    """The package's own modules that a file imports, by the name of file or folder below the package."""
    imported = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("jaxablate."):
            imported.add(node.module.split(".")[1])
        elif isinstance(node, ast.ImportFrom) and node.module == "jaxablate":
            imported.add("__init__")
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
        elif isinstance(node, ast.Import):
            imported |= {alias.name.split(".")[1] for alias in node.names if alias.name.startswith("jaxablate.")}
    return imported


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_down(path):
    module = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    if module in ("__init__", "__main__"):
        return
    for name in modules_imported(path) - {module}:
        if name == "__init__":  # the whole package
            assert module == "cli", f"{module} imports from jaxablate itself"
            continue
        assert LEVEL[name] < LEVEL[module] or LEVEL[name] == 0, f"{module} (layer {LEVEL[module]}) imports {name}"


def test_only_results_imports_xarray_to_build():
    texts = {p.relative_to(PACKAGE): p.read_text() for p in MODULES}
    builders = {path.parts[0] for path, text in texts.items() if re.search(r"xr\.(Dataset|DataTree)[.(]", text)}
    assert builders == {"results"}
    users = {path.parts[0] for path, text in texts.items() if "import xarray" in text}
    assert users == {"results", "claims", "layer_analysis.py", "charts", "study", "figures", "report", "cli"}


@pytest.mark.parametrize(
    ("statement", "heavy"),
    [
        ("import jaxablate.cli", ["jax", "numpy", "xarray", "matplotlib"]),
        ("from jaxablate import *", ["matplotlib", "tensorflow_datasets", "mlxtend", "typer", "tensorflow"]),
    ],
)
def test_importing_the_package_is_light(statement, heavy):
    code = f"import sys; {statement}; print(*[m for m in sys.argv[1:] if m in sys.modules])"
    run = subprocess.run([sys.executable, "-c", code, *heavy], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == ""


def test_the_lazy_names_are_those_that_type_checkers_read():
    (block,) = [node for node in ast.parse(Path(ja.__file__).read_text()).body if isinstance(node, ast.If)]
    imports = [(node.module, alias.name) for node in block.body for alias in node.names]
    assert sorted(name for _, name in imports) == sorted(ja.__all__)
    for module, name in imports:
        assert ATTRIBUTES[name] is getattr(importlib.import_module(module), name)
    with pytest.raises(AttributeError, match="module 'jaxablate' has no attribute 'unknown'"):
        _ = ja.unknown


@pytest.fixture(scope="module")
def doctest_globals(small_results, tmp_path_factory):
    return {
        "ja": ja,
        "np": np,
        "jnp": jnp,
        "jax": jax,
        "nnx": nnx,
        "results": small_results,
        "verdicts": ja.judge_claims(small_results),
        "tmp_path": tmp_path_factory.mktemp("doctest"),
    }


EXAMPLES = [name for name, thing in PUBLIC.items() if callable(thing) and ">>>" in (thing.__doc__ or "")]


@pytest.mark.slow
@pytest.mark.parametrize("name", EXAMPLES)
def test_examples_run(name, doctest_globals):
    if "import torch" in PUBLIC[name].__doc__:
        pytest.importorskip("torch", reason="needs PyTorch (the extra bench)")
    if name == "results.load_results":
        ja.results.save_results(doctest_globals["results"], doctest_globals["tmp_path"] / "results.nc")
    finder = doctest.DocTestFinder(recurse=False)
    runner = doctest.DocTestRunner()
    for test in finder.find(PUBLIC[name], name, globs=dict(doctest_globals)):
        runner.run(test)
    assert runner.summarize(verbose=False).attempted > 0
    assert runner.failures == 0


def test_about_25_names_at_the_top_level():
    assert 20 <= sum("." not in name for name in PUBLIC) <= 30


@pytest.mark.parametrize("name", PUBLIC)
def test_public_functions_are_documented(name):
    """Whole at the top level, and wherever a docstring says what it takes."""
    thing = PUBLIC[name]
    assert thing.__doc__
    whole = "." not in name or "Args:" in thing.__doc__
    if callable(thing) and not isinstance(thing, type) and whole:
        for section in ("Args:", *(() if name.split(".")[-1].startswith("save") else ("Returns:",))):
            assert section in thing.__doc__, section
        assert "." in name or "Example:" in thing.__doc__
