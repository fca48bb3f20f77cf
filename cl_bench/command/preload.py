"""What a suite's workers have in common: the server that they are forked from imports this module, and so does it once.

Whatever fails here fails again in a worker, whose run then says what it was; the server itself lives on.
"""

import contextlib
import importlib

for module in ("cl_bench.engine.runner", "cl_bench.command.config"):
    with contextlib.suppress(BaseException):
        importlib.import_module(module)
