"""Extend MkDocs: add pages from modules, notebooks and files outside this folder, and convert formulas to MathML.

Formulas are converted when the site is built, so browsers show them without a script and without the network.
"""

import base64
import html
import inspect
import json
import re
from pathlib import Path
from typing import Any

import griffe
from latex2mathml.converter import convert
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

import jaxablate as ja

DOCS = Path(__file__).parents[1]
ROOT = DOCS.parent
PACKAGE = ROOT / "jaxablate"
OUTSIDE = ("CHANGELOG.md", "benchmarks/README.md", "benchmarks/results/*.png")
MODULES = sorted({path.stem for path in PACKAGE.iterdir() if not path.name.startswith((".", "_"))} - {"cli"})
MODULES = [name for name in MODULES if (PACKAGE / f"{name}.py").exists() or (PACKAGE / name / "__init__.py").exists()]
ERROR = ("::: jaxablate.InputError", "    options: {show_root_heading: true, heading_level: 3}")
TABLE = ("| name | purpose |", "| --- | --- |")
FORMULA = re.compile(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', re.DOTALL)


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Add the page of every public module to the navigation."""
    (api,) = [item for item in config.nav or [] if "API" in item]
    api["API"] = ["api/index.md", *({name: f"api/{name}.md"} for name in MODULES)]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are not files of this folder."""
    for pattern in OUTSIDE:
        for path in sorted(ROOT.glob(pattern)):
            files.append(File.generated(config, path.relative_to(ROOT).as_posix(), abs_src_path=str(path)))
    pages: dict[str, str | bytes] = {
        f"api/{name}.md": f"# `jaxablate.{name}`\n\n::: jaxablate.{name}\n" for name in MODULES
    }
    pages["api/index.md"] = api_index()
    for path in (DOCS / "notebooks").glob("*.ipynb"):
        pages |= notebook_page(path)
    for name, text in pages.items():
        files.append(File.generated(config, name, content=text))
    return files


def api_index() -> str:
    """Return the index of the reference: every top-level name and every public module, with links."""
    names = {name: thing for name in ja.__all__ if not inspect.ismodule(thing := getattr(ja, name))}
    rows = ["# API", "", "`import jaxablate as ja`. What most studies need is at the top level:", "", *TABLE]
    for name, thing in sorted(names.items(), key=lambda item: item[0].lower()):
        # names are defined in private modules, but documented on the page of the public module that exports them
        module = re.sub(r"\._\w+", "", thing.__module__)
        link = f"[`ja.{name}`][{module}.{name}]"
        rows.append(f"| {link} | {in_table((inspect.getdoc(thing) or '').splitlines()[0])} |")
    rows += ["", "The rest is in modules; `jaxablate.figures` and `jaxablate.report` are imported on their own:", ""]
    rows += TABLE
    for name in MODULES:
        folder, file = PACKAGE / name / "__init__.py", PACKAGE / f"{name}.py"
        text = re.match(r'"""(.*?)(?:\n\n|""")', (folder if folder.exists() else file).read_text(), re.DOTALL)
        rows.append(f"| [`ja.{name}`]({name}.md) | {in_table(text[1] if text else '')} |")
    return "\n".join([*rows, "", "## Errors", "", *ERROR, ""])


def in_table(text: str) -> str:
    """Return text as one line with escaped bars, for a cell of a Markdown table."""
    return " ".join(text.split()).replace("|", "\\|")


def notebook_page(path: Path) -> dict[str, str | bytes]:
    """Return the page of a notebook and its pictures by file name: text, code, printed output and pictures."""
    parts, files = [], {}
    for number, cell in enumerate(json.loads(path.read_text())["cells"]):
        source = "".join(cell["source"])
        parts.append(source if cell["cell_type"] == "markdown" else f"```python\n{source}\n```")
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            if output.get("name") == "stdout":
                parts.append(f"```text\n{''.join(output['text'])}```")
            elif "image/png" in data:
                name = f"{path.stem}_{number}.png"
                files[f"notebooks/{name}"] = base64.b64decode(data["image/png"])
                parts.append(f"![What the cell above draws]({name})")
    parts.append(f"[This page as a notebook]({path.name})")
    return {f"notebooks/{path.stem}.md": "\n\n".join(parts), **files}


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Rewrite links to notebooks and to files outside this folder, which work in a clone, for the site."""
    del config, files
    up = "../" * page.file.src_uri.count("/")
    markdown = re.sub(r"\]\(((?:\.\./)*notebooks/\w+)\.ipynb", r"](\1.md", markdown)
    return markdown.replace(f"]({up}../benchmarks/", f"]({up}benchmarks/")


def on_page_content(content: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Replace the formulas of a page by MathML."""
    del page, config, files

    def mathml(match: re.Match) -> str:
        display = "block" if match[1] == "div" else "inline"
        formula = convert(html.unescape(match[2]), display=display)
        if re.search(r"<mi>(&(?!#)|\\)", formula):
            # the converter copies commands that it does not know into its output without an error
            raise PluginError(f"formula: latex2mathml cannot convert {match[2].strip()}; write it with other commands")
        return f'<div class="formula">{formula}</div>' if display == "block" else formula

    return FORMULA.sub(mathml, content)


class Docstrings(griffe.Extension):
    """Translate the docstring sections "Example:" and "Source:" for griffe."""

    def on_instance(self, *, obj: griffe.Object | griffe.Alias, **_: Any) -> None:
        """Rewrite a docstring before it is parsed."""
        if not obj.is_alias and obj.docstring is not None:
            text = re.sub(r"^Example:$", "Examples:", obj.docstring.value, flags=re.MULTILINE)
            obj.docstring.value = re.sub(r"^Source: ", "**Source:** ", text, flags=re.MULTILINE)
