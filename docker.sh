#!/bin/bash
# docker.sh [up]                     etcd, Placement and its database in containers, by docker or podman
# docker.sh status                   which of them run and answer
# docker.sh logs [etcd|database|placement]
# docker.sh down [--volumes]         stop them; with --volumes forget what they hold
# docker.sh backup [FILE]            what etcd and Placement hold, in one file
# docker.sh restore FILE [--replace] take it back; with --replace instead of what is there
#
# The services that hypervisors and eschedule share. dockerenv says which images, database and ports. For a try without
# containers, with a guest in it, there is ./demo.sh. Exit code 2: wrong usage or settings; 1: something failed, as said.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
# shellcheck source=dockerenv
. "$here/dockerenv"
# shellcheck source=packaging/docker-lib.sh
. "$here/packaging/docker-lib.sh"
# shellcheck source=packaging/docker-backup.sh
. "$here/packaging/docker-backup.sh"

up() {
  refuse_unfinished_restore
  refuse_other_database
  have_images
  start_all
  cat <<Y
etcd and Placement (on $DATABASE) answer. For compute.yaml on each hypervisor, and for schedule.yaml:

etcd:
  endpoints: [$etcd_url]
placement:
  url: http://$LISTEN_ADDRESS:$PLACEMENT_PORT
Y
}

status() {
  local name bad=0
  for name in "${services[@]}"; do
    if answers "$name"; then echo "${names[$name]} answers"
    elif runs "$name"; then echo "${names[$name]} runs, but does not answer: ./docker.sh logs $name"; bad=1
    else echo "${names[$name]} does not run"; bad=1; fi
  done
  return $bad
}

logs() {
  local name
  for name in ${1:-"${services[@]}"}; do
    [ -n "${names[$name]:-}" ] || usage
    echo "== ${names[$name]}"
    engine logs --tail "${LINES_OF_LOG:-200}" "${names[$name]}" 2>&1 || true
  done
}

down() {
  [ "${1:-}" != --volumes ] || refuse_other_database
  stop_all
  if [ "${1:-}" = --volumes ]; then
    remove_volumes "$ETCD_VOLUME" "$DATABASE_VOLUME" "$PLACEMENT_VOLUME" "$SECRETS_VOLUME"
    echo "etcd and Placement are gone, with all they held"
  else
    echo "etcd and Placement are stopped; what they hold stays in the volumes $(existing_volumes | tr '\n' ' ')"
  fi
}

usage() {
  sed -n '2,7s/^# //p' "$0" >&2
  exit 2
}

[ $# -gt 0 ] || set -- up
case "$1 $#" in
  "up 1" | "status 1" | "logs 1" | "logs 2" | "down 1" | "backup 1" | "backup 2" | "restore 2") ;;
  "down 2") [ "$2" = --volumes ] || usage ;;
  "restore 3") [ "$3" = --replace ] || usage ;;
  *) usage ;;
esac
case "$1 ${2:-}" in "up " | "status " | backup* | restore* | "down --volumes") refuse_bad_settings ;; esac
find_engine
case $1 in up | down | backup | restore) one_at_a_time ;; esac
"$@"
