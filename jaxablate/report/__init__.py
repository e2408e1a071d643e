"""Write results as one HTML page that needs no other file.

Input: results of a study.
Output: a page; the same results give the same page byte for byte.
Memory: the page, some hundred kilobytes for each protocol.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import xarray as xr
from markupsafe import Markup

from jaxablate._checks import as_path, require, require_type
from jaxablate._files import as_utf8, atomic_path, require_writable
from jaxablate.charts import claim_table
from jaxablate.claims import Verdict, departures_from_paper, judge_claims
from jaxablate.claims._judge import require_verdicts
from jaxablate.datasets import Dataset
from jaxablate.models import MLP, AnyModel
from jaxablate.protocols import shown_protocols
from jaxablate.report._charts import svg_chart
from jaxablate.report._comparison import comparison_page
from jaxablate.report._examples import check_data, load_data_of
from jaxablate.report._grid import grid_page
from jaxablate.report._pictures import networks_beside
from jaxablate.report._sections import cards_of, meaning_of, provenance_of, sections_of
from jaxablate.report._summary import data_note, summarize_study
from jaxablate.results import conditions_of, protocols_of, select_protocol
from jaxablate.results._labels import is_passed, require_results

__all__ = ["check_report_path", "load_data_of", "networks_beside", "write_comparison", "write_report"]

TEMPLATES = Path(__file__).parent


def write_report(
    results: xr.DataTree,
    path: str | Path,
    *,
    networks: Mapping[str, AnyModel] | None = None,
    data: Dataset | None = None,
    verdicts: Sequence[Verdict] | None = None,
) -> Path:
    """Write results as one HTML page that opens from disk, prints, and needs no other file and no network.

    The page of a study holds

    - a summary in three sentences for each network,
    - with several seeds of trained networks, the verdicts on the paper's claims, or in another setting the same
      comparisons,
    - every figure under the question that it answers, with curves that show their values and can be hidden,
    - the most and least informative neurons, and the origin of everything.

    Of several protocols it shows the paper's and the published protocol. The page of a grid holds the accuracies,
    comparisons and curves of every condition.

    Args:
        results: from `run_study` or `load_results`.
        path: file of the page, for example `report.html`.
        networks: network of the first seed by the name of its node, `{"3-layer": model}`, for pictures of the neurons'
            weights; `networks_beside` loads the networks of a run. Only an MLP of square images has such pictures.
        data: dataset of the results; with `networks`, the page shows the test examples with a neuron's highest
            activations, among the first 10,000.
        verdicts: from `judge_claims(results)`; None judges the results if the study trained networks of several seeds.

    Returns:
        The path of the page.

    Raises:
        InputError: for a folder that cannot be written, a path that is a folder, or networks that are not in the
            results or have other layers; for data without networks, or data that differ from the data of the results.

    Example:
        >>> from jaxablate.report import write_report
        >>> write_report(results, tmp_path / "report.html").name
        'report.html'
    """
    require_results(results, whole=True)
    path = as_path("report", path)
    check_report_path(path)
    require_type("networks", networks, Mapping | None, "networks by name")
    if verdicts is not None:
        require_verdicts(verdicts)
    if conditions_of(results):
        require(
            not networks and not verdicts, "results: a grid has no networks or verdicts on its page; leave them out"
        )
        return _write_page(path, "grid.html", grid_page(results))
    networks, nodes = networks or {}, select_protocol(results, protocols_of(results)[0]).children
    unknown = sorted({*networks} - {*nodes})
    require(not unknown, f"networks: expected names among {', '.join(nodes)}, got {', '.join(unknown)}")
    for name, model in networks.items():
        widths, hidden = getattr(model, "hidden", None), json.loads(nodes[name].attrs["hidden"])
        fits = not isinstance(model, MLP) or list(model.hidden) == hidden
        require(
            fits, f"networks: expected {name} with hidden layers of {hidden} neurons, as in the results, got {widths}"
        )
    # One seed says nothing about other networks, and the claims are about networks that the study trains.
    if verdicts is None:
        is_judged = any(node.sizes["seed"] > 1 and not is_passed(node.to_dataset()) for node in nodes.values())
        verdicts = judge_claims(results) if is_judged else []
    protocols = shown_protocols(protocols_of(results))
    examples = {} if data is None else check_data(results, networks, data)
    content = {
        "note": data_note(results),
        "summary": summarize_study(results, protocols[0]),
        "cards": cards_of(results),
        "differences": departures_from_paper(results),
        "claims": claim_table(verdict for verdict in verdicts if verdict.protocol in protocols),
        "protocols": {
            name: sections_of(results, name, networks, examples, first=name == protocols[0]) for name in protocols
        },
        "meanings": {name: meaning_of(name) for name in protocols},
        "provenance": provenance_of(results),
    }
    return _write_page(path, "report.html", content)


def write_comparison(
    first: xr.DataTree,
    second: xr.DataTree,
    path: str | Path,
    *,
    names: Sequence[str] = ("first", "second"),
    by: str = "auc",
) -> Path:
    """Write the comparison of two results as one HTML page that needs no other file and no network.

    The page shows the settings in which the two studies differ, the accuracies of their networks, the difference for
    every order of ablation with its interval, and the curves of both.

    Args:
        first, second: results of one study each, from `run_study` or `load_results`.
        path: file of the page, for example `comparison.html`.
        names: names of the two on the page.
        by: the compared quantity, a name as in `ja.compare`.

    Returns:
        The path of the page.

    Raises:
        InputError: for a folder that cannot be written, results of a grid, names that are not two different texts, or
            results that `ja.compare` cannot compare.

    Example:
        >>> from jaxablate.report import write_comparison
        >>> write_comparison(results, results, tmp_path / "comparison.html", names=("a", "b")).name
        'comparison.html'
    """
    path = as_path("comparison", path)
    check_report_path(path)
    for argument, results in (("first", first), ("second", second)):
        require_results(results, whole=True)
        require(not conditions_of(results), f"{argument}: it holds a grid; pass one condition, such as results['l2=0']")
    require_type("names", names, Sequence, "two names")
    texts = [name for name in names if isinstance(name, str) and name]
    require(len(names) == len(texts) == len({*texts}) == 2, f"names: expected two different texts, got {list(names)}")
    require_type("by", by, str, "the name of a measure")
    return _write_page(path, "comparison.html", comparison_page(first, second, names, by))


def _write_page(path: Path, template: str, content: Mapping[str, Any]) -> Path:
    """Render a template with its content, and write the page; return its path."""
    # autoescape: names of data sets and networks come from users
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters["svg"] = svg_chart
    look = {
        "style": Markup((TEMPLATES / "report.css").read_text()),
        "script": Markup((TEMPLATES / "report.js").read_text()),
    }
    page = environment.get_template(template).render(**content, **look)
    with atomic_path(path) as temporary:
        temporary.write_text(as_utf8(page), encoding="utf-8")  # a name of a file may be no UTF-8
    return path


def check_report_path(path: str | Path) -> None:
    """Raise unless `write_report` can write to a path; call it before hours of work.

    Raises:
        InputError: for a name without .html or .htm, a folder, or a folder that cannot be written.

    Example:
        >>> from jaxablate.report import check_report_path
        >>> check_report_path(tmp_path / "report.html")
    """
    path = as_path("report", path)
    require(path.suffix in (".html", ".htm"), f"report {path}: expected a name that ends in .html, got {path.name!r}")
    require(not path.is_dir(), f"report {path}: expected a file or nothing, got a folder; name the file")
    require_writable(path.parent)
