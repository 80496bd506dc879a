#!/bin/bash
# build-cloud-image.sh   Debian with cloud-init, as an image in three forms (cloud-image/README.md says which and what for)
#
# Prints the folder that has them, in .cache. They are built once for each state of these scripts and of the Debian packages that
# they are made of; needs root and mmdebstrap, no loop device and no mount of its own. Several at once are fine: one builds, the
# others wait for it.
set -euo pipefail
# shellcheck source=packaging/image-lib.sh
. "$(dirname "$0")/image-lib.sh"

sources=$project/packaging/cloud-image
size_mib=1024 # of its disk; the guest grows to what it is given
mapfile -t packages < <(awk '{ sub(/#.*/, "") } NF { print $1 }' "$sources/packages")
tools=(grub-common grub-pc-bin) # unpacked beside it, not part of it
ingredients=("${packages[@]}" "${tools[@]}")
release=$(. /etc/os-release && echo "${VERSION_CODENAME:-}")

scripts() {
  sha256sum "$0" "$sources"/* "${0%/*}"/{debian,image}-lib.sh | cut -c1-64
  echo "$release $size_mib MiB"
}

recipe() {
  scripts
  package_versions "${ingredients[@]}"
}

# Where this machine gets Debian from, and nothing else that somebody added to it
debian_sources() {
  local file
  for file in /etc/apt/sources.list.d/debian.sources /etc/apt/sources.list; do
    [ ! -s "$file" ] || { echo "$file"; return; }
  done
}

install_packages() {
  local mirrors folder options=(--aptopt='Acquire::Languages "none"' --aptopt='APT::Install-Recommends "false"' --dpkgopt=force-unsafe-io)
  mapfile -t mirrors < <(debian_sources) # none: mmdebstrap knows Debian's own
  for folder in man doc locale info lintian; do
    options+=(--dpkgopt="path-exclude=/usr/share/$folder/*")
  done
  mmdebstrap --mode=root --variant=minbase --format=directory "${options[@]}" \
    --include="$(IFS=,; echo "${packages[*]}")" "$release" "$root" "${mirrors[@]}"
  rm -f "$root"/etc/{apt/apt.conf,dpkg/dpkg.cfg}.d/99mmdebstrap
}

# What makes it an image: nothing in it is one guest's own, and nothing starts by the clock while a guest boots
generalize() {
  rm -f "$root"/etc/ssh/ssh_host_* "$root"/etc/systemd/system/timers.target.wants/* \
    "$root/etc/systemd/system/multi-user.target.wants/e2scrub_reap.service"
  : >"$root/etc/machine-id"
  echo localhost >"$root/etc/hostname"
  echo LANG=C.UTF-8 >"$root/etc/default/locale"
  : >"$root/etc/resolv.conf" # mmdebstrap leaves the building machine's there
  echo 'LABEL=rootfs / ext4 defaults,discard 0 1' >"$root/etc/fstab"
  printf 'source /etc/network/interfaces.d/*\nauto lo\niface lo inet loopback\n' >"$root/etc/network/interfaces"
  cp "$sources/cloud.cfg" "$root/etc/cloud/cloud.cfg.d/91_image.cfg"
  cp "$sources/datasource.cfg" "$root/etc/cloud/cloud.cfg.d/90_dpkg.cfg"
  mkdir -p "$root/boot/grub"
  cp "$sources/grub.cfg" "$root/boot/grub/grub.cfg"
  ln "$root"/boot/vmlinuz-* "$root/boot/vmlinuz"
  ln "$root"/boot/initrd.img-* "$root/boot/initrd"
}

# replace_file INSIDE FILE: in the file system on the raw disk, unmounted; debugfs itself never fails
replace_file() {
  local file_system="$work/disk.raw?offset=1048576"
  printf '%s\n' "rm $1" "write $2 $1" | debugfs -w -f - "$file_system"
  debugfs -R "cat $1" "$file_system" | cmp - "$2"
}

# make_form FORM: the image of which cloud-image/datasource-FORM.cfg is a part
make_form() {
  local settings=/etc/cloud/cloud.cfg.d/90_dpkg.cfg
  [ -z "$1" ] || replace_file "$settings" "$sources/datasource-$1.cfg"
  qemu-img convert -f raw -O qcow2 -c -o compression_type=zstd "$work/disk.raw" "$work/done/debian${1:+-$1}.qcow2"
}

build() { # build KEPT: make the folder of images in $work and keep it under that name, in place of older ones
  local root=$work/root form
  [ "$(id -u)" = 0 ] || die "needs root: the image is made in a chroot"
  command -v mmdebstrap >/dev/null || die "there is no mmdebstrap here: apt-get install mmdebstrap"
  unpack_packages "$work/tools" "${tools[@]}"
  building=1
  mkdir "$work/done"
  {
    install_packages
    generalize
    make_disk "$work/disk.raw" "$size_mib" "$root" "$work/tools" -L rootfs
    rm -rf "$root"
    for form in "" ec2 nocloud; do make_form "$form"; done
  } >"$build_log" 2>&1
  sync "$work"/done/*
  rm -rf "$images"/debian-*
  mv "$work/done" "$1"
  building=
}

kept_image cloud-image debian ""
echo "$name"
