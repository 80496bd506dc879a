# shellcheck shell=bash disable=SC2154,SC2034,SC2153 # names from docker.sh and dockerenv, and for them
# The containers of docker.sh: which they are, starting, stopping and asking them. Sourced by docker.sh after dockerenv, never run.

declare -A names=([etcd]=etcd-compute-etcd [database]=etcd-compute-database [placement]=etcd-compute-placement) # of the containers
services=(etcd database placement) # in the order in which they start
[ "$DATABASE" != sqlite ] || services=(etcd placement)
placement_user=10001 # as in packaging/placement/Dockerfile
etcd_url=http://$LISTEN_ADDRESS:$ETCD_PORT
peer_url=http://127.0.0.1:$ETCD_PEER_PORT
case $DATABASE in
  mariadb) database_image=$MARIADB_IMAGE database_owner=mysql database_folder=/var/lib/mysql ;;
  *) database_image=$POSTGRESQL_IMAGE database_owner=postgres database_folder=/var/lib/postgresql/data ;;
esac

die() {
  echo "docker.sh: $*" >&2
  exit 1
}

bad_setting() {
  echo "docker.sh: $*: see dockerenv" >&2
  exit 2
}

refuse_bad_settings() {
  local name octet="(25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])"
  local -A taken=()
  case $DATABASE in postgresql | mariadb | sqlite) ;; *) bad_setting "DATABASE=$DATABASE is none of postgresql, mariadb and sqlite" ;; esac
  [[ $LISTEN_ADDRESS =~ ^$octet(\.$octet){3}$ && $LISTEN_ADDRESS != 0.* ]] ||
    bad_setting "LISTEN_ADDRESS=$LISTEN_ADDRESS is no IPv4 address of this machine by which hypervisors can reach it"
  for name in ETCD_PORT ETCD_PEER_PORT PLACEMENT_PORT DATABASE_PORT PLACEMENT_WORKERS ETCD_QUOTA UP_SECONDS; do
    [[ ${!name} =~ ^[1-9][0-9]{0,14}$ ]] || bad_setting "$name=${!name} is no positive number"
  done
  for name in ETCD_PORT ETCD_PEER_PORT PLACEMENT_PORT DATABASE_PORT; do
    [ "${!name}" -le 65535 ] || bad_setting "$name=${!name} is no port"
    [ -z "${taken[${!name}]:-}" ] || bad_setting "$name=${!name} is ${taken[${!name}]}, too, and a port is for one"
    taken[${!name}]=$name
  done
  # A folder of the host would be mounted as well, and then nothing here would know that there are data in it.
  for name in ETCD_VOLUME DATABASE_VOLUME PLACEMENT_VOLUME SECRETS_VOLUME; do
    [[ ${!name} =~ ^[a-zA-Z0-9][a-zA-Z0-9_.-]+$ ]] || bad_setting "$name=${!name} is no name of a volume, which has letters, digits, _, . and - only"
    [ -z "${taken[${!name}]:-}" ] || bad_setting "$name=${!name} is ${taken[${!name}]}, too, and a volume is for one"
    taken[${!name}]=$name
  done
  [[ $ETCD_COMPACTION =~ ^([0-9]+|([0-9]+(\.[0-9]+)?[hms])+)$ ]] || bad_setting "ETCD_COMPACTION=$ETCD_COMPACTION is no time such as 1h or 30m"
}

# -- the engine ---------------------------------------------------------------------------------------------------------------

find_engine() {
  local candidate said=
  is_podman=
  for candidate in ${ENGINE:-docker podman}; do
    command -v "$candidate" >/dev/null || continue
    if said=$("$candidate" info 2>&1); then
      engine=$candidate
      # Podman's own name, or that of docker's which podman's package puts in its place
      if [[ $("$engine" --version) = podman* ]]; then is_podman=yes; fi
      # Podman beats for health by systemd's timers, and starts nothing with a health check where there is no systemd.
      [ -z "$is_podman" ] || [ -d /run/systemd/system ] || export DISABLE_HC_SYSTEMD=true
      return
    fi
    # The other one has other volumes: what runs in this one would seem to hold nothing.
    die "$candidate is installed and does not answer ($(tail -n 1 <<<"$said" | cut -c1-160)): start it, or say which is meant, as in ENGINE=podman"
  done
  [ -z "$ENGINE" ] || die "ENGINE is $ENGINE, and there is no such program here: install and start it, or leave ENGINE empty for docker or podman"
  die "neither docker nor podman is here: install and start one (apt-get install podman), or use ./demo.sh, which needs none"
}

