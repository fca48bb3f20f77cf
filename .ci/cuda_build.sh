#!/usr/bin/env bash
# Compile and link the GPU operators for sm_90 on a machine that need not have a GPU:  .ci/cuda_build.sh VENV
# Uses the CUDA compiler packages of torch's own CUDA version, installed into VENV where missing. What was built once is not
# built again: the stamp hashes the sources and torch's version. Prints one line.
set -euo pipefail

venv=${1:?usage: .ci/cuda_build.sh VENV}
root=$(cd "$(dirname "$0")/.." && pwd)
python=$venv/bin/python
cache=${XDG_CACHE_HOME:-$HOME/.cache}/cl_bench
say() { printf 'GPU operators: %s\n' "$*"; }

site=$("$python" -c 'import sysconfig; print(sysconfig.get_path("platlib"))')
cuda=$(sed -n "s/^cuda.*= *'\([0-9]*\.[0-9]*\)'.*/\1/p" "$site/torch/version.py")
if [ -z "$cuda" ]; then
  say "skipped, this torch is built without CUDA"
  exit 0
fi
key=$(cat "$0" "$site/torch/version.py" "$root"/cuda_ext/native.py "$root"/cuda_ext/csrc/*.* "$root"/cuda_ext/csrc/cuda/* |
  sha256sum | cut -c1-16)
stamp=$cache/cuda_build/$key
if [ -f "$stamp" ]; then
  say "compiled for sm_90 before (CUDA $cuda, sources $key)"
  exit 0
fi

home=$site/nvidia/cu${cuda%%.*}
if [ ! -x "$home/bin/nvcc" ] || [ ! -x "$home/nvvm/bin/cicc" ] || [ ! -d "$home/include/crt" ]; then
  "$python" -m pip install --quiet --disable-pip-version-check \
    "nvidia-cuda-nvcc==$cuda.*" "nvidia-cuda-crt==$cuda.*" "nvidia-nvvm==$cuda.*"
fi
if [ ! -f "$home/include/nv/target" ] && [ ! -f "$home/include/cccl/nv/target" ]; then # comes with some versions of nvcc only
  "$python" -m pip install --quiet --disable-pip-version-check "nvidia-cuda-cccl==$cuda.*"
fi

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir "$work/lib" "$work/path"
ln -s "$home"/lib/libcudart.so.* "$work/lib/libcudart.so" # the package lacks the name that the linker looks for
ln -s "$root/cuda_ext" "$work/path/cl_bench_ops"
start=$SECONDS
if ! env CUDA_HOME="$home" TORCH_CUDA_ARCH_LIST=9.0 LIBRARY_PATH="$work/lib${LIBRARY_PATH:+:$LIBRARY_PATH}" \
  MAX_JOBS="${MAX_JOBS:-2}" PYTHONPATH="$work/path" PYTHONDONTWRITEBYTECODE=1 \
  "$python" -m cl_bench_ops build --cuda >"$work/log" 2>&1; then
  cat "$work/log"
  say "FAILED to compile for sm_90 (CUDA $cuda)"
  exit 1
fi
mkdir -p "$(dirname "$stamp")"
touch "$stamp"
say "compiled and linked for sm_90 in $((SECONDS - start)) s (CUDA $cuda, sources $key)"
