"""The report: results come in, one HTML page that needs nothing else goes out.

It draws only; summaries come from `results`, `claims` and `layer_analysis`. The same results give the same page, byte
for byte. Memory: the page, some hundred kilobytes for each protocol.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import jinja2
import xarray as xr
from flax import nnx
from markupsafe import Markup

from jaxablate._checks import require
from jaxablate._files import atomic_path, require_writable
from jaxablate.claims import Verdict, judge_claims
from jaxablate.models import MLP
from jaxablate.protocols import shown_protocols
from jaxablate.report._pictures import networks_beside
from jaxablate.report._sections import cards_of, claims_of, meaning_of, provenance_of, sections_of
from jaxablate.results import protocols_of, select_protocol

__all__ = ["check_report_path", "networks_beside", "write_report"]

TEMPLATES = Path(__file__).parent


def write_report(
    results: xr.DataTree,
    path: str | Path,
    *,
    networks: Mapping[str, nnx.Module] | None = None,
    verdicts: Sequence[Verdict] | None = None,
) -> Path:
    """Write results as one page of HTML that can be opened from disk, printed and sent: no other file, no network.

    It holds the data, networks and accuracies in short, the verdicts on the paper's claims where there are several
    seeds, every figure by the question that it answers, with curves that show their values and can be turned off, the
    most and least informative neurons, and where all of it comes from. Of several protocols it shows the paper's and
    the published one.

    Args:
        results: from `run_study` or `load_results`.
        path: the page, such as `report.html`.
        networks: the network of the first seed by the name of its node, `{"3-layer": model}`, for pictures of what the
            neurons weigh; `networks_beside` finds those of a run. There are none of images that are not square, and
            none of another model than an MLP.
        verdicts: from `judge_claims(results)`, where they are at hand; None judges again where there are several seeds.

    Returns:
        The page.

    Raises:
        InputError: for a folder that cannot be written, a path that is a folder, or networks that the results lack or
            that have other layers than theirs.

    Example:
        >>> from jaxablate.report import write_report
        >>> write_report(results, tmp_path / "report.html").name
        'report.html'
    """
    path = Path(path)
    check_report_path(path)
    networks, nodes = networks or {}, select_protocol(results, protocols_of(results)[0]).children
    unknown = sorted({*networks} - {*nodes})
    require(not unknown, f"networks: expected names among {', '.join(nodes)}, got {', '.join(unknown)}")
    for name, model in networks.items():
        own, hidden = getattr(model, "hidden", None), json.loads(nodes[name].attrs["hidden"])
        fits = not isinstance(model, MLP) or list(model.hidden) == hidden
        require(fits, f"networks: expected {name} with hidden layers of {hidden} neurons, as in the results, got {own}")
    if verdicts is None:
        verdicts = judge_claims(results) if any(network.sizes["seed"] > 1 for network in nodes.values()) else []
    shown = shown_protocols(protocols_of(results))
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    page = environment.get_template("report.html").render(
        cards=cards_of(results),
        claims=claims_of([verdict for verdict in verdicts if verdict.protocol in shown]),
        protocols={name: sections_of(results, name, networks, first=name == shown[0]) for name in shown},
        meanings={name: meaning_of(name) for name in shown},
        provenance=provenance_of(results),
        style=Markup((TEMPLATES / "report.css").read_text()),
        script=Markup((TEMPLATES / "report.js").read_text()),
    )
    with atomic_path(path) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return path


def check_report_path(path: str | Path) -> None:
    """Raise before hours of work unless `write_report` can write there.

    Raises:
        InputError: for a name without .html or .htm, a folder, or a folder that cannot be written.

    Example:
        >>> from jaxablate.report import check_report_path
        >>> check_report_path(tmp_path / "report.html")
    """
    path = Path(path)
    require(path.suffix in (".html", ".htm"), f"report {path}: expected a name that ends in .html, got {path.name!r}")
    require(not path.is_dir(), f"report {path}: expected a file or nothing, got a folder; name the file")
    require_writable(path.parent)
