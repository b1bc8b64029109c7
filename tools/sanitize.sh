#!/bin/sh
# Builds the native modules with AddressSanitizer and UndefinedBehaviorSanitizer and runs the tests
# of kernels, plan, readers and fuzzing with them. Run it in an environment where slmq, its test extra,
# cmake, ninja, cython and pybind11 are installed. Usage: tools/sanitize.sh [pytest arguments]
set -eu
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# Lightly optimised: instrumented kernels take minutes to compile with -O3 and are no slower here.
cmake -S . -B "$work/build" -G Ninja -DCMAKE_BUILD_TYPE=Debug -DCMAKE_CXX_FLAGS_DEBUG=-O1 \
  -DSLMQ_SANITIZE=ON \
  -DSKBUILD_PROJECT_VERSION=0 -DPython_EXECUTABLE="$(command -v "$python")" \
  -Dpybind11_DIR="$("$python" -m pybind11 --cmakedir)"
cmake --build "$work/build"

# A copy of the package with these modules, in front of the installed one.
mkdir "$work/site"
cp -r src/slmq "$work/site/slmq"
find "$work/site" -name '_*.so' -delete
cmake --install "$work/build" --prefix "$work/site" >/dev/null
cat > "$work/site/sitecustomize.py" <<'PYTHON'
import sys

# An editable install's finder would come before the path.
sys.meta_path[:] = [f for f in sys.meta_path if "editable" not in type(f).__module__]
PYTHON

preload="$(${CC:-cc} -print-file-name=libasan.so) $(${CC:-cc} -print-file-name=libubsan.so)"
[ $# -gt 0 ] || set -- tests/formats/test_formats.py tests/native/test_kernels.py tests/native/test_row_kernels.py \
  tests/native/test_attention.py tests/native/test_kernel_input.py tests/plan/test_plan_input.py tests/plan/test_plan.py \
  tests/engine/test_exactness.py tests/models/test_llama.py tests/checkpoint/test_fuzz_readers.py tests/generation/test_sampling.py
PYTHONPATH="$work/site" LD_PRELOAD="$preload" ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1 \
  "$python" -c 'from slmq import _native; print("sanitized:", _native.__file__)'
PYTHONPATH="$work/site" LD_PRELOAD="$preload" ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1 \
  "$python" -m pytest -q -p no:cacheprovider "$@"
