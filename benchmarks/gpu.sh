#!/usr/bin/env bash
# Everything that wants a CUDA card, in one run: the same bytes as the CPU, digests on both
# devices, rates. Needs torch with CUDA; installs nothing.
#     bash benchmarks/gpu.sh [FOLDER WITH THE ZOO]
set -euo pipefail
cd "$(dirname "$0")/.."
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
python3 -m pytest -q tests/kernels tests/codecs
python3 benchmarks/gpu.py --gigabytes 2 ${1:+--zoo "$1"}
python3 benchmarks/speed.py --gigabytes 2 --device cuda
