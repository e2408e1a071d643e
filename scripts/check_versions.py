"""Test a wheel of the package with the lowest or the newest versions of its dependencies.

`python scripts/check_versions.py lowest [-- PYTEST ARGUMENTS]` builds a wheel and installs it with its dependencies
into a new virtual environment (`uv pip install --resolution lowest-direct`, or `highest`). The tests run from a copy in
another folder, so that only the wheel can be imported. Warnings of old versions are not errors.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

ROOT = Path(__file__).parents[1]
COPIED = ("tests", "benchmarks", "scripts", "docs", "README.md", "pyproject.toml")
"""Files that the tests read in addition to the package."""
IN_TWO = ("-n", "2", "--dist", "loadfile", "--max-worker-restart", "0")


def main() -> None:
    parser = argparse.ArgumentParser(description="Test an installed wheel with the lowest or the newest versions.")
    parser.add_argument("versions", choices=("lowest", "newest"))
    parser.add_argument("pytest", nargs="*", help="arguments for pytest")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        sys.exit(check(Path(folder), arguments.versions, arguments.pytest))


def check(folder: Path, versions: str, arguments: list[str]) -> int:
    venv.create(folder / "venv", with_pip=True)
    python = folder / "venv" / "bin" / "python"
    environment = {**os.environ, "VIRTUAL_ENV": str(folder / "venv")}
    environment.pop("PYTHONPATH", None)

    def run(*command: object, **options) -> int:
        print("+", *command, flush=True)
        return subprocess.run(list(map(str, command)), env=environment, **options).returncode

    resolution = "lowest-direct" if versions == "lowest" else "highest"
    for command in (
        (python, "-m", "pip", "install", "--quiet", "uv"),
        (python, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", folder, ROOT),
    ):
        if code := run(*command):
            return code
    (wheel,) = folder.glob("jaxablate-*.whl")
    install = python, "-m", "uv", "pip", "install", "--quiet"
    # uv treats a wheel's dependencies as indirect and would take the newest; the file's are direct
    requirements = "--requirements", ROOT / "pyproject.toml", "--extra", "test", "pytest-xdist>=3.8"
    for command in ((*install, "--resolution", resolution, *requirements), (*install, "--no-deps", wheel)):
        if code := run(*command):
            return code
    elsewhere = folder / "elsewhere"
    elsewhere.mkdir()
    for name in COPIED:
        (shutil.copytree if (ROOT / name).is_dir() else shutil.copy)(ROOT / name, elsewhere / name)
    run(python, "-m", "uv", "pip", "list")
    return run(python, "-m", "pytest", "-q", "-W", "default", *IN_TWO, *arguments, cwd=elsewhere)


if __name__ == "__main__":
    main()
