#!/usr/bin/env bash
# Fetch, into the ignored folder .whl/, the packages that a bare GPU machine lacks:  benchmarks/gpu/wheels.sh
# For a machine with torch, torchvision, timm, peft, pytorch-lightning, torchmetrics, safetensors, numpy, scipy, scikit-learn,
# pytest and hypothesis, and no network. Avalanche's needs that its Naive strategy never calls are stood in for
# (avalanche_side.py), not carried.
set -euo pipefail
root=$(cd "$(dirname "$0")/../.." && pwd)
python=${PYTHON:-python3}
rm -rf "$root/.whl"
"$python" -m pip download -q --disable-pip-version-check --no-deps --only-binary=:all: --python-version 3.12 --implementation cp \
  --platform manylinux_2_28_x86_64 --platform manylinux_2_27_x86_64 --platform manylinux_2_17_x86_64 \
  --platform manylinux2014_x86_64 -d "$root/.whl" \
  jsonargparse==4.53.0 open-clip-torch==3.3.0 ftfy==6.3.1 wcwidth==0.9.4 \
  docstring-parser==0.18.0 typeshed-client==2.15.0 importlib_resources==7.1.0 avalanche-lib==0.6.0 dill==0.4.1
du -sh "$root/.whl"
