#!/bin/bash
# setup-host.sh [--extra placement|benchmarks|test] [--tools] SECTION...   make this host ready: Debian packages, .venv, etcd
# setup-host.sh --list SECTION...                                          only print the packages of these sections of debian-packages
#
# With --tools, what the section [benchmarks] names is there as well, below .cache/tools where it is not installed; so is,
# with --extra test, what [parsers], [servers] and [sshd] name, below .cache/cloud-init, .cache/servers and .cache/sshd, and the
# kernel of libguestfs' appliance, below .cache/appliance-kernel.
# Installs what is missing and nothing else, so that a second run takes no time. Where a run was killed in the middle the
# next one goes on. Logs are in .cache/logs. Called by demo.sh and test.sh; needs root only where a package is missing.
set -euo pipefail
# shellcheck source=packaging/debian-lib.sh
. "$(dirname "$0")/debian-lib.sh"

venv=$project/.venv
stamp=$venv/.complete # written last: a virtual environment without it is half made
python=/usr/bin/python3 # not the first on PATH: Debian's bindings fit Debian's Python alone
bindings=/usr/lib/python3/dist-packages
etcd_home=$cache/etcd
tools_home=$cache/tools
cloud_init_home=$cache/cloud-init
servers_home=$cache/servers
sshd_home=$cache/sshd
kernel_home=$cache/appliance-kernel
extras=(placement benchmarks test) # each has all of those before it
extra=placement
wants_tools=
venv_job= # pid of make_venv while it runs beside apt

missing_packages() {
  local wanted installed
  mapfile -t wanted < <(packages_of "$@")
  installed=$(dpkg-query -W -f '${Package} ${db:Status-Status}\n' "${wanted[@]}" 2>/dev/null | awk '$2 == "installed" { print $1 }' || true)
  comm -23 <(printf '%s\n' "${wanted[@]}" | sort -u) <(sort -u <<<"$installed")
}

# install_packages WHAT PACKAGE...
install_packages() {
  local log=$logs/apt-$1.log
  shift
  apt-get install -q -y --no-install-recommends -o DPkg::Lock::Timeout=300 -o Acquire::Retries=3 "$@" >"$log" 2>&1 ||
    die "apt-get install failed: $(why_apt_failed "$log"); put that right and run this again, log: $log"
}

# What an installation cut off in the middle left behind; without this apt refuses to do anything.
finish_interrupted_dpkg() {
  [ -z "$(ls -A /var/lib/dpkg/updates 2>/dev/null)" ] && [ -z "$(dpkg --audit 2>/dev/null)" ] && return
  say "finishing an interrupted package installation (dpkg --configure -a)"
  dpkg --configure -a >"$logs/dpkg-configure.log" 2>&1 || true # apt says better what is still wrong
}

# Without systemd libvirt's other flavour does: it needs no init system at all. An init system is never exchanged.
libvirt_flavour() {
  [ -d /run/systemd/system ] && return
  dpkg-query -W -f '${db:Status-Status}\n' libvirt-daemon-system-systemd 2>/dev/null | grep -qx installed && return
  echo libvirt-daemon-system-sysv
}

binding_files() {
  ls -d "$bindings"/libvirt*.py "$bindings"/libvirtmod*.so "$bindings"/libvirt_python*-info 2>/dev/null || true
}

# Those that nothing of pip's depends on, and that may be installed while pip works or long after it.
late_binding_files() {
  ls -d "$bindings"/guestfs.py "$bindings"/libguestfsmod*.so 2>/dev/null || true
}

late_bindings_are_linked() {
  local file site
  site=$(site_of_venv)
  for file in $(late_binding_files); do [ -e "$site/${file##*/}" ] || return 1; done
}

