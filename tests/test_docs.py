"""The README, the pages and the notebooks run: every Python block, every command line, every option they name.

The Python blocks of a page run one after another in one namespace, with less training (`less_work`). Commands are
parsed by the command line itself and run with few steps, except for those in `PARSED_ONLY`, which other tests run.
"""

import ast
import importlib.util
import itertools
import json
import re
import shlex
import tomllib
from pathlib import Path

import jax
import numpy as np
import pytest
from run_pages import FENCE, blocks
from typer.main import get_command

import jaxablate as ja
from jaxablate.cli import app
from jaxablate.study import _networks

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]
TEXTS = {str(path.relative_to(ROOT)): path.read_text() for path in PAGES}
NOTEBOOKS = sorted((DOCS / "notebooks").glob("*.ipynb"))
NOT_OURS = {"captum.attr", "equinox", "haiku", "torch", "torch_pruning"}  # blocks run where these are installed
NO_WARNING = pytest.mark.filterwarnings("ignore::jaxablate.uncertainty.BiasWarning")  # from so little training


PYTHON = [name for name, text in TEXTS.items() if blocks(text, "python")]
COMMANDS = dict.fromkeys(
    command.strip()
    for text in TEXTS.values()
    for _, block in blocks(text, "bash")
    for line in block.splitlines()
    for command in line.partition("#")[0].split("&&")
    if command.strip()
)
SPANS = {span for text in TEXTS.values() for span in re.findall(r"(?<!`)`([^`]+)`(?!`)", FENCE.sub("", text))}
COMMANDS |= dict.fromkeys(
    " ".join(span.split()) for span in sorted(SPANS) if re.match(r"(jaxablate [a-z-]|python\s\w+/|(pip|mkdocs) )", span)
)


@pytest.fixture
def less_work(monkeypatch, mnist5k, tmp_path):
    """In an empty folder, with networks trained for an epoch, few random orders, and data that are read once."""
    train, config, load = ja.train, ja.StudyConfig, ja.load_dataset
    known = {"mnist5k": mnist5k}
    monkeypatch.chdir(tmp_path)
    for module in (ja, _networks):
        monkeypatch.setattr(module, "load_dataset", lambda name, **kw: known.get(name) or load(name, **kw))
    monkeypatch.setattr(ja, "train", lambda *args, **kw: train(*args, **{**kw, "epochs": 1}))
    less = {"epochs": 1, "num_random_orders": 2}
    monkeypatch.setattr(
        ja, "StudyConfig", lambda **kw: config(**{**kw, **less, "seeds": tuple(kw.get("seeds", (0,)))[:2]})
    )
    monkeypatch.setattr(ja.scores, "SCORES", dict(ja.scores.SCORES))
    return tmp_path


LESS_PRUNING = "fractions = (1.0, 0.75, 0.5, 0.25, 0.125)", "fractions = (1.0, 0.5)"


def absent(code):
    """Packages that a block imports, that are not ours, and that are not installed."""
    imported = set(re.findall(r"^(?:import|from) ([\w.]+)", code, re.MULTILINE)) & NOT_OURS
    return {name for name in imported if importlib.util.find_spec(name.partition(".")[0]) is None}


def check_readme(names):
    """The loss without a neuron, and the curve's end without all, are what a product by hand gives."""
    images, labels, fill = names["images"], names["labels"], names["fill"]
    hidden, head = (names["params"]["params"][f"layers_{i}"] for i in (1, 3))
    outputs = np.maximum(images.reshape(len(images), -1) @ hidden["kernel"] + hidden["bias"], 0)
    outputs[:, 3] = fill[3]
    log_p = np.asarray(jax.nn.log_softmax(outputs @ head["kernel"] + head["bias"]))
    assert names["losses"].shape == (64,)
    assert abs(float(names["losses"][3]) + log_p[np.arange(len(labels)), labels].mean()) < 1e-4
    assert names["curves"]["confusion"].shape == (10, 65, 10, 10)
    predicted = int((fill @ head["kernel"] + head["bias"]).argmax())
    assert set(names["curves"]["correct"][:, -1].tolist()) == {int((labels == predicted).sum())}


def check_ablation(names):
    assert names["correct"].shape == (1, 81)
    assert names["correct"].dtype == np.int32
    assert set(names["both"]) == {"correct", "loss"}


