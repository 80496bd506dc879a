#!/bin/bash
# test.sh                    everything: lint, then every folder of tests
# test.sh FOLDER [ARG...]    one folder (unit contract integration gabbits system faults), ARGs go to pytest
# test.sh lint               ruff, mypy, import-linter, shellcheck
# test.sh soak [MINUTES] [--seed N] [--report FILE]
#                            random requests and faults on a real cluster; with a seed, the same ones again (tests/faults)
#
# Installs what is missing (Debian packages, .venv and .cache in this folder). Tests start their own servers on free ports of
# loopback; system and faults start real guests and need root. With CI=true a skipped test is a failed one.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
cd "$here"
folders=(unit contract integration gabbits system faults)

# All of them, whatever the others say
lint() {
  local bad=0
  echo "== lint"
  .venv/bin/ruff check || bad=1
  .venv/bin/ruff format --check || bad=1
  .venv/bin/mypy || bad=1
  MYPYPATH=packaging .venv/bin/mypy --config-file= --strict -p demo || bad=1
  .venv/bin/lint-imports || bad=1
  shellcheck -x ./*.sh .ci/run packaging/*.sh packaging/run-* || bad=1
  return $bad
}

run_folder() {
  local folder=$1
  shift
  echo "== tests/$folder"
  case $folder in
    system | faults*) [ "$(id -u)" = 0 ] || { echo "test.sh: tests/$folder start real guests and need root: sudo ./test.sh $folder" >&2; return 1; } ;;
  esac
  # Most of what these wait for is time, not the processor; files stay together, for the sake of the clusters that they share.
  case $folder in
    integration | faults) set -- -n 2 --dist loadfile "$@" ;;
  esac
  .venv/bin/python -m pytest "tests/$folder" "$@"
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
  local what=${1:-all} folder failed=()
  [ $# -eq 0 ] || shift
  case " all lint soak ${folders[*]} " in
    *" $what "*) ;;
    *) usage ;;
  esac
  packaging/setup-host.sh --extra test run demo test
  case $what in
    lint) lint; return ;;
    soak) soak "$@"; return ;;
    all) ;;
    *) run_folder "$what" "$@"; return ;;
  esac
  lint || failed+=(lint)
  for folder in "${folders[@]}"; do run_folder "$folder" "$@" || failed+=("$folder"); done
  [ ${#failed[@]} -eq 0 ] || { echo "== failed: ${failed[*]}" >&2; exit 1; }
  echo "== all passed"
}

main "$@"
