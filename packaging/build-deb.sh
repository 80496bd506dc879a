#!/bin/bash
# build-deb.sh [DIRECTORY]   the Debian packages etcd-compute and etcd-compute-placement, in DIRECTORY (default: dist/)
#
# Prints the path of each. Needs no root, and python3-venv; what Debian has too old is fetched from PyPI by pip, checked against
# the hashes in packaging/deb/*.lock, which are of wheels for Debian 12 on amd64. The same checkout gives the same bytes
# (SOURCE_DATE_EPOCH; by default the time of the last commit). DEBFULLNAME and DEBEMAIL name the maintainer.
set -euo pipefail
# shellcheck source=packaging/debian-lib.sh
. "$(dirname "$0")/debian-lib.sh"
umask 022

deb=$project/packaging/deb
work=$cache/deb
python=/usr/bin/python3
target=${1:-$project/dist}

version=$(sed -n 's/^ *version="\(.*\)",$/\1/p' "$project/setup.py")
architecture=$(dpkg --print-architecture)
maintainer="${DEBFULLNAME:-etcd-compute} <${DEBEMAIL:-etcd-compute@example.org}>"

# The time of the last commit; without git that of the changelog, which every version changes.
commit_time() {
  git -c safe.directory="$project" -C "$project" log -1 --format=%ct 2>/dev/null || stat -c %Y "$project/CHANGELOG.md"
}

# pip of our own, whose version comes with Debian's Python
have_pip() {
  [ -x "$work/venv/bin/pip" ] && "$work/venv/bin/pip" --version >/dev/null 2>&1 && return
  rm -rf "$work/venv"
  "$python" -m venv "$work/venv" >"$logs/deb-pip.log" 2>&1 || die "cannot make a virtual environment; apt-get install python3-venv"
}

# bundle LOCK DIRECTORY: the wheels that LOCK names, unpacked; kept until LOCK is another one
bundle() {
  local log=$logs/deb-pip.log kept
  kept=$work/bundle-$(sha256sum "$1" | cut -c1-16)
  if [ ! -d "$kept" ]; then
    rm -rf "$kept.partial"
    "$work/venv/bin/pip" install -q --disable-pip-version-check --no-deps --require-hashes --only-binary :all: --no-compile \
      --no-warn-script-location --target "$kept.partial" -r "$1" >"$log" 2>&1 ||
      die "pip failed: $(grep -m1 '^ERROR' "$log" || tail -n 1 "$log"); $1 is for Debian 12 on amd64; log: $log"
    rm -rf "$kept.partial"/{bin,share,include} # programs that name the Python of this machine's virtual environment
    find "$kept.partial" -name direct_url.json -delete
    mv "$kept.partial" "$kept"
  fi
  mkdir -p "$2"
  cp -r "$kept/." "$2/"
}

# fill TEMPLATE SIZE: TEMPLATE with what is between @ put in; SIZE in KiB
fill() {
  local minor run
  minor=$("$python" -c 'import sys; print(sys.version_info.minor)') # the compiled modules are for this one
  run=$(packages_of run | paste -sd, | sed 's/,/, /g')
  sed -e "s/@VERSION@/$version/; s/@ARCHITECTURE@/$architecture/; s/@MAINTAINER@/$maintainer/; s/@SIZE@/$2/; s/@RUN@/$run/" \
    -e "s/@PYTHON@/3.$minor/; s/@PYTHON_NEXT@/3.$((minor + 1))/" "$1"
}

# documents ROOT PACKAGE FILE...: FILEs, who may do what with it, and what changed
documents() {
  local root=$1 package=$2 doc=$1/usr/share/doc/$2 bundled
  shift 2
  mkdir -p "$doc" "$root/usr/share/lintian/overrides"
  cp "$@" "$doc/"
  bundled=$(sed -n 's/^\([^# =]*\)==\([^ ]*\) .*/ \1 \2/p' "$deb/$package.lock")
  awk -v bundled="$bundled" -v package="$package" '/^@BUNDLED@$/ { print bundled; next } { gsub(/@PACKAGE@/, package); print }' \
    "$deb/copyright" >"$doc/copyright"
  {
    printf '%s (%s) stable; urgency=medium\n\n' "$package" "$version"
    printf '  * What changed for users: CHANGELOG.md of etcd-compute.\n\n -- %s  ' "$maintainer"
    LC_ALL=C date -u -R -d "@$SOURCE_DATE_EPOCH"
  } | gzip -9n >"$doc/changelog.gz"
  cp "$deb/$package/lintian-overrides" "$root/usr/share/lintian/overrides/$package"
}

# units ROOT PACKAGE UNIT...
units() {
  local root=$1 package=$2 unit
  shift 2
  mkdir -p "$root/lib/systemd/system" "$root/usr/lib/sysusers.d"
  for unit in "$@"; do cp "$project/packaging/systemd/$unit" "$root/lib/systemd/system/"; done
  cp "$project/packaging/systemd/$package.sysusers" "$root/usr/lib/sysusers.d/$package.conf"
  [ ! -f "$project/packaging/systemd/$package.tmpfiles" ] || {
    mkdir -p "$root/usr/lib/tmpfiles.d"
    cp "$project/packaging/systemd/$package.tmpfiles" "$root/usr/lib/tmpfiles.d/$package.conf"
  }
}

