"""Run the Python blocks of documentation pages; the pictures that they save lie next to the pages.

Example: python scripts/run_pages.py docs/questions/*.md
"""

import contextlib
import re
import sys
from pathlib import Path

FENCE = re.compile(r"^```(\w+)\n(.*?)^```", re.DOTALL | re.MULTILINE)


def blocks(text: str, language: str) -> list[tuple[int, str]]:
    """Return the fenced blocks of a page in a language, each with the number of its first line."""
    return [(text.count("\n", 0, fence.start(2)), fence[2]) for fence in FENCE.finditer(text) if fence[1] == language]


def run_page(path: Path) -> None:
    """Run the Python blocks of a page one after another, in the folder of the page."""
    names: dict = {"__name__": path.stem}
    with contextlib.chdir(path.parent):
        for line, code in blocks(Path(path.name).read_text(), "python"):
            exec(compile("\n" * line + code, path, "exec"), names)


if __name__ == "__main__":
    for page in sys.argv[1:]:
        print(f"# {page}", flush=True)
        run_page(Path(page))
