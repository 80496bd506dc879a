# shellcheck shell=bash disable=SC2154,SC2034,SC2015 # names from docker-lib.sh and for it
# docker.sh backup and restore. Sourced by docker.sh after docker-lib.sh, never run.
#
# A backup is a tar of three files: "manifest" (lines of a name and a value, with the checksums of the others), "etcd.db" (a
# snapshot that etcd made of itself) and "database" (a dump by the database's own program). etcd goes first: what is made
# meanwhile is then a claim without a request, which "eschedule audit" names, never a request without its claim.

stage= # a folder beside the file that is written or read, for its parts
helper=etcd-compute-helper # a container for one command

stage_beside() {
  stage=$(mktemp -d "$(dirname "$1")/.docker-sh.XXXXXX") || die "cannot write beside $1"
  trap 'rm -rf "$stage"; [ -z "${engine:-}" ] || engine rm -f "$helper" >/dev/null 2>&1 || true' EXIT
}

sum_of() { sha256sum "$1" | cut -d' ' -f1; }

backup() {
  local file=${1:-etcd-compute-$(date -u +%Y%m%dT%H%M%SZ).backup}
  [ ! -e "$file" ] || die "$file is there already; choose another name"
  refuse_unfinished_restore
  local service
  for service in "${services[@]}"; do answers "$service" || die "${names[$service]} does not answer, and only a running one can be backed up: ./docker.sh up"; done
  have_images
  umask 077
  stage_beside "$file"
  snapshot_etcd
  dump_database >"$stage/database" || die "the database cannot be dumped, as said above; nothing was written"
  printf '%s\n' "schema 1" "made $(date -u +%Y-%m-%dT%H:%M:%SZ)" "database $DATABASE" \
    "etcd-sha256 $(sum_of "$stage/etcd.db")" "database-sha256 $(sum_of "$stage/database")" >"$stage/manifest"
  tar -cf "$stage/all" -C "$stage" manifest etcd.db database
  sync "$stage/all"
  mv -n "$stage/all" "$file"
  [ ! -e "$stage/all" ] || die "$file has appeared meanwhile; nothing was written"
  echo "etcd and Placement's database are in $file ($(stat -c %s "$file") bytes)"
}

# By a container of its own: etcd's image has no shell, and what cp takes is this user's.
snapshot_etcd() {
  engine rm -f "$helper" >/dev/null 2>&1 || true
  # shellcheck disable=SC2086 # RUN_OPTIONS are words
  timeout 300 "$engine" run --name "$helper" --network host -e ETCDCTL_API=3 $RUN_OPTIONS "$etcd_image" \
    /usr/local/bin/etcdctl --endpoints "$etcd_url" snapshot save /backup/etcd.db >"$stage/said" 2>&1 9<&- &&
    engine cp "$helper:/backup/etcd.db" "$stage/etcd.db" >/dev/null || die "etcd made no snapshot: $(tail -n 1 "$stage/said")"
  engine rm -f "$helper" >/dev/null 2>&1 || true
}

dump_database() {
  case $DATABASE in
    postgresql) engine exec "${names[database]}" pg_dump -h /var/run/postgresql -p "$DATABASE_PORT" -U placement --no-owner --no-privileges placement ;;
    mariadb) engine exec "${names[database]}" mariadb-dump --defaults-file=/secrets/client.cnf --single-transaction --skip-lock-tables placement ;;
    sqlite) engine exec "${names[placement]}" /opt/placement/bin/python -c "
import sqlite3
database = sqlite3.connect('file:/data/placement.db?mode=ro', uri=True, isolation_level=None)
database.execute('BEGIN')  # all tables as of one moment
for line in database.iterdump(): print(line)" ;;
  esac
}

restore() {
  local file=$1 replaces=${2:-} there
  [ -f "$file" ] || die "there is no file $file"
  umask 077
  stage_beside "${TMPDIR:-/tmp}/x"
  check_backup "$file"
  there=$(existing_volumes | tr '\n' ' ')
  [ -z "$there" ] || [ -n "$replaces" ] ||
    die "there are data already, in the volumes ${there% }: back them up, then ./docker.sh restore $file --replace; nothing was changed"
  have_images
  check_snapshot
  # From here on data go. Whoever is cut off leaves the mark, and nothing is served from half a restore.
  in_secrets "$placement_image" 'touch restoring; sync' || die "$engine cannot write to the volume $SECRETS_VOLUME; nothing was changed"
  stop_all
  remove_volumes "$ETCD_VOLUME" "$DATABASE_VOLUME" "$PLACEMENT_VOLUME"
  restore_etcd
  restore_database
  in_secrets "$placement_image" 'sync; rm -f restoring' || die "$engine cannot write to the volume $SECRETS_VOLUME"
  start_all
  echo "etcd and Placement are as $(value_of made) and answer. Now look at what the hosts make of it: docs/operations.md, \"Restoring etcd from a backup\""
}

