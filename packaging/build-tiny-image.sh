#!/bin/bash
# build-tiny-image.sh [OUT.qcow2]   a small bootable guest image (tiny-image/README.md says what it can do)
#
# Prints the image's path: OUT.qcow2, or where it is kept in .cache. It is built once for each state of these scripts and
# of the Debian packages that it is made of; needs no loop device, no mount, and installs nothing (section [unpacked] of
# debian-packages). Several at once are fine: one builds, the others wait for it.
set -euo pipefail
# shellcheck source=packaging/image-lib.sh
. "$(dirname "$0")/image-lib.sh"

sources=$project/packaging/tiny-image
size_mib=${TINY_IMAGE_MIB:-48} # of its disk; the guest grows to what it is given
ingredients=(linux-image-cloud-amd64 busybox-static dropbear-bin grub-common grub-pc-bin)

# The kernel itself and dropbear's own libraries have versions in their names: those packages depend on them.
versioned_ingredients() {
  apt-cache depends linux-image-cloud-amd64 dropbear-bin 2>/dev/null | awk '/Depends: (linux-image-[0-9]|libtom)/ { print $2 }'
}

# What the image is made of, one line each
scripts() {
  sha256sum "$0" "$sources"/* "${0%/*}"/{debian,image}-lib.sh | cut -c1-64
  echo "$size_mib MiB"
}

recipe() {
  scripts
  mapfile -t versioned < <(versioned_ingredients)
  [ ${#versioned[@]} -ge 2 ] && package_versions "${ingredients[@]}" "${versioned[@]}"
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
  copy_modules "$root" evdev button isofs virtio_scsi sd_mod virtio_console virtio_balloon
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

build() { # build KEPT: make the image in $work and keep it under that name, in place of older ones
  local kept=$1 busybox kernel parts=$work/parts root=$work/root versioned
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
    copy_modules "$work/modules" bridge dummy # for tests, as the kernel is
    make_disk "$work/disk.raw" "$size_mib" "$root" "$parts" -m 0 -J size=4
    qemu-img convert -f raw -O qcow2 -c "$work/disk.raw" "$work/tiny.qcow2"
  } >"$build_log" 2>&1
  cp "$parts/boot/vmlinuz-$kernel" "$work/vmlinuz"
  sync "$work/tiny.qcow2"
  mv "$work/vmlinuz" "$images/vmlinuz" # beside the image, for tests that boot a kernel alone
  rm -rf "$images/modules"
  mv "$work/modules" "$images/modules"
  rm -f "$images"/*.qcow2
  mv "$work/tiny.qcow2" "$kept"
  building=
}

main() {
  local out=${1:-} name
  kept_image tiny-image tiny .qcow2
  [ -n "$out" ] || { echo "$name"; return; }
  cp --sparse=always "$name" "$out.partial"
  mv "$out.partial" "$out"
  echo "$out"
}

main "$@"
