"""``python -m cl_bench_ops build [--cuda]`` compiles the native operators; ``python -m cl_bench_ops`` says which are in use."""

from __future__ import annotations

import argparse
import sys
import warnings

from .native import backend, build


def main(arguments: list[str] | None = None) -> int:
    """Run the command; the exit status is 0 where it did what it was asked, 1 where nothing could be built."""
    parser = argparse.ArgumentParser(prog="python -m cl_bench_ops", description="The native operators of cl-bench.")
    commands = parser.add_subparsers(dest="command")
    commands.add_parser("backend", help="say which kernels answer on this machine (the default)")
    compile_them = commands.add_parser("build", help="compile the kernels into the user's cache")
    compile_them.add_argument("--cuda", action="store_true", help="the GPU kernels too (needs nvcc)")
    options = parser.parse_args(arguments)
    if options.command != "build":
        print(backend())
        return 0
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", RuntimeWarning)
        result = build(cuda=options.cuda)
    for warning in caught:
        print(warning.message, file=sys.stderr)
    print(result)
    return 1 if result == "reference" else 0


if __name__ == "__main__":
    sys.exit(main())