# Without the lock, which whatever the engine leaves running would hold on to.
engine() { "$engine" "$@" 9<&-; }

# One for an engine, whichever checkout it is from: the containers have the same names. The lock goes with this process.
one_at_a_time() {
  local file
  file=/run/lock/etcd-compute-docker.$(printf '%s\n' "$(command -v "$engine")" "${DOCKER_HOST:-}" | sha256sum | cut -c1-12)
  [ -e "$file" ] || (umask 022 && : >>"$file") 2>/dev/null || file=$here/dockerenv
  exec 9<"$file"
  flock -n 9 || die "another docker.sh is at work on this machine; wait for it"
}

has_image() { engine image inspect "$1" >/dev/null 2>&1; }
has_volume() { engine volume inspect "$1" >/dev/null 2>&1; }
runs() { [ "$(engine inspect --format '{{.State.Running}}' "${names[$1]}" 2>/dev/null)" = true ]; }

existing_volumes() {
  local volume
  for volume in "$ETCD_VOLUME" "$DATABASE_VOLUME" "$PLACEMENT_VOLUME"; do
    if has_volume "$volume"; then echo "$volume"; fi
  done
}

remove_volumes() {
  local volume
  for volume in "$@"; do
    has_volume "$volume" || continue
    engine volume rm "$volume" >/dev/null || die "the volume $volume stays, as said above"
  done
}

# -- images -------------------------------------------------------------------------------------------------------------------

