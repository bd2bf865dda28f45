#!/usr/bin/env bash
# Makes this checkout ready: system packages, a Python environment that holds LibTorch, and the built program. Safe to run
# again: what is done is skipped. Leaves nothing outside the checkout but system packages (and --prefix, when given).
set -euo pipefail

usage() {
  cat <<'EOF'
usage: ./setup.sh [--device auto|cpu|cuda] [--tests] [--prefix DIR] [--no-build] [--skip-packages]

  --device D        auto (default): cuda if this machine has a usable NVIDIA GPU, else cpu. An explicit choice is remembered
                    for later runs of setup.sh, quickstart.sh and test.sh; --device auto forgets it.
  --tests           build the tests too
  --prefix DIR      also install the program into DIR (DIR/bin/muster). It still uses LibTorch from this checkout's .venv:
                    keep the checkout where it is.
  --no-build        stop before configuring and building
  --skip-packages   do not check system packages (they come from environment modules, Spack, ...)
EOF
}

fail() { printf 'setup.sh: %s\n' "$*" >&2; exit 1; }

device='' prefix='' tests=no build=yes check_packages=yes
while (($#)); do
  case $1 in
    --device) (($# > 1)) || fail "--device needs a value: auto, cpu or cuda"; device=$2; shift ;;
    --device=*) device=${1#*=} ;;
    --prefix) (($# > 1)) || fail "--prefix needs a folder"; prefix=$2; shift ;;
    --prefix=*) prefix=${1#*=} ;;
    --tests) tests=yes ;;
    --no-build) build=no ;;
    --skip-packages) check_packages=no ;;
    -h | --help) usage; exit 0 ;;
    *) usage >&2; fail "unknown argument: $1" ;;
  esac
  shift
done
[[ $device =~ ^(|auto|cpu|cuda)$ ]] || fail "--device must be auto, cpu or cuda, not '$device'"
[[ -z $prefix || $build == yes ]] || fail "--prefix installs what was built: leave out --no-build"
[[ -z $prefix ]] || prefix=$(realpath -m -- "$prefix")

root=$(CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd -P)
cd "$root"
[[ $root != *[[:space:]]* ]] || fail "the path of this checkout contains a space ($root), which MPI's compiler wrappers do not bear: move it"
[[ -w $root ]] || fail "$root is not writable for $(id -un): run as the user who owns the checkout, or clone it again"

# Two runs at once would write the same files; the lock ends with this process.
exec 9<"$root/setup.sh"
if command -v flock >/dev/null && ! flock -n 9; then
  echo "Another setup.sh is at work in this checkout: waiting for it."
  flock 9 || true
fi

started=$SECONDS step=0 step_started=0 steps=4
step() {  # step TITLE ESTIMATE
  step=$((step + 1)) step_started=$SECONDS
  printf '\n[%d/%d] %s (%s)\n' "$step" "$steps" "$1" "$2"
}
duration() { if (($1 < 60)); then printf '%d s' "$1"; else printf '%d min %02d s' $(($1 / 60)) $(($1 % 60)); fi; }
finish_step() { printf '      %s, %s\n' "${1:-done}" "$(duration $((SECONDS - step_started)))"; }
note() { printf '      %s\n' "$*"; }

attempt() {  # attempt COMMAND...: up to three times, for networks that hiccup
  local try
  for try in 1 2 3; do
    "$@" && return 0
    ((try == 3)) || { note "failed; once more in $((try * 10)) s"; sleep $((try * 10)); }
  done
  return 1
}

# Python and compiler settings of an active conda or modules environment would mix foreign libraries into the build.
unset PYTHONPATH PYTHONHOME
export PYTHONNOUSERSITE=1 PIP_USER=0 PIP_DISABLE_PIP_VERSION_CHECK=1
if [[ -n ${CONDA_PREFIX:-} ]]; then
  echo "A conda environment is active ($CONDA_PREFIX); the build does not use it."
  PATH=$(tr ':' '\n' <<<"$PATH" | awk -v conda="$CONDA_PREFIX/" 'index($0 "/", conda) != 1' | paste -sd:)
  unset CC CXX CFLAGS CXXFLAGS CPPFLAGS LDFLAGS CPATH CMAKE_PREFIX_PATH CMAKE_ARGS CONDA_BUILD_SYSROOT
fi

mkdir -p .muster
if [[ $device == auto ]]; then
  rm -f .muster/device
elif [[ -n $device ]]; then
  echo "$device" >.muster/device
elif [[ -f .muster/device ]]; then
  device=$(<.muster/device)
  echo "Device: $device, as chosen earlier (--device auto forgets it)."
