#!/bin/bash
# ext4: growing a mounted file system needs CAP_SYS_RESOURCE, not CAP_SYS_ADMIN.
#
# Expected: whoever may mount a file system (root with CAP_SYS_ADMIN, as in a privileged container) may
# grow it, as with XFS. Seen (e2fsprogs 1.47.0, xfsprogs 6.1.0, Linux 6.18): without CAP_SYS_RESOURCE,
# and with all other capabilities, resize2fs of the mounted file system ends with "Permission denied to
# resize filesystem", while xfs_growfs succeeds. Unmounted, the same resize2fs works.
#
# Root, loop devices, ext4 and XFS; the distribution's e2fsprogs, xfsprogs and util-linux.
set -euo pipefail
export PATH=$PATH:/usr/sbin:/sbin

work=$(mktemp -d)
devices=()
clean() {
    umount "$work/ext4.dir" "$work/xfs.dir" 2>/dev/null || true
    ((${#devices[@]} == 0)) || losetup --detach "${devices[@]}"
    rm -rf "$work"
}
trap clean EXIT
mkfs.ext4 -V 2>&1 | head -n1
mkfs.xfs -V
without() { setpriv --bounding-set -sys_resource --inh-caps -sys_resource -- "$@"; }
changed() { echo "the behaviour has changed: $*"; exit 1; }

for kind in ext4 xfs; do
    truncate -s 320M "$work/$kind"
    device=$(losetup --find --show "$work/$kind")
    devices+=("$device")
    "mkfs.$kind" -q "$device"
    mkdir "$work/$kind.dir"
    mount "$device" "$work/$kind.dir"
    truncate -s 400M "$work/$kind"
    losetup --set-capacity "$device"
done

if without resize2fs "${devices[0]}" 2>&1 | tee "$work/said"; then :; fi
grep -q 'Permission denied to resize filesystem' "$work/said" || changed "ext4 grew, or failed otherwise"
without xfs_growfs "$work/xfs.dir" | tail -n1
(($(stat -f -c '%b * %S' "$work/xfs.dir") > 300 << 20)) || changed "XFS did not grow"
umount "$work/ext4.dir"
without e2fsck -fp "${devices[0]}" >/dev/null
without resize2fs "${devices[0]}" || changed "ext4 did not grow while it was not mounted"
echo "as described: mounted ext4 needs CAP_SYS_RESOURCE, XFS does not"
