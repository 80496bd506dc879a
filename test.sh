#!/bin/bash
# test.sh                    everything: lint, then every folder of tests
# test.sh FOLDER [ARG...]    one folder (unit contract integration gabbits system faults), ARGs go to pytest
# test.sh lint               ruff, mypy, import-linter, shellcheck
# test.sh soak [MINUTES] [--seed N] [--report FILE]
#                            random requests and faults on a real cluster; with a seed, the same ones again (tests/faults)
#
# Installs what is missing (Debian packages, .venv and .cache in this folder). Tests start their own servers on free ports of
# loopback; system and faults start real guests and need root. With CI=true a skipped test is a failed one.
#
# With everything, and more than two processors or TEST_LANES=2, two folders run at once: what runs beside is printed at the end.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
cd "$here"
folders=(unit contract integration gabbits system faults)
# Of those whose files stay together, the files that take longest, which begin first: so nobody waits for one of them at the end.
declare -A longest=(
  [system]="cloud_image docker_sh demo package doctor podman join guest spoofing"
  [faults]="restored_store ambiguous_answers random_faults degraded store_faults"
)

# All of them, whatever the others say
lint() {
  local bad=0
  echo "== lint"
  .venv/bin/ruff check || bad=1
  .venv/bin/ruff format --check || bad=1
  .venv/bin/mypy || bad=1
  MYPYPATH=packaging .venv/bin/mypy --config-file= --strict -p demo -m manpages || bad=1
  .venv/bin/lint-imports || bad=1
  shellcheck -x ./*.sh .ci/run packaging/*.sh packaging/run-* || bad=1
  return $bad
}

# files_of FOLDER: what pytest is to look at, in that order
files_of() {
  local name first=" "
  if [ -z "${longest[$1]:-}" ]; then echo "tests/$1"; return; fi
  for name in ${longest[$1]}; do
    echo "tests/$1/test_$name.py"
    first+="tests/$1/test_$name.py "
  done
  for name in tests/"$1"/test_*.py; do [[ $first = *" $name "* ]] || echo "$name"; done
}

run_folder() {
  local folder=$1 files
  shift
  mapfile -t files < <(files_of "$folder")
  echo "== tests/$folder"
  case $folder in
    system | faults*) [ "$(id -u)" = 0 ] || { echo "test.sh: tests/$folder start real guests and need root: sudo ./test.sh $folder" >&2; return 1; } ;;
  esac
  # Most of what these wait for is time, not the processor. What starts real guests needs that as well.
  case $folder in
    gabbits) ;; # whose fixtures are for suites
    unit) set -- -n 2 "$@" ;;
    system) set -- -n 2 --dist loadfile --no-loadscope-reorder "$@" ;;
    faults*) set -- -n 3 --dist loadfile --no-loadscope-reorder "$@" ;; # a file ends with a look at what all of its tests left
    *) set -- -n 4 --dist worksteal "$@" ;;
  esac
  .venv/bin/python -m pytest "${files[@]}" "$@"
}

# -- everything ---------------------------------------------------------------------------------------------------------------

# lane NAME PART...: do those of the parts that the other lane has not begun, with ARGs for pytest in $arguments; what failed is
# kept in $work
lane() {
  local name=$1 part
  shift
  for part in "$@"; do
    mkdir "$work/begun-$part" 2>/dev/null || continue
    if [ "$part" = lint ]; then lint; else run_folder "$part" "${arguments[@]}"; fi || echo "$part" >>"$work/failed-$name"
  done
}

# On more than two processors two lanes, which begin with what takes longest at either end: there is something to do while one of
# them waits. Two have enough to do with one, and tests that wait for something have less time where everything is slow.
everything() {
  local parts=(lint unit contract integration gabbits faults system) reversed=() part processors
  arguments=("$@") beside=""
  processors=$(nproc)
  work=$(mktemp -d "${TMPDIR:-/tmp}/etcd-compute-tests.XXXXXX")
  trap 'end_beside; rm -rf "$work"' EXIT
  if [ "${TEST_LANES:-$((processors > 2 ? 2 : 1))}" = 2 ]; then
    for part in "${parts[@]}"; do reversed=("$part" "${reversed[@]}"); done
    set -m # a process group of its own, which ends when this one is interrupted
    lane beside "${reversed[@]}" >"$work/beside.log" 2>&1 </dev/null &
    beside=$!
    set +m
  fi
  lane first "${parts[@]}"
  [ -z "$beside" ] || wait "$beside" || true
  beside=""
  cat "$work/beside.log" 2>/dev/null || true
  part=$(cat "$work"/failed-* 2>/dev/null | tr '\n' ' ' || true)
  [ -z "$part" ] || { echo "== failed: $part" >&2; return 1; }
  echo "== all passed"
}

# Of an interrupted run
end_beside() {
  [ -n "${beside:-}" ] || return 0
  kill -TERM -- "-$beside" 2>/dev/null || true
  wait "$beside" 2>/dev/null || true
  cat "$work/beside.log"
}

usage() {
  sed -n '2,6s/^# //p' "$0" >&2
  exit 2
}

# Options become environment variables of tests/faults/test_random_faults.py, which says what they do.
soak() {
  while [ $# -gt 0 ]; do
    case $1 in
      --seed) [[ ${2:-} =~ ^[0-9]+$ ]] || usage; export SOAK_SEED=$2; shift ;;
      --report) [ -n "${2:-}" ] || usage; SOAK_REPORT=$(realpath -m "$2"); export SOAK_REPORT; shift ;;
      *) [[ $1 =~ ^[0-9]+(\.[0-9]+)?$ ]] || usage; export SOAK_MINUTES=$1 ;;
    esac
    shift
  done
  run_folder faults/test_random_faults.py -s
}

main() {
  local what=${1:-all}
  [ $# -eq 0 ] || shift
  case " all lint soak ${folders[*]} " in
    *" $what "*) ;;
    *) usage ;;
  esac
  packaging/setup-host.sh --extra test run demo test guestfs
  case $what in
    lint) lint; return ;;
    soak) soak "$@"; return ;;
    all) everything "$@" ;;
    *) run_folder "$what" "$@" ;;
  esac
}

main "$@"
