#!/usr/bin/env bash
# Builds the operator library for 64-bit Arm Linux and runs, in an emulator,
#   1. the C++ kernel tests, NEON against the scalar reference;
#   2. the library in the arm64 build of onnxruntime: the bits must be those that this machine's kernels give.
# Nothing is installed on this machine: Python and its libraries for arm64 are unpacked into the build folder.
#
#     PYTHON=.venv/bin/python custom_ops/tests/arm64.sh [build folder]      # a Python with onnxpq[compress]
set -euo pipefail
source=$(cd "$(dirname "$0")/.." && pwd)
compiler=aarch64-linux-gnu-g++
python=${PYTHON:-python3}
onnxruntime=1.23.2  # the import of 1.32.0 crashes in qemu 7.2, Debian 12's

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
"$emulator" "$build/test_threads"

# Debian's arm64 packages, by an apt with lists and a (then empty) list of installed packages of its own.
root=$build/root apt=$build/apt
if [ ! -e "$root/complete" ]; then
  mkdir -p "$root" "$apt/lists/partial" "$apt/cache/archives/partial"
  : > "$apt/status"
  options=(-qq -o APT::Architecture=arm64 -o APT::Architectures=arm64 -o "Dir::State=$apt" -o "Dir::Cache=$apt/cache"
    -o "Dir::State::status=$apt/status" -o Debug::NoLocking=1 -o APT::Sandbox::User=root)
  apt-get "${options[@]}" update
  apt-get "${options[@]}" -y --no-install-recommends --download-only install \
    python3-minimal libpython3-stdlib libstdc++6 > /dev/null
  for package in "$apt"/cache/archives/*.deb; do dpkg-deb -x "$package" "$root"; done
  version=$(basename "$(ls "$root"/usr/bin/python3.*)")
  "$python" -m pip install -q --no-deps --only-binary=:all: --python-version "${version#python}" \
    --platform manylinux_2_28_aarch64 --platform manylinux_2_27_aarch64 --platform manylinux2014_aarch64 \
    --target "$root/site" "onnxruntime==$onnxruntime" numpy
  touch "$root/complete"
fi
arm_python=$(ls "$root"/usr/bin/python3.*)

"$python" "$source/tests/cases.py" "$build/cases"
in_emulator() {
  ONNXPQ_SIMD=$1 PYTHONPATH=$root/site PYTHONDONTWRITEBYTECODE=1 "$emulator" -L "$root" "$arm_python" \
    "$source/tests/run_cases.py" "$build/cases" --library "$build/libonnxpq_ops.so" 2>&1
}
for level in neon scalar; do
  echo "-- the operator in onnxruntime for arm64, kernels: $level"
  in_emulator $level
done
echo "-- kernels that this processor does not have"
in_emulator avx2 | tee "$build/refusal.txt" || true
grep -q "ONNXPQ_SIMD is 'avx2'; this library on this processor has: scalar, neon" "$build/refusal.txt"
