# shellcheck shell=bash
# What setup-host.sh and build-tiny-image.sh share: where things are, how to speak, how to ask apt. Sourced, never run.

project=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cache=$project/.cache # all that is made on the way to a running demo and can be made again; git ignores it
logs=$cache/logs
export LC_ALL=C.UTF-8 DEBIAN_FRONTEND=noninteractive

say() { printf '   %s\n' "$*" >&2; }

die() {
  printf '%s\n' "${0##*/}: $*" >&2
  exit 1
}

# packages_of SECTION...: the names in these sections of debian-packages
packages_of() {
  local wanted=" $* "
  awk -v wanted="$wanted" '
    { sub(/#.*/, "") }
    /^\[/ { gsub(/[][ \t]/, ""); inside = index(wanted, " " $0 " ") > 0; next }
    NF && inside { print $1 }' "$project/packaging/debian-packages"
}

# why_apt_failed LOG: the first error in it, in one line
why_apt_failed() { grep -hE '^(E|Err|dpkg: error)' "$1" | head -n 1 | cut -c1-200; }

# fresh_package_lists: apt-get update, waiting for another apt that holds the lists (they have no lock timeout of their own)
fresh_package_lists() {
  local log=$logs/apt-update.log deadline=$((SECONDS + 120))
  mkdir -p "$logs"
  until apt-get update -q -o Acquire::Retries=3 >"$log" 2>&1; do
    grep -q 'Could not get lock' "$log" && [ $SECONDS -lt $deadline ] && sleep 1 && continue
    die "apt-get update failed: $(why_apt_failed "$log"); check the network and /etc/apt/sources.list*, log: $log"
  done
}

# package_versions PACKAGE...: "name version" a line as apt would install them now; fails where one is unknown
package_versions() {
  local found
  found=$(apt-cache show --no-all-versions "$@" 2>/dev/null |
    awk '/^Package: / { name = $2 } /^Version: / { print name, $2 }' | sort -u)
  [ "$(wc -l <<<"$found")" -eq $# ] && printf '%s\n' "$found"
}

# unpack_packages DIRECTORY PACKAGE...: their files below DIRECTORY, without installing anything
unpack_packages() {
  local into=$1 downloads log=$logs/apt-download.log
  shift
  mkdir -p "$into" "$logs"
  downloads=$(mktemp -d "$into/downloads.XXXXXX")
  # root's own directory: apt's sandbox user could not write there, and says so at length
  local fetch=(apt-get download -q -o APT::Sandbox::User=root -o Acquire::Retries=3)
  if ! (cd "$downloads" && "${fetch[@]}" "$@") >"$log" 2>&1; then
    fresh_package_lists # the versions in old lists are no longer on the server
    (cd "$downloads" && "${fetch[@]}" "$@") >"$log" 2>&1 ||
      die "apt-get download $* failed: $(why_apt_failed "$log"); log: $log"
  fi
  for package in "$downloads"/*.deb; do
    dpkg-deb -x "$package" "$into" || die "cannot unpack $package below $into; is the disk full?"
  done
  rm -rf "$downloads"
}
