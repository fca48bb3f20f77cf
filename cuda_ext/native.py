"""Compiled kernels: where they are kept, when they are built, how they are added to the running process.

Two libraries, ``cpu`` and ``cuda``, each in ``<cache>/cl_bench/ops/<kind>-<key>/``, where <cache> is ``$XDG_CACHE_HOME`` or
``~/.cache`` and the key hashes everything that the binary depends on: sources, torch build, compiler flags, GPU architectures.
A binary that fits is therefore found again, and one that does not fit, or is not what was built, is never loaded.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import shlex
import shutil
import sys
import sysconfig
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path

import torch

ENVIRONMENT_VARIABLE = "CL_BENCH_OPS"
SOURCES = Path(__file__).resolve().parent / "csrc"
READY = "READY"  # written last, the library's name and sha256: a folder without it is an unfinished build

_loaded: dict[str, Path] = {}
_settled = False
_guard = threading.RLock()


def backend(device: torch.device | str | None = None) -> str:
    """Which kernels answer for tensors on `device`: ``"cuda"``, ``"cpu"`` (both compiled) or ``"reference"`` (plain torch).

    Args:
        device: the device asked about; None means the GPU where torch sees one, else the CPU.

    Raises:
        ValueError: the environment variable CL_BENCH_OPS holds an unknown word.
    """
    add_kernels()
    kind = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu")).type
    return kind if kind in _loaded else "reference"


def build(cuda: bool = False) -> str:
    """Compile the kernels that are missing, add them to this process, and return `backend()` for their device.

    Already built kernels are found in the user's cache, so a second call is quick. Processes that build at the same time
    wait for one another.

    Args:
        cuda: build the GPU kernels too. Needs nvcc; builds for the GPUs of this machine, or for those that the environment
            variable TORCH_CUDA_ARCH_LIST names (then no GPU is needed).

    Returns:
        ``"cuda"``, ``"cpu"`` or ``"reference"``. Where no compiler is found one warning says what is missing.

    Raises:
        RuntimeError: the compiler is there and fails; the message holds its output.
    """
    for kind in ("cpu", "cuda") if cuda else ("cpu",):
        if _add(kind):
            continue
        obstacle = _obstacle(kind)
        if obstacle is not None:
            warnings.warn(f"{obstacle}; the plain-torch operators answer instead.", RuntimeWarning, stacklevel=2)
            return "reference"
        with _guard:
            _compile(kind)
    return "cuda" if cuda else "cpu"


def add_kernels() -> bool:
    """Once per process, do what CL_BENCH_OPS asks for (see the package). Returns whether this call added kernels."""
    global _settled
    if _settled:
        return False
    with _guard:
        if _settled:
            return False
        policy = os.environ.get(ENVIRONMENT_VARIABLE, "") or "auto"
        if policy not in ("auto", "native", "reference"):
            raise ValueError(f"{ENVIRONMENT_VARIABLE} is {policy!r}; set it to 'auto', 'native' or 'reference'.")
        before = len(_loaded)
        if policy == "native":
            build(cuda=torch.cuda.is_available())
        elif policy == "auto":
            for kind in ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",):
                _add(kind)
        _settled = True
        return len(_loaded) > before


def folder(kind: str) -> Path:
    """Where the library of this kind ("cpu" or "cuda") is kept for these sources, this torch and this machine."""
    cache = os.environ.get("XDG_CACHE_HOME", "")
    root = Path(cache if os.path.isabs(cache) else os.path.expanduser("~/.cache"))
    facts = [torch.__version__, platform.machine(), sys.platform, *_compiler_flags(kind)]
    if kind == "cuda":
        facts += [str(torch.version.cuda), *_architectures()]
    digest = hashlib.sha256(json.dumps(facts).encode())
    headers = [*SOURCES.glob("*.h"), *(SOURCES / kind).glob("*.h"), *(SOURCES / kind).glob("*.cuh")]
    for path in [*_sources(kind), *sorted(headers)]:
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return root / "cl_bench" / "ops" / f"{kind}-{digest.hexdigest()[:16]}"


def _sources(kind: str) -> list[Path]:
    return [*sorted(SOURCES.glob("*.cpp")), *sorted((SOURCES / kind).glob("*.cu" if kind == "cuda" else "*.cpp"))]


def _units(kind: str, place: Path) -> list[Path]:
    """What is compiled by itself: the sources that all devices share, and all of a device's in one, because reading torch's
    headers takes longer than what follows them. The operators' files keep apart what they call alike."""
    suffix = ".cu" if kind == "cuda" else ".cpp"
    kernels, shared = (p for p in _sources(kind) if p.parent != SOURCES), [p for p in _sources(kind) if p.parent == SOURCES]
    one = place / f"kernels{suffix}"
    one.write_text("".join(f'#include "{path.as_posix()}"\n' for path in kernels), encoding="utf-8")
    return [*shared, one]


