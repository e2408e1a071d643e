"""The command line without its pictures and its page: run by tests that look at what it computes."""

import gc
import sys
from types import ModuleType
from typing import Any

from jaxablate import cli


class NoPictures(ModuleType):
    """Stands for `figures` and `report`, whose imports take a second."""

    def __getattr__(self, name: str) -> Any:
        return lambda *_, **__: ({}, [])


for name in ("jaxablate.figures", "jaxablate.report"):
    sys.modules[name] = NoPictures(name)

if __name__ == "__main__":
    gc.disable()  # short runs end before garbage matters
    cli.main()
