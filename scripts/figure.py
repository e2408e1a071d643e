"""Draw one figure of the paper from saved results.

`python scripts/figure.py 11 [--results FILE] [--protocol published] [--out FOLDER]`
"""

import argparse
import sys
from pathlib import Path

import jaxablate as ja
from jaxablate.figures import save_figure


def main() -> None:
    parser = argparse.ArgumentParser(description="Draw one figure of the paper from saved results.")
    parser.add_argument("number", type=int, help="number of the figure in the paper, 1 to 22")
    parser.add_argument(
        "--results", type=Path, default=Path("results/results.nc"), help="results file; default: %(default)s"
    )
    parser.add_argument("--protocol", default="paper", help="protocol of the results; default: %(default)s")
    parser.add_argument("--out", type=Path, default=Path("results/figures"), help="output folder; default: %(default)s")
    arguments = parser.parse_args()
    try:
        results = ja.results.select_protocol(ja.results.load_results(arguments.results), arguments.protocol)
        for path in save_figure(results, arguments.number, arguments.out):
            print(path)
    except (ja.InputError, OSError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
