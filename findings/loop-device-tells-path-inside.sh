#!/usr/bin/env bash
# Expected: /sys/block/loopN/loop/backing_file and `losetup --list` tell the path of the file that a
# loop device is on, or mark it when there is no such path here, as /proc/PID/maps marks a deleted
# file. Seen (Linux 6.18, util-linux 2.38 of Debian 12): for a file of a file system that is mounted
# in another mount namespace only, or that was unmounted lazily, it is the path inside that file
# system, without a mark. So two devices on different disks are told to be on the same file, and a
# device number that was given away looks as if it were still ours. /sys/block/loopN/diskseq, which
# the kernel gives out once a boot, tells them apart; a new capacity does not change it.
# Needs root (loop devices, mounts) and Linux 5.15 or newer.
set -euo pipefail
work=$(mktemp -d)
devices=()
trap 'for d in "${devices[@]}"; do losetup --detach "$d" || true; done; rm -rf "$work"' EXIT

uname -r
losetup --version
for number in 1 2; do
    # The file system is mounted in a namespace of its own, which ends with the shell.
    device=$(unshare --mount sh -ec "
        mount -t tmpfs tmpfs '$work'
        mkdir '$work/volumes'
        truncate --size=16M '$work/volumes/1'
        losetup --find --show '$work/volumes/1'")
    devices+=("$device")
done
[ ! -e "$work/volumes/1" ]

paths=()
sequences=()
for device in "${devices[@]}"; do
    sys=/sys/block/${device#/dev/}
    before=$(cat "$sys/diskseq")
    losetup --set-capacity "$device"
    after=$(cat "$sys/diskseq")
    paths+=("$(cat "$sys/loop/backing_file")")
    sequences+=("$after")
    echo "$device: on $(cat "$sys/loop/backing_file"), sequence $before, after a new capacity $after"
    losetup --list --noheadings --output NAME,BACK-FILE "$device"
    [ "$before" = "$after" ]
done
[ "${paths[*]}" = "/volumes/1 /volumes/1" ]
[ "${sequences[0]}" != "${sequences[1]}" ]
