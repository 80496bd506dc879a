#!/bin/bash
# docker.sh up               etcd and Placement in containers, by docker or podman
# docker.sh status           whether they run and answer
# docker.sh down [--volumes] stop them; with --volumes forget what they hold
#
# The two services that hypervisors and eschedule share. dockerenv says which images and ports. For a try without containers,
# with a guest in it, there is ./demo.sh.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
# shellcheck source=dockerenv
. "$here/dockerenv"
etcd=etcd-compute-etcd placement=etcd-compute-placement # the containers' names

die() {
  echo "docker.sh: $*" >&2
  exit 1
}

find_engine() {
  local candidate
  for candidate in ${ENGINE:-docker podman}; do
    if command -v "$candidate" >/dev/null && "$candidate" info >/dev/null 2>&1; then
      engine=$candidate
      return
    fi
  done
  die "neither docker nor podman answers here: install and start one (apt-get install docker.io), or use ./demo.sh, which needs none"
}

# get PORT PATH: the answer to a GET, within 5 s; empty where there is none
get() {
  # shellcheck disable=SC2016 # the inner shell's
  timeout 5 bash -c 'exec 3<>"/dev/tcp/$0/$1" && printf "GET %s HTTP/1.0\r\nHost: $0\r\n\r\n" "$2" >&3 && cat <&3' \
    "$LISTEN_ADDRESS" "$1" "$2" 2>/dev/null || true
}

answers() {
  case $1 in
    "$etcd") get "$ETCD_PORT" /health | grep -q '"health":"true"' ;;
    "$placement") get "$PLACEMENT_PORT" / | grep -q '"versions"' ;;
  esac
}

runs() { [ "$("$engine" inspect --format '{{.State.Running}}' "$1" 2>/dev/null)" = true ]; }

# start NAME IMAGE VOLUME:PATH [WORD…]: unless it runs; words for "run" come before --, the command after it
start() {
  local name=$1 image=$2 volume=$3
  shift 3
  runs "$name" && return
  "$engine" rm -f "$name" >/dev/null 2>&1 || true
  # shellcheck disable=SC2086 # RUN_OPTIONS are words
  "$engine" run -d --name "$name" --network host --restart unless-stopped -v "$volume" -e LISTEN="$LISTEN_ADDRESS" \
    $RUN_OPTIONS "$image" "$@" >/dev/null || die "$engine cannot start $name from $image, as said above"
}

await() {
  local deadline=$((SECONDS + 60))
  until answers "$1"; do
    { runs "$1" && [ $SECONDS -lt $deadline ]; } || die "$1 does not answer: $("$engine" logs --tail 1 "$1" 2>&1); see: $engine logs $1"
    sleep 0.2
  done
}

up() {
  local client="http://$LISTEN_ADDRESS:$ETCD_PORT" peer="http://127.0.0.1:$ETCD_PEER_PORT"
  "$engine" image inspect "$PLACEMENT_IMAGE" >/dev/null 2>&1 ||
    "$engine" build --network host -t "$PLACEMENT_IMAGE" -f "$here/packaging/placement/Dockerfile" "$here/packaging" ||
    die "$engine cannot build $PLACEMENT_IMAGE, as said above"
  start "$etcd" "$ETCD_IMAGE" "$ETCD_VOLUME:/etcd-data" /usr/local/bin/etcd --name embedded --data-dir /etcd-data \
    --listen-client-urls "$client" --advertise-client-urls "$client" --listen-peer-urls "$peer" \
    --initial-advertise-peer-urls "$peer" --initial-cluster "embedded=$peer" \
    --auto-compaction-mode periodic --auto-compaction-retention 1h --logger zap --log-level warn
  start "$placement" "$PLACEMENT_IMAGE" "$PLACEMENT_VOLUME:/data" /data "$PLACEMENT_PORT"
  await "$etcd"
  await "$placement"
  cat <<Y
etcd and Placement answer. For compute.yaml on each hypervisor, and for schedule.yaml:

etcd:
  endpoints: [$client]
placement:
  url: http://$LISTEN_ADDRESS:$PLACEMENT_PORT
Y
}

status() {
  local name bad=0
  for name in "$etcd" "$placement"; do
    if answers "$name"; then echo "$name answers"
    elif runs "$name"; then echo "$name runs, but does not answer: $engine logs $name"; bad=1
    else echo "$name does not run"; bad=1; fi
  done
  return $bad
}

down() {
  "$engine" stop "$etcd" "$placement" >/dev/null 2>&1 || true
  "$engine" rm -f "$etcd" "$placement" >/dev/null 2>&1 || true
  if [ "${1:-}" = --volumes ]; then
    "$engine" volume rm -f "$ETCD_VOLUME" "$PLACEMENT_VOLUME" >/dev/null
    echo "etcd and Placement are gone, with all they held"
  else
    echo "etcd and Placement are stopped; what they hold stays in the volumes $ETCD_VOLUME and $PLACEMENT_VOLUME"
  fi
}

case "${1:-} ${2:-}" in
  "up " | "status " | "down " | "down --volumes") find_engine; "$@" ;;
  *) sed -n '2,4s/^# //p' "$0" >&2; exit 2 ;;
esac
