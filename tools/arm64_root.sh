#!/usr/bin/env bash
# Installs the aarch64 wheel in a Debian for 64-bit ARM that has no compiler, run by QEMU, and lets it
# answer: self test, tests, and a model's text and logits, which must be those of this machine.
#
#   tools/arm64_root.sh WHEEL [MODEL [OPTIONS of tools/answer.py]]
#
# WHEEL comes from tools/build_wheels.sh aarch64. MODEL is a file or folder; without it a tiny model is
# made. PYTHON=FILE: an interpreter of this machine with slmq of the same source (default python3).
# ROOT=DIR: keep the Debian there, and use it again. TESTS='FILES': what pytest runs there. Must be
# root. Status 0: the same; 1: not; 69: a program is missing.
#
# Programs for ARM start through a binfmt_misc of their own, in a user namespace (Linux 6.7 or newer);
# on an older kernel the handler of Debian's qemu-user-static has to be registered already.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

if [ $# -lt 1 ] || [ ! -f "$1" ]; then
  echo 'usage: tools/arm64_root.sh WHEEL [MODEL [OPTIONS]]' >&2
  exit 2
fi
wheel=$1
model=${2:-}
shift $(($# < 2 ? $# : 2))
python=${PYTHON:-python3}
tests=${TESTS:-tests/machine/test_cpu.py tests/models/test_llama.py tests/engine/test_exactness.py tests/generation/test_generate.py}

missing=()
for program in mmdebstrap qemu-aarch64-static unshare "$python"; do
  command -v "$program" >/dev/null || missing+=("$program")
done
if [ ${#missing[@]} -gt 0 ]; then
  echo "arm64_root: needs ${missing[*]}; on Debian and Ubuntu:" \
    'apt-get install mmdebstrap qemu-user-static util-linux' >&2
  exit 69
fi

if [ -n "${ROOT:-}" ]; then
  root=$ROOT
else
  root=$(mktemp -d)
  trap 'rm -rf "$root"' EXIT
fi

step() { printf '\n== %s\n' "$*"; }

# Unpacked only: the programs run without what packages' own scripts would set up.
if [ ! -e "$root/usr/bin/python3" ]; then
  step 'Debian 12 for arm64'
  mmdebstrap --quiet --variant=extract --arch=arm64 \
    --include=coreutils,dash,libstdc++6,python3,python3-venv,python3-pip bookworm "$root"
fi
if [ -e "$root/usr/bin/gcc" ]; then
  echo 'arm64_root: a compiler is there: the wheel would prove nothing' >&2
  exit 1
fi

inside() { # CPU command...: runs in the root
  local cpu=$1
  shift
  # shellcheck disable=SC2016 # expanded by the inner shell
  QEMU_CPU=$cpu unshare --user --map-root-user --mount sh -euc '
    root=$1 qemu=$2
    shift 2
    binfmt=/proc/sys/fs/binfmt_misc
    if [ ! -e "$binfmt/qemu-aarch64" ]; then
      mount -t binfmt_misc none "$binfmt"
      magic="\x7fELF\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\xb7\x00"
      mask="\xff\xff\xff\xff\xff\xff\xff\x00\xff\xff\xff\xff\xff\xff\xff\xff\xfe\xff\xff\xff"
      printf %s ":qemu-aarch64:M::$magic:$mask:$qemu:FP" >"$binfmt/register"
    fi
    mkdir -p "$root/proc" "$root/sys" "$root/dev" "$root/tmp"
    for folder in proc sys dev; do mount --rbind "/$folder" "$root/$folder"; done
    exec chroot "$root" /usr/bin/env -i HOME=/root PATH=/slmq-venv/bin:/usr/bin:/bin \
      LC_ALL=C.UTF-8 QEMU_CPU="$QEMU_CPU" HF_HUB_OFFLINE=1 "$@"
  ' sh "$root" "$(command -v qemu-aarch64-static)" "$@"
}

step "$(basename "$wheel") in $(inside max uname -m)"
mkdir -p "$root/wheels"
"$python" -m pip download --quiet --dest "$root/wheels" --only-binary=:all: --python-version 3.11 \
  --platform manylinux2014_aarch64 --platform manylinux_2_17_aarch64 \
  --platform manylinux_2_28_aarch64 --platform manylinux_2_31_aarch64 "$wheel" pytest hypothesis gguf safetensors
cp "$wheel" "$root/wheels/"
[ -x "$root/slmq-venv/bin/python" ] || inside max python3 -m venv /slmq-venv
inside max python -m pip install --quiet --no-index --find-links /wheels --force-reinstall --no-deps \
  "/wheels/$(basename "$wheel")"
inside max python -m pip install --quiet --no-index --find-links /wheels slmq pytest hypothesis gguf \
  safetensors
rm -rf "$root/slmq"
mkdir "$root/slmq"
cp -r tests tools pyproject.toml "$root/slmq"
inside max slmq doctor || :

step 'Self test'
for cpu in cortex-a72 neoverse-n1 max; do
  echo "-- $cpu"
  inside "$cpu" slmq doctor --selftest
done

step 'One answer'
there=()
here=()
if [ -n "$model" ]; then
  cp -r "$model" "$root/slmq/"
  there=("/slmq/$(basename "$model")")
  here=("$model")
fi
"$python" tools/answer.py "${here[@]}" "$@" >"$root/slmq/wanted.json"
cat "$root/slmq/wanted.json"
for cpu in cortex-a72 neoverse-n1 max; do
  echo "-- $cpu"
  inside "$cpu" python /slmq/tools/answer.py "${there[@]}" "$@" >"$root/slmq/found.json"
  if ! cmp -s "$root/slmq/wanted.json" "$root/slmq/found.json"; then
    echo "DIFFERS: $(cat "$root/slmq/found.json")"
    exit 1
  fi
  echo 'the same text and the same bits of logits'
done

step 'Tests'
# shellcheck disable=SC2086 # a list of files
inside max sh -c "cd /slmq && python -m pytest -q -p no:cacheprovider -m 'not slow' $tests"
