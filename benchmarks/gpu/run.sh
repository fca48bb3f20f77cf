#!/usr/bin/env bash
# Everything that needs a GPU, in one bounded script:  benchmarks/gpu/run.sh [--device cuda|cpu] [--out DIR] [--seconds N]
# Each part has a time limit of its own and leaves one JSON; a part that fails or runs out of time is named and the next one
# goes on. The table is made from the JSONs (table.py). Options stand in the environment too: DEVICE, OUT, SECONDS_IN_ALL,
# PARTS, PYTHON. `--device cpu` rehearses all parts with cut sizes. Where the project is not installed, its folders are made
# importable in a temporary folder, with the wheels of .whl/ (wheels.sh) beside them. Results go to results/gpu, of a
# rehearsal to runs/gpu_rehearsal.
set -uo pipefail

root=$(cd "$(dirname "$0")/../.." && pwd)
device=${DEVICE:-cuda}
out=${OUT:-}
in_all=${SECONDS_IN_ALL:-535}
parts=${PARTS:-learning repeat tests operators streams seeds}
python=${PYTHON:-python3}
while [ $# -gt 0 ]; do
  case $1 in
    --device) device=$2 ;;
    --out) out=$2 ;;
    --seconds) in_all=$2 ;;
    --parts) parts=$2 ;;
    *) echo "run.sh: unknown option $1" >&2; exit 2 ;;
  esac
  shift 2
done
[ -n "$out" ] || { [ "$device" = cuda ] && out=$root/results/gpu || out=$root/runs/gpu_rehearsal; }
mkdir -p "$out"
out=$(cd "$out" && pwd)
cd "$root"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
say() { printf '[%3d s] %s\n' "$SECONDS" "$*"; }

export PYTHONSAFEPATH=1 PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 HF_HUB_OFFLINE=1 MLFLOW_DISABLE_TELEMETRY=true NO_COLOR=1
export CL_BENCH_GPU_TESTS=$device
if ! (cd / && "$python" -c 'import cl_bench, cl_bench_ops, cl_bench_methods') 2>/dev/null; then
  if compgen -G "$root/.whl/*.whl" >/dev/null; then
    "$python" -m pip install -q --disable-pip-version-check --no-index --no-deps --no-compile --no-cache-dir --upgrade \
      --target "$work/site" "$root"/.whl/*.whl || say "some wheels were not installed"
  fi
  "$python" "$root/benchmarks/gpu/importable.py" "$work/site" || exit 1
  export PYTHONPATH=$work/site
fi
export PYTHONPATH=$root/benchmarks/gpu${PYTHONPATH:+:$PYTHONPATH}
"$python" -c 'import torch; print("torch", torch.__version__, "|", torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU")' || exit 1
if [ "$device" = cuda ] && ! "$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
  say "no CUDA device; rehearse with --device cpu"
  exit 1
fi

# The kernels are compiled while the first parts run; tests and benchmarks find them in this cache.
cache=$work/pytest/d/cl_bench_ops
mkdir -p "$cache"
kinds=(build)
[ "$device" = cuda ] && kinds+=(--cuda)
(
  XDG_CACHE_HOME=$cache MAX_JOBS=$(nproc) timeout -k 5 240 "$python" -m cl_bench_ops "${kinds[@]}" >"$work/build.log" 2>&1
  status=$?
  echo "kernels: $(tail -n 1 "$work/build.log"), status $status" >"$work/build.done"
) &
builder=$!

# part NAME LIMIT COMMAND...: at most LIMIT seconds, or what is left of the whole
part() {
  local name=$1 limit=$2
  shift 2
  case " $parts " in *" $name "*) ;; *) return ;; esac
  local left=$((in_all - SECONDS - 5))
  if [ "$left" -lt 15 ]; then
    say "SKIPPED $name: no time is left"
    return
  fi
  [ "$limit" -gt "$left" ] && limit=$left
  say "$name (at most $limit s)"
  CL_BENCH_GPU_SECONDS=$((limit - 5)) timeout -k 5 "$limit" "$@"
  local status=$?
  case $status in
    0) say "$name done" ;;
    124 | 137) say "STOPPED $name: its $limit s were not enough; what it had written stays" ;;
    *) say "FAILED $name (status $status)" ;;
  esac
}
run() { # run NAME LIMIT: the part of that name
  part "$1" "$2" env XDG_CACHE_HOME="$cache" "$python" "benchmarks/gpu/$1.py" --device "$device" --out "$out"
}

run learning 185
run repeat 50
wait "$builder"
say "$(cat "$work/build.done")"
grep -q "^\(cuda\|cpu\)$" "$work/build.log" || tail -n 25 "$work/build.log"
part tests 110 env XDG_CACHE_HOME="$cache" "$python" benchmarks/gpu/gpu_tests.py --device "$device" --out "$out" --cache "$work/pytest"
run operators 80
run streams 70
run seeds 75
"$python" benchmarks/gpu/table.py "$out" >"$out/README.md" && cat "$out/README.md"
say "all parts are through; $out holds $(ls "$out" | tr '\n' ' ')"
