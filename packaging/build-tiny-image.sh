#!/bin/bash
# build-tiny-image.sh [OUT.qcow2]   a small bootable guest image (tiny-image/README.md says what it can do)
#
# Prints the image's path: OUT.qcow2, or where it is kept in .cache. It is built once for each state of these scripts and
# of the Debian packages that it is made of; needs no loop device, no mount, and installs nothing (section [unpacked] of
# debian-packages). Several at once are fine: one builds, the others wait for it.
set -euo pipefail
# shellcheck source=packaging/debian-lib.sh
. "$(dirname "$0")/debian-lib.sh"

sources=$project/packaging/tiny-image
images=$cache/tiny-image
size_mib=${TINY_IMAGE_MIB:-48} # of its disk; the guest grows to what it is given
building= # set while a failure is one of the build itself
ingredients=(linux-image-cloud-amd64 busybox-static dropbear-bin grub-common grub-pc-bin)

# The kernel itself and dropbear's own libraries have versions in their names: those packages depend on them.
versioned_ingredients() {
  apt-cache depends linux-image-cloud-amd64 dropbear-bin 2>/dev/null | awk '/Depends: (linux-image-[0-9]|libtom)/ { print $2 }'
}

# What the image is made of, one line each
scripts() {
  sha256sum "$0" "$sources"/* "${BASH_SOURCE[0]%/*}/debian-lib.sh" | cut -c1-64
  echo "$size_mib MiB"
}

recipe() {
  scripts
  mapfile -t versioned < <(versioned_ingredients)
  [ ${#versioned[@]} -ge 2 ] && package_versions "${ingredients[@]}" "${versioned[@]}"
}

# Asking apt takes a second: the answer holds until its lists or our scripts change.
question() { { scripts; stat -c %Y /var/lib/apt/lists; } | sha256sum | cut -c1-64; }

known_answer() {
  local asked answer
  read -r asked answer 2>/dev/null <"$images/current" || return
  [ "$asked" = "$(question)" ] && [ -f "$answer" ] && echo "$answer"
}

copy_program() { # copy_program PATH...: from the unpacked packages or the host, with the libraries that it is linked to
  local program library
  for program in "$@"; do
    cp "$program" "$root/usr/sbin/"
    while read -r library; do
      mkdir -p "$root$(dirname "${library#"$parts"}")"
      cp -L "$library" "$root${library#"$parts"}"
    done < <(LD_LIBRARY_PATH=$parts/usr/lib/x86_64-linux-gnu ldd "$program" | grep -oE '/[^ ]+')
  done
}

copy_modules() { # copy_modules ROOT MODULE...: with those that they need, unpacked, and the index that modprobe reads
  local into=$1 module file
  shift
  mkdir -p "$into/lib/modules/$kernel"
  while read -r file; do
    mkdir -p "$into$(dirname "${file#"$parts"}")"
    cp "$file" "$into${file#"$parts"}"
  done < <(for module in "$@"; do
    modprobe -d "$parts" -S "$kernel" --show-depends "$module" | awk '$1 == "insmod" { print $2 }'
  done | sort -u)
  find "$into/lib/modules/$kernel" -name '*.ko.xz' -exec xz -d {} +
  cp "$parts/lib/modules/$kernel"/modules.{order,builtin,builtin.modinfo} "$into/lib/modules/$kernel/"
  depmod -b "$into" "$kernel"
}

make_initrd() {
  local initrd=$work/initrd
  mkdir -p "$initrd"/{bin,dev,proc,sys,mnt}
  cp "$busybox" "$initrd/bin/busybox"
  install -m 0755 "$sources/initrd-init" "$initrd/init"
  copy_modules "$initrd" virtio_pci virtio_blk virtio_scsi sd_mod ext4 crc32c_generic virtio_net virtio_rng virtio_console virtio_balloon
  (cd "$initrd" && find . | "$busybox" cpio -o -H newc -R 0:0 2>/dev/null | gzip -6) >"$root/boot/initrd"
}

make_root() {
  local applet
  mkdir -p "$root"/{bin,sbin,dev,proc,sys,run,root/.ssh,mnt,tmp,boot/grub,lib,lib64,usr/bin,usr/sbin,usr/share/udhcpc} \
    "$root"/{etc/acpi/PWRF,etc/dropbear,var/lib,var/log}
  cp "$busybox" "$root/bin/busybox"
  for applet in $("$busybox" --list); do
    [ "$applet" = busybox ] || ln -s busybox "$root/bin/$applet"
  done
  ln -s ../bin/busybox "$root/sbin/init"
  copy_program "$parts/usr/sbin/dropbear" "$parts/usr/bin/dropbearkey" /sbin/resize2fs
  copy_modules "$root" evdev button virtio_scsi sd_mod virtio_console virtio_balloon
  cp "$sources/inittab" "$root/etc/inittab"
  install -m 0755 "$sources/rc" "$root/etc/rc"
  install -m 0755 "$sources/udhcpc-script" "$root/usr/share/udhcpc/default.script"
  printf '#!/bin/sh\nexec /sbin/poweroff\n' >"$root/etc/acpi/PWRF/00000080"
  chmod 0755 "$root/etc/acpi/PWRF/00000080"
  ln -s ../bin/poweroff "$root/sbin/poweroff"
  printf 'root::0:0:root:/root:/bin/sh\n' >"$root/etc/passwd"
  printf 'root:x:0:\n' >"$root/etc/group"
  printf '/bin/sh\n' >"$root/etc/shells"
  printf 'tiny\n' >"$root/etc/hostname"
  printf 'passwd: files\ngroup: files\nshadow: files\nhosts: files dns\n' >"$root/etc/nsswitch.conf"
  printf 'ID=tiny\nNAME="Tiny"\nVERSION_ID=1\nPRETTY_NAME="Tiny guest of etcd-compute"\n' >"$root/etc/os-release"
  printf '/dev/vda1 / ext4 defaults 0 1\n' >"$root/etc/fstab"
  chmod 0700 "$root/root" "$root/root/.ssh"
  cp "$parts/boot/vmlinuz-$kernel" "$root/boot/vmlinuz"
  cp "$sources/grub.cfg" "$root/boot/grub/grub.cfg"
}

# A disk with one partition at 1 MiB; grub's first sector and its core go before that, as grub-install would put them.
make_disk() {
  local raw=$work/disk.raw
  truncate -s "${size_mib}M" "$raw"
  printf 'label: dos\n2048,,83,*\n' | sfdisk -q "$raw"
  mke2fs -q -t ext4 -b 4096 -m 0 -J size=4 -E offset=1048576,root_owner=0:0 -d "$root" "$raw" $(((size_mib - 1) * 256))
  LD_LIBRARY_PATH=$parts/usr/lib/x86_64-linux-gnu "$parts/usr/bin/grub-mkimage" -d "$parts/usr/lib/grub/i386-pc" -O i386-pc \
    -p '(hd0,msdos1)/boot/grub' -o "$work/core.img" biosdisk part_msdos ext2 linux normal configfile boot
  dd if="$parts/usr/lib/grub/i386-pc/boot.img" of="$raw" bs=440 count=1 conv=notrunc status=none
  dd if="$work/core.img" of="$raw" bs=512 seek=1 conv=notrunc status=none
  qemu-img convert -f raw -O qcow2 -c "$raw" "$work/tiny.qcow2"
}

build() { # build KEPT: make the image in $work and keep it under that name, in place of older ones
  local kept=$1 busybox kernel parts=$work/parts root=$work/root log=$logs/tiny-image.log versioned
  mapfile -t versioned < <(versioned_ingredients)
  unpack_packages "$parts" "${ingredients[@]}" "${versioned[@]}"
  building=1
  busybox=$parts/bin/busybox
  kernel=$(basename "$parts"/boot/vmlinuz-*-cloud-amd64)
  kernel=${kernel#vmlinuz-}
  {
    depmod -b "$parts" "$kernel"
    make_root
    make_initrd
    make_disk
  } >"$log" 2>&1
  cp "$parts/boot/vmlinuz-$kernel" "$work/vmlinuz"
  sync "$work/tiny.qcow2"
  mv "$work/vmlinuz" "$images/vmlinuz" # beside the image, for tests that boot a kernel alone
  rm -f "$images"/*.qcow2
  mv "$work/tiny.qcow2" "$kept"
  building=
}

clean_up() {
  rm -rf "$work"
  [ -z "$building" ] || die "building the image failed: $(tail -n 1 "$logs/tiny-image.log"); log: $logs/tiny-image.log"
}

find_or_build() { # sets name
  local lines
  if ! lines=$(recipe); then
    fresh_package_lists
    lines=$(recipe) || die "apt knows no $(printf '%s ' "${ingredients[@]}"): check /etc/apt/sources.list*"
  fi
  name=$images/tiny-$(sha256sum <<<"$lines" | cut -c1-16).qcow2
  if [ ! -f "$name" ]; then
    rm -rf "$images"/work.* # of builds that were killed: the lock is ours
    work=$(mktemp -d "$images/work.XXXXXX")
    trap 'clean_up' EXIT
    build "$name"
  fi
  echo "$(question) $name" >"$images/current.partial"
  mv "$images/current.partial" "$images/current"
}

main() {
  local out=${1:-} name
  [ "$(dpkg --print-architecture 2>/dev/null)" = amd64 ] || die "the tiny image is made of Debian's amd64 packages; this is no amd64 Debian"
  mkdir -p "$images" "$logs"
  exec 9>"$images/lock"
  flock -w 300 9 || die "another build of the image in $images has not ended in 5 minutes"
  name=$(known_answer) || name=
  [ -n "$name" ] || find_or_build # and not "known_answer || find_or_build": bash would go on after an error inside
  [ -n "$out" ] || { echo "$name"; return; }
  cp --sparse=always "$name" "$out.partial"
  mv "$out.partial" "$out"
  echo "$out"
}

main "$@"
