#!/usr/bin/env bash
# Builds the operator library for 64-bit Arm Linux and runs the C++ kernel tests, NEON against the scalar reference, in
# an emulator. Installs nothing: says which Debian packages are missing.
#
#     custom_ops/tests/arm64.sh [build folder]
set -euo pipefail
source=$(cd "$(dirname "$0")/.." && pwd)
compiler=aarch64-linux-gnu-g++

missing=()
command -v cmake >/dev/null || missing+=(cmake)
command -v "$compiler" >/dev/null || missing+=(g++-aarch64-linux-gnu)
emulator=$(command -v qemu-aarch64 || command -v qemu-aarch64-static || true)
[ -n "$emulator" ] || missing+=(qemu-user)
if [ ${#missing[@]} -gt 0 ]; then
  echo "arm64.sh needs the Debian packages: ${missing[*]}" >&2
  exit 1
fi

build=${1:-}
if [ -z "$build" ]; then
  build=$(mktemp -d)
  trap 'rm -rf "$build"' EXIT
fi
cmake -S "$source" -B "$build" -DCMAKE_SYSTEM_NAME=Linux -DCMAKE_SYSTEM_PROCESSOR=aarch64 \
  -DCMAKE_CXX_COMPILER="$compiler" -DCMAKE_BUILD_TYPE=Release -DCMAKE_CROSSCOMPILING_EMULATOR="$emulator" \
  -DCMAKE_EXE_LINKER_FLAGS=-static -DONNXPQ_WERROR=ON -DONNXPQ_BUILD_TESTS=ON
cmake --build "$build" --parallel 2
"$emulator" "$build/test_kernels" | tee "$build/levels.txt"
grep -q neon "$build/levels.txt" || { echo "the NEON kernels were not among the levels tested" >&2; exit 1; }