site_of_venv() { "$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))'; }

# link FILE...: have .venv import them
link() {
  local site
  site=$(site_of_venv)
  [ $# = 0 ] || ln -sfn "$@" "$site/"
}

# All that the virtual environment depends on: another one is made, or this one brought up to date, when it changes.
venv_fingerprint() {
  { echo "$project"; "$python" -V; cat "$project/setup.py"; binding_files; } | sha256sum | cut -c1-16
}

venv_is_current() {
  [ -f "$stamp" ] && read -r has_fingerprint has_extra <"$stamp" &&
    [ "$has_fingerprint" = "$(venv_fingerprint)" ] && [ "$(larger_extra "$has_extra" "$extra")" = "$has_extra" ]
}

# larger_extra A B: the one of these two that has the other
larger_extra() {
  local each larger=$1
  for each in "${extras[@]}"; do case $each in "$1" | "$2") larger=$each ;; esac; done
  echo "$larger"
}

make_venv() {
  local log=$logs/pip.log keep_extra=$extra
  [ ! -f "$stamp" ] || keep_extra=$(larger_extra "$(cut -d' ' -f2 "$stamp")" "$extra")
  # Scripts in it name their interpreter by its full path: a moved checkout needs a new one, as does a half-made one.
  if [ ! -f "$stamp" ] || [ "$(head -n 1 "$venv/bin/pip" 2>/dev/null)" != "#!$venv/bin/python3" ]; then
    rm -rf "$venv"
    "$python" -m venv "$venv" >"$log" 2>&1 || die "cannot make $venv: $(tail -n 1 "$log")"
  fi
  rm -f "$stamp"
  find "$(site_of_venv)" -maxdepth 1 -type l -lname "$bindings/*" -delete
  # shellcheck disable=SC2046 # paths of Debian's packages
  link $(binding_files)
  # No byte code ahead of time: most modules are never imported, and Python keeps that of those which are.
  "$venv/bin/pip" install -q --disable-pip-version-check --no-compile -e "${project}[$keep_extra]" >"$log" 2>&1 ||
    die "pip failed: $(grep -m1 '^ERROR' "$log" || tail -n 1 "$log"); is PyPI (or pip's index-url) reachable? log: $log"
  echo "$(venv_fingerprint) $keep_extra" >"$stamp.partial"
  mv "$stamp.partial" "$stamp"
}

has_etcd() { [ -x "$etcd_home/usr/bin/etcd" ]; }

get_etcd() {
  rm -rf "$etcd_home" "$etcd_home.partial"
  unpack_packages "$etcd_home.partial" etcd-server
  mv "$etcd_home.partial" "$etcd_home"
}

has_tools() { [ -z "$wants_tools" ] || [ -d "$tools_home" ]; }

# not_installed SECTION...: the packages in these sections and all that they need, as far as it is not on this host
not_installed() {
  local plan
  # shellcheck disable=SC2046 # a list of names
  plan=$(apt-get install --simulate -q --no-install-recommends $(packages_of "$@") 2>/dev/null) || return
  awk '$1 == "Inst" && $3 !~ /^\[/ { print $2 }' <<<"$plan" # [version]: there already, only older
}

has_cloud_init() { [ "$extra" != test ] || [ -d "$cloud_init_home" ]; }

has_servers() { [ "$extra" != test ] || [ -d "$servers_home" ]; }

has_sshd() { [ "$extra" != test ] || [ -d "$sshd_home" ]; }

has_kernel() { [ "$extra" != test ] || [ -d "$kernel_home" ]; }

# The kernel that linux-image-cloud-amd64 stands for, and an index of its modules. supermin wants a folder /lib/modules as well,
# which hosts without a kernel of their own do not have.
get_kernel() {
  local image
  image=$(apt-cache depends linux-image-cloud-amd64 2>/dev/null | awk '/Depends: linux-image-[0-9]/ { print $2; exit }')
  [ -n "$image" ] || { fresh_package_lists; image=$(apt-cache depends linux-image-cloud-amd64 | awk '/Depends: linux-image-[0-9]/ { print $2; exit }'); }
  [ -n "$image" ] || die "apt-get knows no linux-image-cloud-amd64: check /etc/apt/sources.list*"
  rm -rf "$kernel_home.partial"
  unpack_packages "$kernel_home.partial" "$image"
  depmod -b "$kernel_home.partial" "$(basename "$kernel_home".partial/lib/modules/*)"
  mkdir -p /lib/modules
  mv "$kernel_home.partial" "$kernel_home"
}

# get_unpacked HOME SECTION: what not_installed names, unpacked in HOME
get_unpacked() {
  local home=$1 section=$2 packages
  if ! packages=$(not_installed "$section"); then
    fresh_package_lists
    packages=$(not_installed "$section") || die "apt-get knows no way to have $(packages_of "$section" | tr '\n' ' ')on this host"
  fi
  rm -rf "$home.partial"
  mkdir -p "$home.partial"
  # shellcheck disable=SC2086 # a list of names
  [ -z "$packages" ] || unpack_packages "$home.partial" $packages
  mv "$home.partial" "$home"
}

# timed WHAT COMMAND...: run it, say how long it took
timed() {
  local what=$1 start=${EPOCHREALTIME/./}
  shift
  "$@"
  say "$(printf '%s: %.1f s' "$what" "$(((${EPOCHREALTIME/./} - start) / 100000))e-1")"
}

needs_root_for() {
  [ "$(id -u)" = 0 ] || die "needs root to install: $(tr '\n' ' ' <<<"$1")(run it with sudo, or install them and run it again)"
  command -v apt-get >/dev/null || die "there is no apt-get here: etcd-compute's demo and tests want Debian 12 or 13"
}

setup() {
  local first rest
  first=$(missing_packages python)
  rest=$(missing_packages "$@")
  [ -z "$first$rest" ] && venv_is_current && late_bindings_are_linked && has_etcd && has_tools && has_cloud_init && has_servers && has_sshd && has_kernel && return
  echo "== Installing what is missing" >&2
  mkdir -p "$logs"
  exec 9>"$cache/setup.lock"
  flock -n 9 || { say "waiting for another installation in this checkout"; flock -w 900 9 || die "it has not ended in 15 minutes"; }
  if [ -n "$first$rest" ]; then
    needs_root_for "$first"$'\n'"$rest"
    say "installing $(wc -w <<<"$first $rest") Debian packages and what they need (log: $logs/apt-*.log)"
    finish_interrupted_dpkg
    timed "package lists" fresh_package_lists
    # shellcheck disable=SC2086 # a list of names
    [ -z "$first" ] || timed "packages for Python" install_packages python $first
  fi
  "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || die "$python is older than 3.11: Debian 12 or newer is needed"
  trap '[ -z "$venv_job" ] || wait "$venv_job" || true' EXIT # where apt fails: pip is never left behind
  if ! venv_is_current; then
    say "making .venv with pip (log: $logs/pip.log)"
    timed ".venv" make_venv & # on the other core, while apt works
    venv_job=$!
  fi
  # shellcheck disable=SC2046,SC2086 # lists of names
  [ -z "$rest" ] || timed "packages" install_packages run $rest $(libvirt_flavour)
  has_etcd || timed "etcd, unpacked into .cache" get_etcd
  has_tools || timed "tools for benchmarks, unpacked into .cache" get_unpacked "$tools_home" benchmarks
  has_cloud_init || timed "cloud-init for tests, unpacked into .cache" get_unpacked "$cloud_init_home" parsers
  has_servers || timed "servers for tests, unpacked into .cache" get_unpacked "$servers_home" servers
  has_sshd || timed "sshd for tests, unpacked into .cache" get_unpacked "$sshd_home" sshd
  has_kernel || timed "kernel for libguestfs, unpacked into .cache" get_kernel
  [ -z "$venv_job" ] || wait "$venv_job"
  # shellcheck disable=SC2046 # paths of Debian's packages
  link $(late_binding_files)
}

while [ $# -gt 0 ]; do
  case $1 in
    --list) shift; packages_of "$@"; exit ;;
    --extra) extra=${2:-}; shift 2 ;;
    --tools) wants_tools=yes; shift ;;
    *) break ;;
  esac
done
[[ $# -ge 1 && " ${extras[*]} " = *" $extra "* ]] || { sed -n '2,3s/^# //p' "$0"; exit 2; }
setup "$@"
