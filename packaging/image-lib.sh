# shellcheck shell=bash
# What build-tiny-image.sh and build-cloud-image.sh share: how an image is kept in .cache by what it is made of, and how a tree
# of files becomes a disk that boots, without a loop device or a mount. Sourced, never run; brings debian-lib.sh along.
#
# Who sources it has: ingredients, the Debian packages; scripts, which prints all else that the image is made of, a line each;
# recipe, which adds the packages' versions; and build NAME, which makes what is kept under NAME, in the folder $work.
# shellcheck source=packaging/debian-lib.sh
. "${BASH_SOURCE[0]%/*}/debian-lib.sh"

building= # set while a failure is one of the build itself, of which $build_log then says more

# kept_image FOLDER PREFIX SUFFIX: sets name to FOLDER/PREFIX-<hash>SUFFIX below .cache, which is built where it is missing; one
# build at a time, others wait for it
kept_image() {
  images=$cache/$1
  build_log=$logs/$1.log
  [ "$(dpkg --print-architecture 2>/dev/null)" = amd64 ] || die "the image is made of Debian's amd64 packages; this is no amd64 Debian"
  mkdir -p "$images" "$logs"
  exec 9>"$images/lock"
  flock -w 600 9 || die "another build of the image in $images has not ended in 10 minutes"
  name=$(known_answer) || name=
  [ -n "$name" ] || find_or_build "$2" "$3" # and not "known_answer || find_or_build": bash would go on after an error inside
}

# Asking apt takes a second: the answer holds until its lists or our scripts change.
question() { { scripts; stat -c %Y /var/lib/apt/lists; } | sha256sum | cut -c1-64; }

known_answer() {
  local asked answer
  read -r asked answer 2>/dev/null <"$images/current" || return
  [ "$asked" = "$(question)" ] && [ -e "$answer" ] && echo "$answer"
}

find_or_build() {
  local lines
  if ! lines=$(recipe); then
    fresh_package_lists
    # shellcheck disable=SC2154 # ingredients: see above
    lines=$(recipe) || die "apt does not know all of ${ingredients[*]}: check /etc/apt/sources.list*"
  fi
  name=$images/$1-$(sha256sum <<<"$lines" | cut -c1-16)$2
  if [ ! -e "$name" ]; then
    rm -rf "$images"/work.* # of builds that were killed: the lock is ours
    work=$(mktemp -d "$images/work.XXXXXX")
    trap 'clean_up' EXIT
    build "$name"
  fi
  echo "$(question) $name" >"$images/current.partial"
  mv "$images/current.partial" "$images/current"
}

clean_up() {
  rm -rf "$work"
  [ -z "$building" ] || die "building the image failed: $(tail -n 1 "$build_log"); log: $build_log"
}

# make_disk RAW MIB ROOT GRUB [MKE2FS-OPTION...]: a disk with one partition at 1 MiB that holds the files of ROOT; the boot loader's
# first sector and its core go before that, as grub-install would put them. GRUB: where grub-common and grub-pc-bin are unpacked.
make_disk() {
  local raw=$1 mib=$2 tree=$3 grub=$4
  shift 4
  truncate -s "${mib}M" "$raw"
  printf 'label: dos\n2048,,83,*\n' | sfdisk -q "$raw"
  mke2fs -q -t ext4 -b 4096 "$@" -E offset=1048576,root_owner=0:0 -d "$tree" "$raw" $(((mib - 1) * 256))
  LD_LIBRARY_PATH=$grub/usr/lib/x86_64-linux-gnu "$grub/usr/bin/grub-mkimage" -d "$grub/usr/lib/grub/i386-pc" -O i386-pc \
    -p '(hd0,msdos1)/boot/grub' -o "$work/core.img" biosdisk part_msdos ext2 linux normal configfile boot
  dd if="$grub/usr/lib/grub/i386-pc/boot.img" of="$raw" bs=440 count=1 conv=notrunc status=none
  dd if="$work/core.img" of="$raw" bs=512 seek=1 conv=notrunc status=none
}