def check_network(names):
    """The printed table is that of the page, and so are the sites of every framework that is installed."""
    page = TEXTS["docs/howto/network.md"]
    table = blocks(page, "text")[0][1].splitlines()
    printed = str(names["model"].sites).splitlines()
    assert [re.sub(r"\S+:\d+$", "", line) for line in table] == [re.sub(r"\S+:\d+$", "", line) for line in printed]
    claimed = re.findall(r"print\((\w+)\.spec\.sites\)  # (.*)", page)
    assert {name for name, _ in claimed} == {"tags", "linen", "equinox", "haiku"}
    for name, sites in claimed:
        assert name not in names or names[name].spec.sites == ast.literal_eval(sites)
    assert names["curves"].shape == (3, 5, 17)


def check_scores(names):
    assert names["null"].p_value.shape == (24,)
    assert names["pairs"].joint.shape == (24, 24)
    assert names["sensitivity"]["auc"].shape == (1, 3, 3, 3, 2)


def check_tutorial(names):
    assert Path("figure13.png").stat().st_size > 10_000
    assert names["accuracy"].shape == (11, 91)
    assert names["small"](names["test"][0]).shape == (1000, 10)


CHECKS = {
    "README.md": check_readme,
    "docs/tutorial.md": check_tutorial,
    "docs/howto/ablation.md": check_ablation,
    "docs/howto/network.md": check_network,
    "docs/howto/scores.md": check_scores,
}


@NO_WARNING
@pytest.mark.parametrize("name", [n if n == "README.md" else pytest.param(n, marks=pytest.mark.slow) for n in PYTHON])
def test_the_python_blocks_of_a_page_run(name, less_work):
    names: dict = {"__name__": name}
    for line, code in blocks(TEXTS[name].replace(*LESS_PRUNING), "python"):
        if not absent(code):
            exec(compile("\n" * line + code, ROOT / name, "exec"), names)
    CHECKS.get(name, lambda names: None)(names)


def test_the_first_example_is_short():
    assert len([line for line in blocks(TEXTS["README.md"], "python")[0][1].splitlines() if line]) <= 15


@pytest.fixture(scope="module")
def own_files(mnist5k, tmp_path_factory):
    """The files of networks that command lines name: one of ours and one of PyTorch."""
    folder = tmp_path_factory.mktemp("commands")
    model, _ = ja.train(mnist5k, (24, 16), epochs=1)
    ja.save_model(model, folder / "network.safetensors")
    from safetensors.numpy import save_file

    weights = {f"{2 * i}.{part}": np.asarray(array.T) for i, stage in enumerate(model.stages)
               for part, array in zip(("weight", "bias"), stage.weights, strict=True)}  # fmt: skip
    for name in ("net", "mlp"):
        save_file({key: np.ascontiguousarray(array) for key, array in weights.items()}, folder / f"{name}.safetensors")
    return folder


LESS = {"dataset": "mnist5k", "steps": 10, "random_orders": 2, "fine_tune": 0, "cache": False}


PARSED_ONLY = ("reproduce", "report", "merge", "table", "compare")


def run_command(words):
    """Parse a command line by our own, and run it with less work."""
    command = get_command(app)
    if words == ["--install-completion"]:  # which parsing would do
        assert any(words[0] in parameter.opts for parameter in command.params)
        return
    for name, sub in command.commands.items():
        real = sub.callback

        def with_less(_name=name, _real=real, **options):
            if _name not in PARSED_ONLY:
                _real(**{key: LESS.get(key, value) for key, value in options.items()})

        sub.callback = with_less
    assert not command.main(words, standalone_mode=False)


@NO_WARNING
@pytest.mark.parametrize(
    "line", [pytest.param(line, marks=[pytest.mark.slow] * (line not in TEXTS["README.md"])) for line in COMMANDS]
)
def test_a_command_line_is_what_it_says(line, own_files, less_work, monkeypatch):
    monkeypatch.chdir(own_files)
    monkeypatch.setattr("jaxablate.datasets.availability", lambda name, folder: "")  # asks servers
    words = shlex.split(line)
    match words:
        case ["jaxablate", *arguments]:
            run_command(arguments)
            for flag, path in itertools.pairwise(words):
                if flag == "--out" and words[1] not in PARSED_ONLY:
                    assert Path(path).stat().st_size > 100
        case ["pip", "install", *what]:
            extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
            for target in what:
                assert set(re.fullmatch(r"\.(?:\[(.*)\])?", target)[1].split(",") if "[" in target else ()) <= set(
                    extras
                )
        case ["python", "-m", module]:
            assert (ROOT / module / "__main__.py").is_file()
        case ["python", script, *_] | ["mkdocs", "build", "-f", script]:
            assert (ROOT / script).is_file()
        case _:
            assert words == ["pytest"]