value_of() { awk -v name="$1" '$1 == name { print $2 }' "$stage/manifest"; }

check_backup() {
  local no="$1 is no whole backup of docker.sh"
  [ "$(tar -tf "$1" 2>/dev/null | sort | tr '\n' ' ')" = "database etcd.db manifest " ] || die "$no; nothing was changed"
  tar -xf "$1" -C "$stage" --no-same-owner manifest etcd.db database || die "$no, or $stage is full; nothing was changed"
  [ "$(value_of schema)" = 1 ] || die "$1 was written by another version of docker.sh (schema $(value_of schema)); nothing was changed"
  [ "$(value_of etcd-sha256) $(value_of database-sha256)" = "$(sum_of "$stage/etcd.db") $(sum_of "$stage/database")" ] ||
    die "$no: its checksums do not agree; nothing was changed"
  [ "$(value_of database)" = "$DATABASE" ] || die "$1 is of DATABASE=$(value_of database), and dockerenv says $DATABASE; nothing was changed"
}

# helper_with_snapshot WORD…: run this in etcd's image with the snapshot in it; the words before -- are for "create". The snapshot
# goes to the root, as podman makes the image's working directory when a container starts, and not before.
helper_with_snapshot() {
  local words=()
  while [ "$1" != -- ]; do words+=("$1"); shift; done
  shift
  : >"$stage/said"
  engine rm -f "$helper" >/dev/null 2>&1 || true
  # shellcheck disable=SC2086 # RUN_OPTIONS are words
  engine create --name "$helper" --network none "${words[@]}" $RUN_OPTIONS "$etcd_image" "$@" >/dev/null &&
    engine cp "$stage/etcd.db" "$helper:/etcd.db" >/dev/null 2>"$stage/said" && engine start -a "$helper" >"$stage/said" 2>&1 || return 1
  engine rm -f "$helper" >/dev/null
}

check_snapshot() {
  helper_with_snapshot -- /usr/local/bin/etcdutl snapshot status /etcd.db ||
    die "etcd does not accept the snapshot in the backup: $(tail -n 1 "$stage/said"); nothing was changed"
}

# A token of its own makes it another cluster: that is how the hosts know that etcd's past is not theirs (Held, StoreRestored).
restore_etcd() {
  helper_with_snapshot -v "$ETCD_VOLUME:/etcd-data" -- /usr/local/bin/etcdutl snapshot restore /etcd.db --data-dir /etcd-data \
    --name embedded --initial-cluster "embedded=$peer_url" --initial-advertise-peer-urls "$peer_url" \
    --initial-cluster-token "restored-$(date -u +%Y%m%dT%H%M%S)-$RANDOM" ||
    die "etcd's snapshot cannot be restored: $(tail -n 1 "$stage/said"); when that is put right: ./docker.sh restore FILE --replace"
}

restore_database() {
  local again="when that is put right: ./docker.sh restore FILE --replace"
  deadline=$((SECONDS + UP_SECONDS))
  [ "$DATABASE" = sqlite ] || have_database
  load_database <"$stage/database" >"$stage/said" 2>&1 || die "the database's dump cannot be loaded: $(tail -n 1 "$stage/said"); $again"
}

load_database() {
  case $DATABASE in
    postgresql) engine exec -i "${names[database]}" psql -q -v ON_ERROR_STOP=1 --single-transaction -h /var/run/postgresql -p "$DATABASE_PORT" -U placement placement ;;
    mariadb) engine exec -i "${names[database]}" mariadb --defaults-file=/secrets/client.cnf placement ;;
    sqlite) load_sqlite ;;
  esac
}

load_sqlite() {
  # shellcheck disable=SC2086 # RUN_OPTIONS are words
  engine run --rm -i --network none -v "$PLACEMENT_VOLUME:/data" --entrypoint /opt/placement/bin/python $RUN_OPTIONS "$placement_image" -c "
import os, sqlite3, sys
connection = sqlite3.connect('/data/placement.db.partial')
connection.executescript(sys.stdin.read())
connection.close()
os.rename('/data/placement.db.partial', '/data/placement.db')"
}

refuse_unfinished_restore() {
  has_volume "$SECRETS_VOLUME" || return 0
  have_images
  [ -z "$(in_secrets "$placement_image" '[ ! -e restoring ] || echo yes')" ] ||
    die "a restore was cut off: run it again, ./docker.sh restore FILE --replace"
}
