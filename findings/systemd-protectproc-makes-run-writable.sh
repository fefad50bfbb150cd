#!/bin/bash
# systemd: ProtectSystem=strict leaves /run read-only or writable, by what else the unit has.
#
# Expected: more Protect...= directives never give a service more to write: with ProtectSystem=strict all
# but /dev, /proc and /sys is read-only (systemd.exec(5)), and ProtectProc=invisible is about /proc. Seen
# (systemd 257.13 of Debian 13): with ProtectSystem=strict alone /run is read-only; as soon as
# ProtectProc= is there, too, or ProtectKernelTunables= or ProtectControlGroups=, /run is writable to whom
# its modes admit. Those imply MountAPIVFS=yes, which has the same effect: it mounts /proc, /sys, /dev and
# /run in the service's namespace, and those mounts keep their own flags. ReadOnlyPaths=/run says what a
# unit's author means, whichever others there are.
#
# Root, debootstrap and systemd-nspawn: systemd is the first process of a container of Debian 13.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf --one-file-system "$work"' EXIT
debootstrap --variant=minbase --include=systemd-sysv,dbus trixie "$work/root" >"$work/log" ||
    { tail "$work/log" && exit 1; }

cat >"$work/root/root/ask" <<'ASK'
#!/bin/bash
# ask UNIT-PROPERTY...: what the mount of /run allows a service, which runs as root, to do.
properties=()
for each in "$@"; do properties+=("--property=$each"); done
if systemd-run --quiet --wait --pipe "${properties[@]}" touch /run/probe 2>/dev/null; then
    echo "writable: $*"
else
    echo "read-only: $*"
fi
rm -f /run/probe
ASK
cat >"$work/root/root/ask-all" <<'ALL'
#!/bin/bash
systemctl --version | head -n1
ask=/root/ask
bash $ask ProtectSystem=strict
for more in ProtectProc=invisible ProtectKernelTunables=yes ProtectControlGroups=yes MountAPIVFS=yes; do
    bash $ask ProtectSystem=strict $more
    bash $ask ProtectSystem=strict $more ReadOnlyPaths=/run
done
ALL
cat >"$work/root/etc/systemd/system/ask.service" <<'UNIT'
[Unit]
After=multi-user.target dbus.service
SuccessAction=poweroff
FailureAction=poweroff
[Service]
Type=oneshot
StandardOutput=truncate:/root/said
ExecStart=/bin/bash /root/ask-all
[Install]
WantedBy=multi-user.target
UNIT
chroot "$work/root" systemctl --quiet enable ask.service

# systemd takes version 2 of control groups only, which some machines have beside version 1.
unshare --mount --propagation=private bash -euc '
    umount --recursive --lazy /sys/fs/cgroup
    mount -t cgroup2 none /sys/fs/cgroup
    group=/sys/fs/cgroup/finding-$$
    mkdir "$group"
    echo $$ >"$group/cgroup.procs"
    systemd-nspawn --quiet --register=no --keep-unit --private-network --console=pipe \
        --machine=finding --directory="$1" --boot </dev/null >"$1.console" 2>&1 || tail "$1.console"
    echo $$ >/sys/fs/cgroup/cgroup.procs
    find "$group" -depth -type d -exec rmdir {} +' container "$work/root"

cat "$work/root/root/said"
diff <(tail -n +2 "$work/root/root/said") - <<'END' || { echo "the behaviour has changed" && exit 1; }
read-only: ProtectSystem=strict
writable: ProtectSystem=strict ProtectProc=invisible
read-only: ProtectSystem=strict ProtectProc=invisible ReadOnlyPaths=/run
writable: ProtectSystem=strict ProtectKernelTunables=yes
read-only: ProtectSystem=strict ProtectKernelTunables=yes ReadOnlyPaths=/run
writable: ProtectSystem=strict ProtectControlGroups=yes
read-only: ProtectSystem=strict ProtectControlGroups=yes ReadOnlyPaths=/run
writable: ProtectSystem=strict MountAPIVFS=yes
read-only: ProtectSystem=strict MountAPIVFS=yes ReadOnlyPaths=/run
END
echo "as described: what implies MountAPIVFS= makes /run writable"