fi
if [[ -z $device || $device == auto ]]; then
  device=cpu
  if gpus=$(nvidia-smi -L 2>/dev/null) && grep -q '^GPU ' <<<"$gpus"; then
    driver=$(nvidia-smi --query-gpu=driver_version --format=csv,noheader 2>/dev/null | head -n 1 || true)
    if ((10#$(sed 's/[^0-9].*//;s/^$/0/' <<<"${driver:-0}") >= 580)); then
      device=cuda
      echo "Device: cuda (found $(grep -c '^GPU ' <<<"$gpus") GPU)."
    else
      echo "Device: cpu. There is a GPU, but its driver ($driver) is older than 580, which this LibTorch (CUDA 13) needs."
    fi
  else
    echo "Device: cpu (no NVIDIA GPU found; --device cuda builds for one all the same)."
  fi
fi

nvcc=
if [[ $device == cuda ]]; then
  for candidate in /usr/local/cuda/bin/nvcc "$(command -v nvcc || true)"; do
    if [[ -x $candidate ]] && "$candidate" --version | grep -q 'release 13\.'; then nvcc=$candidate; break; fi
  done
  [[ -n $nvcc ]] || steps=$((steps + 1))
fi
[[ $build == yes ]] || steps=$((steps - 2))
[[ -z $prefix ]] || steps=$((steps + 1))

# --- system packages -------------------------------------------------------------------------------------------------------
if ((EUID == 0)); then sudo=(); elif sudo -n true 2>/dev/null; then sudo=(sudo -n); else sudo=(no); fi
missing=()
if [[ $check_packages == yes ]] && command -v dpkg-query >/dev/null; then
  lists=(packages.txt)
  # The tests that need Slurm need root as well: who cannot install it could not run them. A site's own Slurm gets no second one beside it.
  if [[ $tests == yes && ${sudo[0]:-} != no ]] && { ! sbatch=$(command -v sbatch) || dpkg-query -S "$(realpath "$sbatch")" >/dev/null 2>&1; }; then
    lists+=(packages-slurm.txt)
  fi
  while read -r package; do
    [[ $(dpkg-query -W -f='${db:Status-Status}' "$package" 2>/dev/null) == installed ]] || missing+=("$package")
  done < <(sed -e 's/#.*//' -e '/^[[:space:]]*$/d' "${lists[@]}")
fi
if [[ $check_packages == no ]]; then
  step "System packages" "skipped, as asked"
elif ! command -v dpkg-query >/dev/null; then
  step "System packages" "not a Debian system: looking for the programs only"
  for program in g++ cmake ninja mpicc mpirun protoc; do command -v "$program" >/dev/null || missing+=("$program"); done
  ((${#missing[@]} == 0)) || fail "not found: ${missing[*]}. Install what packages.txt lists, by your system's names for it."
  finish_step
elif ((${#missing[@]} == 0)); then
  step "System packages" "a moment"
  finish_step "all there"
else
  step "System packages: ${missing[*]}" "about 1 to 3 minutes"
  install="apt-get install -y --no-install-recommends ${missing[*]}"
  if [[ ${sudo[0]:-} == no ]]; then
    echo "Some system packages are missing and you are not root. Ask an administrator to run this line, then start again:" >&2
    printf '\n    sudo apt-get update && sudo %s\n\n' "$install" >&2
    exit 1
  fi
  apt() {
    "${sudo[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -q -o Acquire::Retries=3 -o DPkg::Lock::Timeout=300 \
      -o Dpkg::Use-Pty=0 "$@" </dev/null >>.muster/apt.log 2>&1
  }
  : >.muster/apt.log
  note "apt-get writes to .muster/apt.log"
  if ! attempt apt update || ! attempt apt install -y --no-install-recommends "${missing[@]}"; then
    tail -n 15 .muster/apt.log >&2
    fail "apt-get could not install the packages (full output: .muster/apt.log)"
  fi
  finish_step
fi

# --- Python environment ----------------------------------------------------------------------------------------------------
python_works() { "$1" -c 'import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 14))' 2>/dev/null; }
find_python() {
  local candidate
  for candidate in /usr/bin/python3 python3 python3.14 python3.13 python3.12 python3.11; do
    candidate=$(command -v "$candidate") && python_works "$candidate" && { echo "$candidate"; return 0; }
  done
  return 1
}
pip_install() {  # pip_install FILE: skipped when the very same file was installed before
  local marker=.venv/.installed-$1 wanted
  wanted=$(sha256sum <"$1")
  if [[ -f $marker && $(<"$marker") == "$wanted" ]]; then finish_step "already there"; return; fi
  # pip unpacks gigabytes: on this disk, not in a small /tmp or a home folder with a quota.
  mkdir -p .venv/tmp
  attempt env TMPDIR="$root/.venv/tmp" PIP_DEFAULT_TIMEOUT="${PIP_DEFAULT_TIMEOUT:-60}" \
    .venv/bin/python -m pip install --no-cache-dir --no-input --retries 5 -r "$1" </dev/null ||
    fail "pip could not install $1: is the network (or PIP_INDEX_URL) in order? Running setup.sh again goes on from here."
  rm -rf .venv/tmp
  echo "$wanted" >"$marker"
  finish_step
}

step "Python environment .venv with LibTorch 2.11.0" "about 5 GB: 1 to 5 minutes on a fast line"
if ! .venv/bin/python -m pip --version >/dev/null 2>&1; then
  free_kb=$(df -Pk . | awk 'NR == 2 {print $4}')
  ((free_kb > 9000000)) || fail "$((free_kb / 1000000)) GB free in $root, 9 GB are needed while installing (5 GB stay)"
  python=$(find_python) || fail "no Python 3.11 to 3.14 with its venv module found (Debian: apt-get install python3-venv)"
  "$python" -m venv --clear .venv
fi
pip_install requirements.txt

cmake_options=(-DMUSTER_CUDA=OFF)
if [[ $device == cuda ]]; then
  if [[ -z $nvcc ]]; then
    step "CUDA compiler, into .venv (this system has no CUDA 13 toolkit)" "about 100 MB: half a minute"
    pip_install requirements-cuda.txt
    cuda=$(.venv/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib") + "/nvidia/cu13")')
    # The wheels lack what linkers look for: lib64 and unversioned library names.
    ln -sfn lib "$cuda/lib64"
    for name in cudart nvrtc cublas cublasLt cufft curand cusparse cusolver nvJitLink; do
      for library in "$cuda/lib/lib$name".so.[0-9]*; do
        [[ ! -e $library ]] || ln -sf "${library##*/}" "$cuda/lib/lib$name.so"
      done
    done
    nvcc=$cuda/bin/nvcc
  fi
  cuda=$(dirname "$(dirname "$(realpath "$nvcc")")")
  cmake_options=(-DMUSTER_CUDA=ON "-DCMAKE_CUDA_COMPILER=$nvcc" "-DCUDAToolkit_ROOT=$cuda")
fi

if [[ $build == no ]]; then
  printf '\nReady to build, after %s: ./setup.sh\n' "$(duration $((SECONDS - started)))"
  exit 0
fi

# --- configure and build ---------------------------------------------------------------------------------------------------
step "Configure build/ for $device" "about 10 s"
if [[ -f build/CMakeCache.txt ]]; then
  cached() { sed -n "s/^$1:[A-Z]*=//p" build/CMakeCache.txt; }
  # CMake refuses a build folder that was moved, and cannot change a compiler in place.
  if [[ $(cached CMAKE_HOME_DIRECTORY) != "$root" || ($device == cuda && $(cached CMAKE_CUDA_COMPILER) != "$nvcc" &&
    -n $(cached CMAKE_CUDA_COMPILER)) ]]; then
    note "build/ belongs to another place or compiler: starting it afresh"
    rm -rf build
  fi
fi
if ! cmake --preset release "${cmake_options[@]}" ${prefix:+"-DCMAKE_INSTALL_PREFIX=$prefix"} >.muster/configure.log 2>&1; then
  cat .muster/configure.log >&2
  fail "CMake could not configure build/ (see above)"
fi
finish_step

targets=(muster)
[[ $tests == no ]] || targets=(all)
# A LibTorch source takes up to 1.5 GB to compile.
memory_kb=$(awk '/^MemAvailable:/ {print $2}' /proc/meminfo)
jobs=$((memory_kb / 1500000)) cores=$(nproc)
((jobs <= cores)) || jobs=$cores
((jobs >= 1)) || jobs=1
# Without the rule that regenerates build.ninja, a dry run looks past it at the real work.
sed '/^build build\.ninja:/,/^$/d' build/build.ninja >build/.dry-run.ninja
pending=$(ninja -C build -f .dry-run.ninja -n "${targets[@]}" | grep -c '^\[' || true)
estimate="$pending steps, $jobs at a time"
if ((pending == 0)); then
  estimate="nothing to do"
elif ((pending * 5 / jobs > 60)); then
  estimate+=": about $((pending * 5 / jobs / 60)) to $((pending * 12 / jobs / 60 + 1)) minutes, the faster the idler the machine"
fi
step "Build" "$estimate"
[[ -n ${HOME:-} && -w ${HOME:-} ]] || export CCACHE_DIR="${CCACHE_DIR:-$root/.muster/ccache}"
NINJA_STATUS='      [%f/%t, %e s] ' ninja -C build -j "$jobs" "${targets[@]}" 9<&-
finish_step

if [[ -n $prefix ]]; then
  step "Install into $prefix" "a moment"
  cmake --install build >.muster/install.log || { cat .muster/install.log >&2; fail "could not install into $prefix"; }
  note "$prefix/bin/muster uses LibTorch from $root/.venv: keep this checkout"
  finish_step
fi

printf '\nmuster is ready, after %s. Next:  . ./env.sh && muster --help\n' "$(duration $((SECONDS - started)))"
