#!/bin/bash
# demo.sh          a whole etcd-compute on this host, and a guest in it that you can log into
# demo.sh status   what of it runs
# demo.sh down     take it all away again
#
# Installs what is missing (Debian packages, .venv and .cache in this folder), then starts libvirt, etcd, Placement,
# md_server and ecompute where they do not run, makes a guest and shows what happened. It can be repeated at any time, also
# after a run that was killed. It has folders of its own (/var/lib/etcd-compute-demo, /run/etcd-compute-demo) and touches no
# other deployment. DEMO_ETCD_PORT, DEMO_ETCD_PEER_PORT and DEMO_PLACEMENT_PORT choose other ports than 2379, 2380 and 8778,
# DEMO_STATE_DIR another folder than /var/lib/etcd-compute-demo. DEMO_ETCD_URL and DEMO_PLACEMENT_URL name an etcd and a Placement that
# are there already, such as those of docker.sh: the demo then starts none, makes a host of this machine and leaves again on down.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
command=${1:-up}

die() {
  echo "demo.sh: $*" >&2
  exit 1
}

free_mib() { df --output=avail -BM "$1" | tail -n 1 | tr -dc 0-9; }

# enough_space FOLDER MIB WHAT
enough_space() {
  local free
  free=$(free_mib "$1")
  [ "$free" -ge "$2" ] || die "only $free MiB are free in $1, and $2 are needed for $3: make room there"
}

case $command in
  up | status | down) [ $# -le 1 ] || command=usage ;;
  *) command=usage ;;
esac
[ "$command" != usage ] || { sed -n '2,4s/^# //p' "$0" >&2; exit 2; }
[ "$(id -u)" = 0 ] || die "needs root, for libvirt and its network: sudo ./demo.sh"
command -v apt-get >/dev/null || die "there is no apt-get here: the demo wants Debian 12 or 13"
[ "$(dpkg --print-architecture)" = amd64 ] || die "the demo is for amd64; this is $(dpkg --print-architecture)"

if [ "$command" != status ]; then
  # Held by this process as long as it lives; daemons and children do not get it, so it ends with us even on kill -9.
  exec 8>>/run/etcd-compute-demo.lock
  flock -n 8 || die "another demo.sh is at work (pid $(cat /run/etcd-compute-demo.lock)); wait for it"
  echo $$ >/run/etcd-compute-demo.lock
fi
if [ "$command" = up ]; then
  enough_space /var/lib 1000 "the guest's disk and the services"
  if [ ! -f "$here/.venv/.complete" ]; then
    enough_space /usr 2000 "Debian packages"
    enough_space "$here" 1000 ".venv and .cache"
  fi
  "$here/packaging/setup-host.sh" --extra placement run demo 8>&-
elif [ ! -x "$here/.venv/bin/python" ]; then
  [ -d /var/lib/etcd-compute-demo ] && die ".venv is missing; ./demo.sh makes it, then ./demo.sh $command works"
  echo "nothing of the demo is here"
  exit 0
fi
PYTHONPATH=$here/packaging exec "$here/.venv/bin/python" -m demo "$command"
