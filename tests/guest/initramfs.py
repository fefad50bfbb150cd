"""The guest's whole user space: an initramfs of busybox, the tools under test, and kernel modules.

The kernel is the distribution's own, unpacked by set-up into .cache/guest-kernel/current, which
holds `vmlinuz` and `modules/` (the tree that is /lib/modules/RELEASE once installed).
"""

from __future__ import annotations

import lzma
import os
import re
import shutil
import subprocess
from pathlib import Path

KERNEL_DIR = Path(__file__).resolve().parents[2] / ".cache" / "guest-kernel" / "current"

MODULES = ("virtio_pci", "virtio_net", "virtio_console", "virtio_blk", "nbd", "ext4")
"""What the guest needs of the kernel; what it has built in is not loaded."""

LATER_MODULES = ("xfs",)
"""What a test loads when it needs it, with `load_module`."""

# On a busy host the timer's interrupts come late, which the kernel would take for a broken one.
KERNEL_ARGUMENTS = "console=ttyS0 loglevel=5 panic=-1 mitigations=off no_timer_check"
"""A panic ends QEMU (with -no-reboot), so that the test sees it at once."""

TOOLS = ("nbd-client", "mkfs.ext4", "e2fsck", "resize2fs")
"""The real programs, in /sbin with their libraries; everything else is busybox's. Its shell may
prefer one of its own of that name: there they are called by their paths."""

CHANNEL_NAME = "bockd.guest"
"""The virtio-serial port on which the guest takes commands."""

SEARCH_PATH = os.pathsep.join((os.environ.get("PATH", ""), "/usr/sbin", "/sbin"))
"""A user's PATH on Debian has no sbin, where most of the tools are."""

# A command arrives as one line of base64 and is answered by the line "STATUS LENGTH" and LENGTH
# bytes of output: base64 keeps newlines out of the one, the length takes any bytes in the other.
# The port's first line tells that the guest is up.
TAKE_COMMANDS = f"""\
for port in /sys/class/virtio-ports/*; do
    [ "$(cat $port/name)" = {CHANNEL_NAME} ] && exec 3<>/dev/${{port##*/}}
done
echo ready >&3
while read -r line <&3; do
    echo "$line" | base64 -d >/tmp/command
    sh /tmp/command </dev/null >/tmp/output 2>&1 3>&-
    status=$?
    echo "$status $(stat -c %s /tmp/output)" >&3
    cat /tmp/output >&3
done
"""

BEGIN = """\
#!/bin/busybox sh
/bin/busybox mkdir -p /dev /proc /sys /tmp /mnt /run
/bin/busybox mount -t devtmpfs devtmpfs /dev
exec </dev/console >/dev/console 2>&1
/bin/busybox --install -s /bin
for program in /sbin/*; do rm -f /bin/${program##*/}; done
export PATH=/sbin:/bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
while read -r module arguments; do
    insmod /modules/$module $arguments || poweroff -f
done </modules/order
"""

INIT = f"""\
{BEGIN}
ip link set lo up
ip address add 10.0.2.15/24 dev eth0
ip link set eth0 up
ip route add default via 10.0.2.2
{TAKE_COMMANDS}
poweroff -f
"""

INIT_OF_DISK = f"""\
{BEGIN}
mkdir /disk
mount -t ext4 /dev/vda /disk || poweroff -f
umount /sys /proc
mount --move /dev /disk/dev
exec switch_root /disk /sbin/init
"""
"""Goes on with the system that the first disk holds, an ext4 without partitions."""

MODULE_ARGUMENTS = {"nbd": "nbds_max=4"}


def load_module(name: str) -> str:
    """The guest's command that loads one of LATER_MODULES."""
    return (
        f"while read -r module; do insmod /modules/$module || exit 1; done </modules/order.{name}"
    )


def find_tool(name: str) -> str:
    """The path of a program; raises FileNotFoundError that says what to run."""
    path = shutil.which(name, path=SEARCH_PATH)
    if path is None:
        raise FileNotFoundError(f"{name} is not installed; run: make setup")
    return path


def find_kernel() -> Path:
    """The guest's kernel image; raises FileNotFoundError that says what to run."""
    kernel = KERNEL_DIR / "vmlinuz"
    if not kernel.exists():
        raise FileNotFoundError(f"there is no guest kernel at {kernel}; run: make setup")
    return kernel


def build_initramfs(root: Path, image: Path, init: str = INIT) -> None:
    """Lay the guest's files out under `root`, a new directory, and pack them into `image`."""
    (root / "bin").mkdir(parents=True)
    shutil.copy2(find_tool("busybox"), root / "bin" / "busybox")
    for tool in TOOLS:
        _install_program(Path(find_tool(tool)), root)
    _install_modules(root / "modules")
    program = root / "init"
    program.write_text(init)
    program.chmod(0o755)
    _pack(root, image)


def _install_program(program: Path, root: Path) -> None:
    _copy(program, root / "sbin" / program.name)
    listing = subprocess.run(["ldd", program], check=True, capture_output=True, text=True).stdout
    # "libc.so.6 => /lib/libc.so.6 (0x...)", or "/lib64/ld-linux-x86-64.so.2 (0x...)"
    for library in re.findall(r"(/\S+) \(0x", listing):
        _copy(Path(library), root / library.lstrip("/"))


def _copy(source: Path, target: Path) -> None:
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(source, target)


def _install_modules(target: Path) -> None:
    """Put the modules, uncompressed, into `target`, and the order to load them into `order`."""
    target.mkdir()
    tree = KERNEL_DIR / "modules"
    builtin = {
        _module_name(Path(line)) for line in (tree / "modules.builtin").read_text().splitlines()
    }
    files = {_module_name(path): path for path in tree.rglob("*.ko*")}
    order: list[str] = []

    def install(name: str) -> None:
        if name in builtin or name in order:
            return
        image = _read_module(files[name])
        for needed in _dependencies(image):
            install(needed)
        (target / name).write_bytes(image)
        order.append(name)

    def write_order(name: str, names: list[str]) -> None:
        lines = (f"{name} {MODULE_ARGUMENTS.get(name, '')}\n" for name in names)
        (target / name).write_text("".join(lines))

    for name in MODULES:
        install(name)
    write_order("order", order)
    for name in LATER_MODULES:
        loaded = len(order)
        install(name)
        write_order(f"order.{name}", order[loaded:])


def _module_name(path: Path) -> str:
    """The kernel takes "-" and "_" in a module's name for the same."""
    return path.name.split(".ko")[0].replace("-", "_")


def _read_module(path: Path) -> bytes:
    if path.suffix == ".xz":
        return lzma.decompress(path.read_bytes())
    if path.suffix == ".zst":
        command = [find_tool("zstd"), "-dc", str(path)]
        return subprocess.run(command, check=True, capture_output=True).stdout
    return path.read_bytes()


def _dependencies(image: bytes) -> list[str]:
    """The modules that a module needs, from its .modinfo: modules.dep comes of an installation."""
    found = re.search(rb"\0depends=([^\0]*)\0", image)
    names = found.group(1).decode().split(",") if found else []
    return [name.replace("-", "_") for name in names if name]


def _pack(root: Path, image: Path) -> None:
    names = sorted(str(path.relative_to(root)) for path in root.rglob("*"))
    with image.open("wb") as output:
        subprocess.run(
            ["cpio", "--create", "--format=newc", "--owner=0:0", "--quiet"],
            cwd=root,
            input="\n".join(names).encode(),
            stdout=output,
            check=True,
        )
