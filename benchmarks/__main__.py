"""Run the named benchmarks, or all of them, and rewrite the tables of the README: `python -m benchmarks [NAME ...]`."""

import argparse
import importlib
import importlib.util
import json
import os
from pathlib import Path

NAMES = (
    "sweep", "functions", "linear", "growth", "training", "grid", "histograms", "scores", "startup", "captum_single",
    "scaling", "large",
)  # fmt: skip
README = Path(__file__).with_name("README.md")
MARK = "<!-- measured: everything below is written by `python -m benchmarks` -->"


def readme_text() -> str:
    """Return the README with the latest numbers of every benchmark below its mark."""
    from benchmarks._harness import FOLDER, HEADINGS, format_cells

    parts = [README.read_text().split(MARK)[0] + MARK]
    for path in sorted(FOLDER.glob("*.json")):
        record = json.loads(path.read_text())
        versions = ", ".join(f"{name} {version}" for name, version in record["versions"].items())
        parts += [
            f"\n## {record['title']}\n",
            f"`python -m benchmarks {record['name']}` on {record['device']}, {record['cores']} cores; {versions}; "
            f"{record['when'][:10]}. ![{record['name']}](results/{path.stem}.png)\n",
            "| " + " | ".join(HEADINGS) + " |",
            "| " + " | ".join("---" for _ in HEADINGS) + " |",
            *("| " + " | ".join(format_cells(row, record["unit"])) + " |" for row in record["rows"]),
        ]
    return "\n".join(parts) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", choices=[*NAMES, []], metavar="NAME", help=", ".join(NAMES))
    parser.add_argument("--device", choices=("cpu", "gpu"), help="device; by default JAX chooses")
    parser.add_argument("--readme", action="store_true", help="rewrite README and pictures from the saved numbers")
    arguments = parser.parse_args()
    if arguments.device:
        os.environ["JAX_PLATFORMS"] = {"cpu": "cpu", "gpu": "cuda"}[arguments.device]
    if arguments.readme:
        from benchmarks._harness import FOLDER, save_picture

        for path in FOLDER.glob("*.json"):
            save_picture(json.loads(path.read_text()), path.with_suffix(".png"))
    else:
        for name in arguments.names or NAMES:
            if name == "captum_single" and not importlib.util.find_spec("captum"):
                print("captum_single: skipped, captum is not installed")
                continue
            importlib.import_module(f"benchmarks.{name}").main()
    README.write_text(readme_text())


if __name__ == "__main__":
    main()
