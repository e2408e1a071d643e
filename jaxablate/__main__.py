"""`python -m jaxablate` is the command line."""

from jaxablate.cli import main

main()