# close ROOT PACKAGE: ROOT as a package in $target
close() {
  local root=$1 package=$2 result=$target/$2_${version}_$architecture.deb size file
  find "$root" -name __pycache__ -prune -exec rm -rf {} +
  size=$(du -k -s --apparent-size "$root" | cut -f1)
  mkdir -p "$root/DEBIAN"
  fill "$deb/$package/control" "$size" >"$root/DEBIAN/control"
  for file in postinst prerm postrm; do install -m 0755 "$deb/$package/$file" "$root/DEBIAN/$file"; done
  # shellcheck disable=SC2015 # a package without /etc has none
  (cd "$root" && find etc -type f -printf '/%p\n' 2>/dev/null | sort) >"$root/DEBIAN/conffiles" || true
  [ -s "$root/DEBIAN/conffiles" ] || rm "$root/DEBIAN/conffiles"
  (cd "$root" && find . -path ./DEBIAN -prune -o -type f -printf '%P\n' | LC_ALL=C sort | xargs -d '\n' md5sum) >"$root/DEBIAN/md5sums"
  find "$root" -type d -exec chmod 0755 {} + -o -type f -not -path "$root/DEBIAN/*" -exec chmod 0644 {} +
  for file in "$root"/usr/bin/* "$root/usr/lib/$package"/{serve,run-placement,bin/python}; do
    [ ! -f "$file" ] || chmod 0755 "$file"
  done
  [ ! -f "$root/etc/etcd-compute/placement.env" ] || chmod 0640 "$root/etc/etcd-compute/placement.env"
  dpkg-deb --root-owner-group -Zxz -z1 --build "$root" "$result.partial" >"$logs/deb-$package.log" 2>&1 || die "dpkg-deb: $(tail -n 1 "$logs/deb-$package.log")"
  mv "$result.partial" "$result"
  echo "$result"
}

# completion HOME SHELL: what SHELL has to read to complete command lines of the programs in HOME
completion() {
  PYTHONPATH=$1 PYTHONDONTWRITEBYTECODE=1 "$python" -m eschedule.main completion "$2" || die "no completion for $2 could be made"
}

build_compute() {
  local root=$work/etcd-compute home program module function sample
  home=$root/usr/lib/etcd-compute
  mkdir -p "$home" "$root/usr/bin" "$root/usr/share/doc/etcd-compute/examples" "$root/etc/etcd-compute"
  bundle "$deb/etcd-compute.lock" "$home"
  cp -r "$project"/{common,ecompute,eschedule,md_server} "$home/"
  mkdir "$home/etcd_compute-$version.dist-info" # programs ask by it which version they are
  printf 'Metadata-Version: 2.1\nName: etcd-compute\nVersion: %s\n' "$version" >"$home/etcd_compute-$version.dist-info/METADATA"
  for program in ecompute:ecompute.main:command eschedule:eschedule.main:command md-server:md_server.main:main; do
    IFS=: read -r program module function <<<"$program"
    sed "s/@MODULE@/$module/; s/@FUNCTION@/$function/" "$deb/program" >"$root/usr/bin/$program"
  done
  PYTHONPATH=$home PYTHONDONTWRITEBYTECODE=1 "$python" "$project/packaging/manpages.py" "$root/usr/share/man" || die "no manual could be made"
  gzip -9n "$root"/usr/share/man/man?/*
  mkdir -p "$root/usr/share/bash-completion/completions" "$root/usr/share/fish/vendor_completions.d"
  completion "$home" bash >"$root/usr/share/bash-completion/completions/eschedule"
  completion "$home" fish >"$root/usr/share/fish/vendor_completions.d/eschedule.fish"
  units "$root" etcd-compute ecompute.service md-server.service
  documents "$root" etcd-compute "$project"/{README,CHANGELOG}.md "$project"/docs/*.md
  sample=$root/usr/share/doc/etcd-compute/examples
  cp "$project"/{compute,schedule}.yaml "$sample/"
  # With the package md-server is a unit of its own, of a user of its own.
  sed -i 's/^  mode: managed$/  mode: external/' "$sample/compute.yaml"
  grep -q '^  mode: external$' "$sample/compute.yaml" || die "compute.yaml has no line '  mode: managed' any more"
  close "$root" etcd-compute
}

build_placement() {
  local root=$work/etcd-compute-placement home program
  home=$root/usr/lib/etcd-compute-placement
  mkdir -p "$home/bin" "$home/placement" "$root/etc/etcd-compute"
  bundle "$deb/etcd-compute-placement.lock" "$home/python"
  cp "$project/packaging/run-placement" "$deb/etcd-compute-placement/serve" "$project/common/service_notify.py" "$home/"
  cp "$project"/packaging/placement/*.py "$home/placement/" 2>/dev/null || rmdir "$home/placement"
  cp "$deb/etcd-compute-placement/python" "$home/bin/python"
  for program in gunicorn placement-manage waitress-serve; do ln -s python "$home/bin/$program"; done
  cp "$deb/etcd-compute-placement/placement.env" "$root/etc/etcd-compute/"
  units "$root" etcd-compute-placement etcd-compute-placement.service
  documents "$root" etcd-compute-placement "$project"/README.md "$project"/docs/install.md
  close "$root" etcd-compute-placement
}

mkdir -p "$logs" "$work" "$target"
exec 9>"$work/lock"
flock -w 600 9 || die "another build in this checkout has not ended in 10 minutes"
export SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(commit_time)}
have_pip
rm -rf "$work/etcd-compute" "$work/etcd-compute-placement"
build_compute
build_placement
