"""Building the native operators: what is cached and found again, and what a machine without a compiler sees."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import cl_bench_ops
import pytest
import torch
from cl_bench_ops import __main__ as command
from cl_bench_ops import bench, native

CALL = """
import warnings
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    import cl_bench_ops, torch
    print(sum(w.category is RuntimeWarning for w in caught))
    target = [torch.ones(2)]
    torch.ops.cl_bench.selective_ema_(target, [torch.zeros(2)], [torch.tensor([True, False])], 0.5)
    print(target[0].tolist(), cl_bench_ops.backend("cpu"))
    print(*[str(w.message) for w in caught if w.category is RuntimeWarning], sep="\\n")
"""


def call_in_a_new_process(**environment: str) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", CALL], env={**os.environ, **environment}, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """As in a process that has loaded nothing, with an empty cache."""
    monkeypatch.setattr(native, "_loaded", {})
    monkeypatch.setattr(native, "_settled", False)
    monkeypatch.delenv(native.ENVIRONMENT_VARIABLE, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


def without_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)


def test_a_process_without_compiler_warns_once_and_computes(tmp_path: Path) -> None:
    lines = call_in_a_new_process(CL_BENCH_OPS="native", PATH="", CXX="", XDG_CACHE_HOME=str(tmp_path))
    assert lines[:2] == ["0", "[1.0, 0.5] reference"]
    assert lines[2:] == [
        "The native operators were not built: no C++ compiler (c++) was found; the plain-torch operators answer instead."
    ]
    assert not list(tmp_path.rglob("*")), "a process that cannot build left something in the cache"


@pytest.mark.slow
def test_a_new_process_uses_what_is_built_and_compiles_nothing(pytestconfig: pytest.Config) -> None:
    assert pytestconfig.cache is not None
    cache = str(pytestconfig.cache.mkdir("cl_bench_ops"))
    obstacle = native._obstacle("cpu")
    if obstacle is not None:
        pytest.skip(obstacle)
    # In a process of its own: this one may hold kernels from another cache already, and then builds nothing.
    build = [sys.executable, "-m", "cl_bench_ops", "build"]
    done = subprocess.run(build, env={**os.environ, "XDG_CACHE_HOME": cache}, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert call_in_a_new_process(CL_BENCH_OPS="", PATH="", XDG_CACHE_HOME=cache) == ["0", "[1.0, 0.5] cpu", ""]
    assert call_in_a_new_process(CL_BENCH_OPS="reference", XDG_CACHE_HOME=cache)[1] == "[1.0, 0.5] reference"


def test_by_default_nothing_is_compiled(bare: Path) -> None:
    assert cl_bench_ops.backend("cpu") == "reference"
    assert not bare.exists()


def test_an_unknown_policy_is_refused(bare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CL_BENCH_OPS", "fast")
    with pytest.raises(ValueError, match="CL_BENCH_OPS is 'fast'; set it to 'auto', 'native' or 'reference'"):
        cl_bench_ops.backend()


def test_a_broken_library_is_named_and_the_definition_answers(bare: Path) -> None:
    place = native.folder("cpu")
    place.mkdir(parents=True)
    (place / "broken.so").write_text("not a library")
    assert cl_bench_ops.backend("cpu") == "reference", "an unfinished build was used"
    native._settled = False
    (place / native.READY).write_text(f"broken.so\n{hashlib.sha256(b'not a library').hexdigest()}")
    with pytest.warns(RuntimeWarning, match=r"broken\.so cannot be loaded .* build again"):
        assert cl_bench_ops.backend("cpu") == "reference"


def test_a_library_that_is_not_what_was_built_is_never_loaded(bare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = native.folder("cpu")
    place.mkdir(parents=True)
    (place / "ops.so").write_bytes(b"built")
    (place / native.READY).write_text(f"ops.so\n{hashlib.sha256(b'built').hexdigest()}")
    loaded: list[str] = []
    monkeypatch.setattr(torch.ops, "load_library", loaded.append)
    (place / "ops.so").write_bytes(b"something else")
    with pytest.warns(RuntimeWarning, match=r"ops\.so cannot be loaded \(it is not what was built\)"):
        assert cl_bench_ops.backend("cpu") == "reference"
    assert not loaded
    (place / "ops.so").write_bytes(b"built")
    native._settled = False
    assert cl_bench_ops.backend("cpu") == "cpu" and loaded == [str(place / "ops.so")]


def hollow(folder: Path, **files: str) -> Path:
    """A copy of the sources whose files say nothing but what is given: compiled in a moment."""
    sources = folder / "csrc"
    shutil.copytree(native.SOURCES, sources)
    for file in sources.rglob("*.cpp"):
        file.write_text(files.get(file.stem, ""))
    return sources


def test_what_cannot_be_loaded_is_built_again(bare: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    obstacle = native._obstacle("cpu")
    if obstacle is not None:
        pytest.skip(obstacle)
    monkeypatch.setattr(native, "SOURCES", hollow(tmp_path))
    place = native.folder("cpu")
    place.mkdir(parents=True)
    (place / "cl_bench_ops_cpu.so").write_bytes(b"damaged")
    (place / native.READY).write_text("cl_bench_ops_cpu.so\n" + "0" * 64)
    with pytest.warns(RuntimeWarning, match="it is not what was built"):
        assert cl_bench_ops.backend("cpu") == "reference"
    native._settled = False
    assert cl_bench_ops.build() == "cpu"
    name, digest = (place / native.READY).read_text().split()
    assert hashlib.sha256((place / name).read_bytes()).hexdigest() == digest


def test_the_key_follows_sources_torch_and_architectures(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "9.0")
    before = {kind: native.folder(kind) for kind in ("cpu", "cuda")}
    assert before["cpu"] != before["cuda"]
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "8.0;9.0")
    assert native.folder("cpu") == before["cpu"]
    assert native.folder("cuda") != before["cuda"]
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "9.0")
    with monkeypatch.context() as other:
        other.setattr(torch, "__version__", "9.9.9")
        assert native.folder("cpu") != before["cpu"]
    sources = tmp_path / "csrc"
    shutil.copytree(native.SOURCES, sources)
    monkeypatch.setattr(native, "SOURCES", sources)
    assert native.folder("cpu") == before["cpu"], "the key depends on where the package lies"
    kernel = sources / "cpu" / "selective_ema.cpp"
    kernel.write_text(kernel.read_text() + "// changed\n")
    assert native.folder("cpu") != before["cpu"]
    assert native.folder("cuda") == before["cuda"]
    (sources / "cpu" / "lists.h").write_text("// changed\n")
    assert len({native.folder("cpu"), before["cpu"]}) == 2 and native.folder("cuda") == before["cuda"]
    (sources / "ops.h").write_text("// changed\n")
    assert native.folder("cuda") != before["cuda"]


def test_the_build_command_says_what_is_missing(
    bare: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    without_compiler(monkeypatch)
    assert command.main(["build"]) == 1
    output = capsys.readouterr()
    assert output.out == "reference\n"
    assert output.err.count("\n") == 1
    assert "no C++ compiler" in output.err
    assert command.main([]) == 0
    assert capsys.readouterr().out == "reference\n"


def test_gpu_kernels_need_nvcc_and_an_architecture(bare: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from torch.utils import cpp_extension

    programs = tmp_path / "bin"
    programs.mkdir()
    for name in ("c++", "ninja", "nvcc"):
        (programs / name).write_text("#!/bin/sh\nexit 1\n")
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(programs))
    monkeypatch.delenv("CXX", raising=False)
    assert native._obstacle("cpu") is None
    monkeypatch.setattr(torch.version, "cuda", None)
    assert "built without CUDA" in (native._obstacle("cuda") or "")
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(cpp_extension, "CUDA_HOME", None)
    assert "nvcc was not found" in (native._obstacle("cuda") or "")
    monkeypatch.setattr(cpp_extension, "CUDA_HOME", str(tmp_path))
    assert "is no CUDA toolkit" in (native._obstacle("cuda") or "")
    (tmp_path / "include").mkdir()
    (tmp_path / "include" / "cuda_runtime.h").touch()
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.delenv("TORCH_CUDA_ARCH_LIST", raising=False)
    assert "set TORCH_CUDA_ARCH_LIST" in (native._obstacle("cuda") or "")
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "9.0")
    assert native._obstacle("cuda") is None


def test_a_compiler_that_fails_is_an_error(bare: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    if shutil.which("c++") is None:
        pytest.skip("no C++ compiler (c++)")
    monkeypatch.setattr(native, "SOURCES", hollow(tmp_path, ops="#error deliberately broken\n"))
    with pytest.raises(RuntimeError, match="deliberately broken"):
        cl_bench_ops.build()
    assert cl_bench_ops.backend("cpu") == "reference"


def test_the_benchmark_compares_over_a_resnet50(
    bare: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shapes = bench.resnet50_shapes()
    assert (len(shapes), sum(torch.Size(shape).numel() for shape in shapes)) == (161, 25_557_032)
    assert bench.main([]) == 1
    assert "No kernels are built for cpu" in capsys.readouterr().err
    monkeypatch.setattr(bench, "resnet50_shapes", lambda: [(8, 4), (3,)])
    slow, fast = bench.compare(torch.device("cpu"), torch.float32, True, 2)
    assert slow > 0
    assert fast > 0
