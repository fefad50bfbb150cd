"""Tests of disks in VMs: with a real QEMU without a guest, and with peers that are no QEMU."""
