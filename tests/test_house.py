"""The rules of the house: layers, light imports, documented and runnable public names."""

import ast
import doctest
import re
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jaxablate as ja

PACKAGE = Path(ja.__file__).parent
LAYERS = (
    {"_typing", "_checks", "_files", "_parallel"},
    {"datasets", "quantizers", "histograms", "metrics", "orders"},
    {"models", "protocols"},
    {"training", "activations", "ablation"},
    {"results"},
    {"claims", "mechanism"},
    {"figures"},
    {"study"},
    {"cli"},
)
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}
MODULES = sorted(PACKAGE.rglob("*.py"))
PUBLIC = sorted(name for name in vars(ja) if not name.startswith("_") and hasattr(getattr(ja, name), "__module__"))


def modules_imported(path: Path) -> set[str]:
    """The package's own modules that a file imports, by the name of file or folder below the package."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("jaxablate."):
            found.add(node.module.split(".")[1])
        elif isinstance(node, ast.ImportFrom) and node.module == "jaxablate":
            found.add("__init__")
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
        elif isinstance(node, ast.Import):
            found |= {alias.name.split(".")[1] for alias in node.names if alias.name.startswith("jaxablate.")}
    return found


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_down(path):
    own = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    if own in ("__init__", "__main__"):
        return
    for other in modules_imported(path) - {own}:
        if other == "__init__":  # the whole package
            assert own == "cli", f"{own} imports from jaxablate itself"
            continue
        assert LEVEL[other] < LEVEL[own] or LEVEL[other] == 0, f"{own} (layer {LEVEL[own]}) imports {other}"


def test_only_results_imports_xarray_to_build():
    texts = {p.relative_to(PACKAGE): p.read_text() for p in MODULES}
    builders = {path.parts[0] for path, text in texts.items() if re.search(r"xr\.(Dataset|DataTree)[.(]", text)}
    assert builders == {"results"}
    users = {path.parts[0] for path, text in texts.items() if "import xarray" in text}
    assert users == {"results", "claims", "mechanism.py", "study", "figures"}


def test_importing_the_package_is_light():
    code = "import sys, jaxablate; print(*[m for m in sys.argv[1:] if m in sys.modules])"
    heavy = ["matplotlib", "tensorflow_datasets", "mlxtend", "typer", "tensorflow"]
    run = subprocess.run([sys.executable, "-c", code, *heavy], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == ""


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


EXAMPLES = [name for name in PUBLIC if callable(getattr(ja, name)) and ">>>" in (getattr(ja, name).__doc__ or "")]


@pytest.mark.parametrize("name", EXAMPLES)
def test_examples_run(name, doctest_globals):
    if name == "load_results":
        ja.save_results(doctest_globals["results"], doctest_globals["tmp_path"] / "results.nc")
    finder = doctest.DocTestFinder(recurse=False)
    runner = doctest.DocTestRunner()
    for test in finder.find(getattr(ja, name), name, globs=dict(doctest_globals)):
        runner.run(test)
    assert runner.summarize(verbose=False).attempted > 0
    assert runner.failures == 0


@pytest.mark.parametrize("name", PUBLIC)
def test_public_functions_are_documented(name):
    thing = getattr(ja, name)
    assert thing.__doc__
    if callable(thing) and not isinstance(thing, type):
        for section in ("Args:", "Example:", *(() if name.startswith("save") else ("Returns:",))):
            assert section in thing.__doc__, section
