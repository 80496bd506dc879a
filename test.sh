#!/bin/bash
# test.sh                    everything: lint, then every folder of tests
# test.sh FOLDER [ARG...]    one folder (unit contract integration gabbits system faults), ARGs go to pytest
# test.sh lint               ruff, mypy, import-linter, shellcheck
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
    system | faults) [ "$(id -u)" = 0 ] || { echo "test.sh: tests/$folder start real guests and need root: sudo ./test.sh $folder" >&2; return 1; } ;;
  esac
  .venv/bin/python -m pytest "tests/$folder" "$@"
}

main() {
  local what=${1:-all} folder failed=()
  [ $# -eq 0 ] || shift
  case " all lint ${folders[*]} " in
    *" $what "*) ;;
    *)
      sed -n '2,4s/^# //p' "$0" >&2
      exit 2
      ;;
  esac
  packaging/setup-host.sh --extra test run demo test
  case $what in
    lint) lint; return ;;
    all) ;;
    *) run_folder "$what" "$@"; return ;;
  esac
  lint || failed+=(lint)
  for folder in "${folders[@]}"; do run_folder "$folder" "$@" || failed+=("$folder"); done
  [ ${#failed[@]} -eq 0 ] || { echo "== failed: ${failed[*]}" >&2; exit 1; }
  echo "== all passed"
}

main "$@"
