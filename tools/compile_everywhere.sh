#!/usr/bin/env bash
# Compiles and links the C++ of slmq (core, kernels of every table, plan, self test) for all platforms
# that wheels are made for, with the clang and the system headers of the package index' `ziglang`.
# Nothing is run: the programs are slmq_selftest for those who have the machines.
#
#   tools/compile_everywhere.sh [TARGET...]      default: all of the list below
#
# OUT=DIR keeps the programs, as slmq_selftest-TARGET. ZIG=COMMAND: a zig that is there already (default:
# a virtual environment with ziglang is made). LINK=0 stops after compiling: linking first builds zig's
# C++ library for the target, once. Status 0: everything compiles without a warning; 1: not.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

declare -A systems=(
  [x86_64-linux-gnu.2.17]='Linux x86_64'
  [aarch64-linux-gnu.2.17]='Linux aarch64'
  [x86_64-linux-musl]='Linux x86_64'
  [aarch64-macos]='Darwin arm64'
  [x86_64-macos]='Darwin x86_64'
  [x86_64-windows-gnu]='Windows AMD64'
  [aarch64-windows-gnu]='Windows ARM64'
)
[ $# -gt 0 ] || set -- x86_64-linux-gnu.2.17 aarch64-linux-gnu.2.17 aarch64-macos x86_64-macos \
  x86_64-windows-gnu aarch64-windows-gnu

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
if [ -z "${ZIG:-}" ]; then
  python3 -m venv "$work/zig"
  "$work/zig/bin/pip" install --quiet ziglang
  ZIG="$work/zig/bin/python -m ziglang"
fi

status=0
for target in "$@"; do
  read -r system processor <<<"${systems[$target]:?expected one of ${!systems[*]}}"
  # Names of ARM features, and why -O2 and no sanitizers: see build_wheels.sh.
  cat >"$work/c++-$target" <<EOF
#!/bin/sh
for argument in "\$@"; do
  shift
  case \$argument in
    -march=armv8.2-a+*) argument=-mcpu=generic+\${argument#-march=armv8.2-a+} ;;
  esac
  set -- "\$@" "\$argument"
done
exec $ZIG c++ -target $target -mcpu=baseline -O2 -fno-sanitize=all "\$@"
EOF
  printf '#!/bin/sh\nexec %s ar "$@"\n' "$ZIG" >"$work/ar"
  chmod +x "$work/c++-$target" "$work/ar"
  goal=slmq_selftest
  [ "${LINK:-1}" = 1 ] || goal=slmq_objects
  log=$work/$target.log
  # Compiler checks make archives, not programs, so that LINK=0 needs no C++ library.
  if { cmake -S . -B "$work/$target" -DCMAKE_SYSTEM_NAME="$system" \
    -DCMAKE_SYSTEM_PROCESSOR="$processor" -DCMAKE_CXX_COMPILER="$work/c++-$target" \
    -DCMAKE_AR="$work/ar" -DCMAKE_RANLIB=/bin/true -DCMAKE_NM=CMAKE_NM-NOTFOUND \
    -DCMAKE_TRY_COMPILE_TARGET_TYPE=STATIC_LIBRARY -DCMAKE_OSX_SYSROOT= \
    -DSLMQ_SELFTEST=ON -DSLMQ_STATIC=OFF -DSLMQ_PYTHON=OFF &&
    cmake --build "$work/$target" --parallel "${JOBS:-$(nproc)}" --target "$goal"; } >"$log" 2>&1 &&
    ! grep -q 'warning:' "$log"; then
    echo "$target: compiles"
    if [ -n "${OUT:-}" ] && [ "$goal" = slmq_selftest ]; then
      mkdir -p "$OUT"
      find "$work/$target" -maxdepth 1 -name 'slmq_selftest*' -type f \
        -exec cp {} "$OUT/slmq_selftest-$target" \;
    fi
  else
    echo "$target: FAILS"
    grep -E 'warning:|error' "$log" | sort | uniq -c | sort -rn | head -n 20 || tail -n 5 "$log"
    status=1
  fi
done
exit $status
