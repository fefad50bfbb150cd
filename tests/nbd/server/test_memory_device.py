"""The in-memory device against a plain bytearray: any operations give the same bytes."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from bockd.drivers.memory.device import MemoryDevice
from bockd.runtime.steps import run_inline

SIZE = 5 * 4096
RANGE = st.tuples(st.integers(0, SIZE), st.integers(0, SIZE)).map(sorted)
OPERATION = st.tuples(st.sampled_from(["write", "zero", "allocate", "trim"]), RANGE, st.binary())


@given(st.lists(OPERATION, max_size=20))
def test_the_device_holds_what_a_bytearray_would(
    operations: list[tuple[str, list[int], bytes]],
) -> None:
    device, oracle = MemoryDevice(SIZE), bytearray(SIZE)
    for name, (start, end), seed in operations:
        length = end - start
        if name == "write":
            data = (seed or b"x") * length
            assert device.try_write(start, memoryview(data[:length]))
            oracle[start:end] = data[:length]
        elif name == "trim":
            run_inline(device.trim(start, length))
            first, last = -(-start // 4096) * 4096, end // 4096 * 4096
            if first < last:
                oracle[first:last] = bytes(last - first)
        else:
            run_inline(device.zero(start, length, allocate=name == "allocate"))
            oracle[start:end] = bytes(length)
    found = memoryview(bytearray(SIZE))
    assert device.try_read(0, found)
    assert found == oracle
    extents = run_inline(device.extents(0, SIZE, 100))
    assert device.try_extents(0, SIZE, 100) == extents
    assert sum(extent.length_bytes for extent in extents) == SIZE
    for extent in extents:
        if extent.hole:
            assert not any(oracle[extent.offset_bytes :][: extent.length_bytes])
