"""Reproduce everything: `python scripts/reproduce.py [options]` is `jaxablate reproduce [options]`."""

import sys

from jaxablate.cli import main

if __name__ == "__main__":
    sys.argv.insert(1, "reproduce")
    main()