# Named by what they are made of, so that a changed one is built anew and an old one never served by mistake.
have_images() {
  etcd_image=localhost/etcd-compute-etcd:$({ echo "$ETCD_IMAGE"; cat "$here/packaging/etcd/Dockerfile"; } | sha256sum | cut -c1-12)
  build "$etcd_image" etcd/Dockerfile --build-arg "ETCD_IMAGE=$ETCD_IMAGE"
  placement_image=$PLACEMENT_IMAGE
  if [ -z "$placement_image" ]; then
    placement_image=localhost/etcd-compute-placement:$(cd "$here/packaging" && cat run-placement placement/* 2>/dev/null | sha256sum | cut -c1-12)
    build "$placement_image" placement/Dockerfile
  fi
  [ "$DATABASE" = sqlite ] || has_image "$database_image" || engine pull "$database_image" >&2 || die "$engine cannot get $database_image, as said above"
}

# build IMAGE DOCKERFILE [WORD…]
build() {
  local image=$1 file=$2 format=()
  shift 2
  has_image "$image" && return
  # Podman's own format has no health checks.
  [ -z "$is_podman" ] || format=(--format docker)
  echo "building $image" >&2
  engine build --network host "${format[@]}" -t "$image" "$@" -f "$here/packaging/$file" "$here/packaging" >&2 ||
    die "$engine cannot build $image, as said above"
}

# -- secrets ------------------------------------------------------------------------------------------------------------------

# in_secrets SCRIPT: run it as root in the volume of secrets. Nothing that it makes up passes through this host.
in_secrets() {
  # shellcheck disable=SC2086 # RUN_OPTIONS are words
  engine run --rm --network none --user 0:0 --entrypoint /bin/sh -v "$SECRETS_VOLUME:/secrets" $RUN_OPTIONS \
    -e PORT="$DATABASE_PORT" -e DATABASE="$DATABASE" -e DATABASE_OWNER="$database_owner" -e PLACEMENT_USER="$placement_user" \
    "$1" -c "set -eu; umask 077; cd /secrets; $2"
}

# The password is made up once, and stands in three files, each readable by its one reader alone: the database (and who backs it
# up inside of its container), Placement, MariaDB's own tools. Each appears by rename.
have_secrets() {
  if has_volume "$DATABASE_VOLUME" && ! has_volume "$SECRETS_VOLUME"; then
    die "the volume $SECRETS_VOLUME with the password of the database in $DATABASE_VOLUME is gone: bring it back, or restore a backup with ./docker.sh restore FILE --replace"
  fi
  # shellcheck disable=SC2016 # for the shell inside
  in_secrets "$database_image" '
    put() { chown "$2" "$1.partial"; chmod 0400 "$1.partial"; mv -f "$1.partial" "$1"; }
    if [ ! -s password ]; then
      od -An -v -N24 -tx1 /dev/urandom | tr -d " \n" >password.partial
      [ "$(wc -c <password.partial)" -eq 48 ]
      sync
      put password "$DATABASE_OWNER"
    fi
    password=$(cat password)
    case $DATABASE in
      mariadb) printf "mysql+pymysql://placement:%s@127.0.0.1:%s/placement?charset=utf8mb4" "$password" "$PORT" >connection.partial ;;
      *) printf "postgresql+psycopg2://placement:%s@127.0.0.1:%s/placement" "$password" "$PORT" >connection.partial ;;
    esac
    put connection "$PLACEMENT_USER"
    printf "[client]\nhost=127.0.0.1\nport=%s\nuser=placement\npassword=%s\n" "$PORT" "$password" >client.cnf.partial
    put client.cnf 0
    sync' || die "$engine cannot write the database's password into the volume $SECRETS_VOLUME, as said above"
}

# The database with its password, running. Its image fills an empty volume, and takes one that was filled by half for a whole one:
# it would answer, and never let Placement in. So a first start leaves a mark until it is through; where the mark is found nobody
# was ever served from that volume (Placement starts later, or again), and it is made anew.
have_database() {
  local mark="first-start.$DATABASE_VOLUME"
  if has_volume "$DATABASE_VOLUME" && has_volume "$SECRETS_VOLUME" &&
    [ -n "$(in_secrets "$database_image" "[ ! -e '$mark' ] || echo yes")" ]; then
    echo "docker.sh: the first start of the database was cut off; its volume $DATABASE_VOLUME, from which nobody was served, is made anew" >&2
    remove database
    remove_volumes "$DATABASE_VOLUME"
  fi
  if has_volume "$DATABASE_VOLUME"; then
    have_secrets
    mark=
  else
    remove placement
    have_secrets
    in_secrets "$database_image" ": >'$mark'; sync" || die "$engine cannot write into the volume $SECRETS_VOLUME, as said above"
  fi
  start_database
  await database
  [ -z "$mark" ] || in_secrets "$database_image" "rm -f '$mark'; sync" || die "$engine cannot write into the volume $SECRETS_VOLUME, as said above"
}

# -- what is in the way -------------------------------------------------------------------------------------------------------

# What was begun with one database goes on with it: another would be empty, and every claim forgotten.
refuse_other_database() {
  local other volume
  has_volume "$(data_volume)" && return
  for other in postgresql mariadb sqlite; do
    volume=etcd-compute-$other
    [ "$other" != sqlite ] || volume=$PLACEMENT_VOLUME
    [ "$other" = "$DATABASE" ] || ! has_volume "$volume" ||
      die "Placement's data are in $other (volume $volume), and DATABASE=$DATABASE would begin with nothing: set DATABASE=$other, or remove what is there with DATABASE=$other ./docker.sh down --volumes"
  done
}

data_volume() { if [ "$DATABASE" = sqlite ]; then echo "$PLACEMENT_VOLUME"; else echo "$DATABASE_VOLUME"; fi; }

# -- the containers -----------------------------------------------------------------------------------------------------------

# start SERVICE IMAGE [WORD…] [-- COMMAND…]: unless it runs as it should already; words are for "run"
start() {
  local service=$1 name=${names[$1]} image=$2 words=() settings
  shift 2
  while [ $# -gt 0 ] && [ "$1" != -- ]; do words+=("$1"); shift; done
  [ $# -eq 0 ] || shift
  settings=$(printf '%s\0' "$image" "${words[@]}" "$RUN_OPTIONS" "$@" | sha256sum | cut -c1-16)
  runs "$service" && [ "$(engine inspect --format '{{index .Config.Labels "etcd-compute.settings"}}' "$name")" = "$settings" ] && return
  remove "$service"
  # Always: that is what podman brings back after a reboot (podman-restart.service); "down" removes them, so that it is no trap.
  # Logs never fill the disk.
  if [ -n "$is_podman" ]; then words+=(--log-opt max-size=20mb); else words+=(--log-driver local); fi
  # shellcheck disable=SC2086 # RUN_OPTIONS are words
  engine run -d --name "$name" --network host --restart always --label "etcd-compute.settings=$settings" \
    "${words[@]}" $RUN_OPTIONS "$image" "$@" >/dev/null || die "$engine cannot start $name from $image, as said above"
}

# Asked to end first, so that a database closes its files.
remove() {
  engine stop -t 30 "${names[$1]}" >/dev/null 2>&1 || true
  engine rm -f "${names[$1]}" >/dev/null 2>&1 || true
}

stop_all() {
  local service
  for service in placement database etcd; do remove "$service"; done
}

start_etcd() {
  start etcd "$etcd_image" -v "$ETCD_VOLUME:/etcd-data" -e ETCDCTL_API=3 -e ETCDCTL_ENDPOINTS="$etcd_url" -- \
    /usr/local/bin/etcd --name embedded --data-dir /etcd-data \
    --listen-client-urls "$etcd_url" --advertise-client-urls "$etcd_url" --listen-peer-urls "$peer_url" \
    --initial-advertise-peer-urls "$peer_url" --initial-cluster "embedded=$peer_url" \
    --auto-compaction-mode periodic --auto-compaction-retention "$ETCD_COMPACTION" --quota-backend-bytes "$ETCD_QUOTA" \
    --logger zap --log-level warn
}

start_database() {
  local shared=(-v "$DATABASE_VOLUME:$database_folder" -v "$SECRETS_VOLUME:/secrets:ro")
  local beat=(--health-interval 10s --health-timeout 5s --health-start-period 60s)
  case $DATABASE in
    sqlite) return ;;
    postgresql)
      # Left alone initdb trusts whoever comes from 127.0.0.1, which with the host's own network is every user of the host.
      start database "$database_image" "${shared[@]}" "${beat[@]}" --shm-size 128m \
        --health-cmd "pg_isready -q -h 127.0.0.1 -p $DATABASE_PORT -U placement -d placement" \
        -e PGDATA="$database_folder" -e POSTGRES_INITDB_ARGS=--auth-host=scram-sha-256 -e POSTGRES_USER=placement -e POSTGRES_DB=placement -e POSTGRES_PASSWORD_FILE=/secrets/password -- \
        postgres -c listen_addresses=127.0.0.1 -c port="$DATABASE_PORT"
      ;;
    mariadb)
      start database "$database_image" "${shared[@]}" "${beat[@]}" \
        --health-cmd "mariadb-admin --no-defaults -h 127.0.0.1 -P $DATABASE_PORT ping" \
        -e MARIADB_USER=placement -e MARIADB_DATABASE=placement -e MARIADB_PASSWORD_FILE=/secrets/password \
        -e MARIADB_ROOT_PASSWORD_FILE=/secrets/password -- \
        mariadbd --bind-address=127.0.0.1 --port="$DATABASE_PORT" --character-set-server=utf8mb4
      ;;
  esac
}

start_placement() {
  local words=(-v "$PLACEMENT_VOLUME:/data")
  [ "$DATABASE" = sqlite ] || words=(-v "$SECRETS_VOLUME:/secrets:ro"
    -e CONNECTION_FILE=/secrets/connection -e DATABASE_PORT="$DATABASE_PORT" -e WORKERS="$PLACEMENT_WORKERS")
  start placement "$placement_image" "${words[@]}" -e LISTEN="$LISTEN_ADDRESS" -e PORT="$PLACEMENT_PORT"
}

start_all() {
  deadline=$((SECONDS + UP_SECONDS))
  start_etcd
  if [ "$DATABASE" != sqlite ]; then
    have_database
  fi
  start_placement
  await etcd
  await placement
}

await() {
  until answers "$1"; do
    { runs "$1" && [ "$SECONDS" -lt "$deadline" ]; } ||
      die "${names[$1]} does not answer; the last that it said: $(engine logs --tail 1 "${names[$1]}" 2>&1 | tail -n 1 | cut -c1-300); more: ./docker.sh logs $1"
    sleep 0.2
  done
}

answers() {
  case $1 in
    etcd) get "$ETCD_PORT" /health | grep -q '"health":"true"' ;;
    placement) get "$PLACEMENT_PORT" '/resource_providers?name=health-check' 'X-Auth-Token: admin' | grep -q '"resource_providers"' ;;
    database)
      if [ "$DATABASE" = mariadb ]; then
        engine exec "${names[database]}" mariadb-admin --defaults-file=/secrets/client.cnf ping >/dev/null 2>&1
      else
        engine exec "${names[database]}" pg_isready -q -h 127.0.0.1 -p "$DATABASE_PORT" -U placement -d placement >/dev/null 2>&1
      fi
      ;;
  esac
}

# get PORT PATH [HEADER]: the answer to a GET, within 5 s; empty where there is none
get() {
  # shellcheck disable=SC2016 # the inner shell's
  timeout 5 bash -c 'exec 3<>"/dev/tcp/$0/$1" && printf "GET %s HTTP/1.0\r\nHost: $0\r\n%s\r\n\r\n" "$2" "$3" >&3 && cat <&3' \
    "$LISTEN_ADDRESS" "$1" "$2" "${3:-Accept: */*}" 2>/dev/null || true
}