def _compiler_flags(kind: str) -> list[str]:
    autograd = f"CL_BENCH_AUTOGRAD=Autograd{kind.upper()}"  # the dispatch key that autograd.cpp answers for
    if os.name == "nt":
        return ["/O2", f"/D{autograd}"]
    # Without contraction of a * b + c into one rounding, so that kernels agree with the reference on every bit.
    flags = ["-O3", "-ffp-contract=off", f"-D{autograd}"]
    instructions = {"AVX2": ["avx2", "fma"], "AVX512": ["avx2", "fma", "avx512f", "avx512bw", "avx512dq", "avx512vl"]}
    capability = torch.backends.cpu.get_cpu_capability()
    if kind == "cpu" and platform.machine() in ("x86_64", "AMD64") and capability in instructions:
        flags += [f"-m{name}" for name in instructions[capability]]
        flags += [f"-DCPU_CAPABILITY={capability}", f"-DCPU_CAPABILITY_{capability}"]  # what torch's own vectors go by
    return flags


def _architectures() -> list[str]:
    """GPU architectures to build for: those asked for, else those of this machine's GPUs ("9.0")."""
    asked = os.environ.get("TORCH_CUDA_ARCH_LIST", "").replace(";", " ").split()
    present = (torch.cuda.get_device_capability(i) for i in range(torch.cuda.device_count()))
    return sorted(set(asked or (f"{major}.{minor}" for major, minor in present)))


def _add(kind: str) -> bool:
    """Add the built library of this kind to the process; False where there is none that can be loaded."""
    with _guard:
        if kind in _loaded:
            return True
        ready = folder(kind) / READY
        if not os.path.isfile(ready):  # also where the cache cannot be read
            return False
        name, _, digest = ready.read_text(encoding="utf-8").partition("\n")
        if not digest:  # by a version that did not say what it built
            return False
        library = ready.parent / name
        try:
            if hashlib.sha256(library.read_bytes()).hexdigest() != digest:
                raise OSError("it is not what was built")
            torch.ops.load_library(str(library))
        except OSError as problem:
            warnings.warn(
                f"The compiled operators in {library} cannot be loaded ({problem}); build again "
                "(python -m cl_bench_ops build). The plain-torch operators answer instead.",
                RuntimeWarning,
                stacklevel=4,
            )
            return False
        _loaded[kind] = library
        return True


def _obstacle(kind: str) -> str | None:
    """One sentence (without its full stop) on what is missing for a build, or None."""
    with _ninja_on_path():
        compiler = (shlex.split(os.environ.get("CXX", "")) or ["cl" if os.name == "nt" else "c++"])[0]
        if shutil.which(compiler) is None:
            return f"The native operators were not built: no C++ compiler ({compiler}) was found"
        if shutil.which("ninja") is None:
            return "The native operators were not built: ninja was not found (install the package ninja)"
        if kind == "cuda":
            if torch.version.cuda is None:
                return "The GPU operators were not built: this torch is built without CUDA"
            from torch.utils import cpp_extension  # heavy

            home = cpp_extension.CUDA_HOME
            if home is None or shutil.which("nvcc", path=str(Path(home) / "bin")) is None:
                return "The GPU operators were not built: nvcc was not found (set CUDA_HOME to the CUDA toolkit's folder)"
            if not (Path(home) / "include" / "cuda_runtime.h").is_file():
                return f"The GPU operators were not built: {home} is no CUDA toolkit (set CUDA_HOME to the toolkit's folder)"
            if not _architectures():
                return "The GPU operators were not built: no GPU is visible (set TORCH_CUDA_ARCH_LIST, for example to 9.0)"
    return None


def _compile(kind: str) -> None:
    """Build the library of this kind and add it to the process; RuntimeError with the compiler's output where that fails."""
    from torch.utils import cpp_extension  # heavy: imports setuptools

    place = folder(kind)
    place.mkdir(parents=True, exist_ok=True)
    with _alone(place.with_suffix(".lock")), _ninja_on_path():
        if _add(kind):  # another process built it while this one waited
            return
        if (place / READY).exists():  # built once, and cannot be loaded
            shutil.rmtree(place)
            place.mkdir()
        # torch's own lock file outlives a killed build and would be waited for without end; `_alone` does its work.
        (place / "lock").unlink(missing_ok=True)
        flags = _compiler_flags(kind)
        library = cpp_extension.load(
            name=f"cl_bench_ops_{kind}",
            sources=[str(path) for path in _units(kind, place)],
            extra_cflags=flags,
            extra_cuda_cflags=["-O3", "--fmad=false"] if kind == "cuda" else None,
            build_directory=str(place),
            with_cuda=kind == "cuda",
            is_python_module=False,
        )
        _loaded[kind] = Path(library)
        unfinished = place / f"{READY}.{os.getpid()}"
        digest = hashlib.sha256(Path(library).read_bytes()).hexdigest()
        unfinished.write_text(f"{Path(library).name}\n{digest}", encoding="utf-8")
        unfinished.replace(place / READY)


@contextlib.contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Hold an exclusive lock that ends with the process. Without fcntl (Windows) processes build side by side."""
    try:
        import fcntl
    except ImportError:
        yield
        return
    with path.open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def _ninja_on_path() -> Iterator[None]:
    """torch looks for ninja on PATH; the package puts it beside this python, which need not be there."""
    before = os.environ.get("PATH")
    scripts = sysconfig.get_path("scripts")
    os.environ["PATH"] = os.pathsep.join([*([before] if before else []), scripts])
    try:
        yield
    finally:
        if before is None:
            del os.environ["PATH"]
        else:
            os.environ["PATH"] = before
