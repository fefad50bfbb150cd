"""Volumes as disks of running virtual machines, plugged in and out through QEMU's own monitor.

QMP is spoken by QEMU's package `qemu.qmp`, which needs asyncio: each operation on a VM is one
conversation in a thread of its own (`bockd.vm.machines`), and trio never sees the other loop.
"""
