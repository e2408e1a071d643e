"""Run the command line by `python -m jaxablate`."""

from jaxablate.cli import main

__all__ = ["main"]

main()