def test_every_option_that_is_named_exists():
    command = get_command(app)
    known = {"--help", "--device"}  # the second is that of `python -m benchmarks`
    for subcommand in (command, *command.commands.values()):
        known |= {option for parameter in subcommand.params for option in (*parameter.opts, *parameter.secondary_opts)}
    named = {option for span in SPANS for option in re.findall(r"(?<!\S)--[a-z][a-z-]+", span)}
    assert len(named) > 10
    assert named <= known, named - known


@pytest.mark.parametrize("name", TEXTS)
def test_links_lead_somewhere_in_a_clone_too(name):
    links = re.findall(r"\]\(([^)\s#]+)", FENCE.sub("", TEXTS[name]))
    files = [link for link in links if not link.startswith("https:") and not link.endswith("api/index.md")]
    assert not [link for link in files if not (ROOT / name).parent.joinpath(link).exists()]


def test_the_tables_of_the_benchmarks_are_the_measured_ones(monkeypatch):
    monkeypatch.syspath_prepend(ROOT)
    from benchmarks.__main__ import README, readme_text

    assert readme_text() == README.read_text()


def test_messages_that_are_explained_are_ours():
    texts = []
    for path in Path(ja.__file__).parent.rglob("*.py"):
        constants = (node.value for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Constant))
        texts += [" ".join(value.split()) for value in constants if isinstance(value, str)]
    rows = re.findall(r"^\| `([^`]+)` \|", TEXTS["docs/howto/messages.md"], re.MULTILINE)
    assert len(rows) > 20
    pieces = {piece.strip() for row in rows for piece in row.split("...") if piece.strip()}
    assert not {piece for piece in pieces if not any(piece in text for text in texts)}


LESS_TRAINING = {
    "my_score": (("range(20)", "range(1)"),),
    "own_network": (("EPOCHS = 20", "EPOCHS = 1"),),
    "paper_figure": (('dataset="mnist5k",', 'dataset="mnist5k", epochs=1,'),),
    "redundancy": (("epochs=60", "epochs=1"), ("(60, 40)", "(24, 16)"), ("999", "99")),
}
CHECKS_IN_NOTEBOOKS = {
    "my_score": "assert counts['random orders'].shape == (20, 129)",
    "own_network": (
        "assert small(test[0]).shape == (1000, 10) and after < before\n"
        "assert [curve.shape[1] for curve in curves.values()] == [56, 56, 56]"
    ),
    "paper_figure": "assert (network.sizes['scope'], network.sizes['step']) == (3, 81)",
    "redundancy": "assert np.allclose(parts, pairs.joint, atol=1e-5) and 0 < test_result.p_value <= 1",
}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_whole_and_small(path):
    """Its cells were run in their order, without an error, and it shows a picture."""
    notebook = json.loads(path.read_text())
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell["outputs"]]
    assert not [output for output in outputs if output["output_type"] == "error" or output.get("name") == "stderr"]
    assert [output for output in outputs if "image/png" in output.get("data", {})]
    assert path.stat().st_size < 250_000
    assert "".join(notebook["cells"][0]["source"]).startswith("# ")


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_from_top_to_bottom(path, tmp_path, monkeypatch):
    """In a kernel, as a user runs it, with less training."""
    monkeypatch.delenv("MPLBACKEND", raising=False)  # commands set it in this process, and the kernel has its own
    nbclient = pytest.importorskip("nbclient")
    nbformat = pytest.importorskip("nbformat")
    notebook = nbformat.read(path, 4)
    for old, new in LESS_TRAINING[path.stem]:
        (cell,) = (cell for cell in notebook.cells if cell.cell_type == "code" and old in cell.source)
        cell.source = cell.source.replace(old, new)
    notebook.cells.append(nbformat.v4.new_code_cell(CHECKS_IN_NOTEBOOKS[path.stem]))
    nbclient.NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}}).execute()
    displayed = [output.get("data", {}) for cell in notebook.cells for output in cell.get("outputs", [])]
    assert any(len(data.get("image/png", "")) > 10_000 for data in displayed)
    if path.stem == "paper_figure":
        assert any("ablate 2-layer" in data.get("text/html", "") for data in displayed), "bars of run_study"
