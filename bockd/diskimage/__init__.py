"""Disk images as files: what one is, whether it is whole, and whether it can become a volume.

kinds       what a file's name promises and what its first and last bytes show
opening     the one way in: a file becomes an `Image`, or an error says what to do
whole       whether the file holds all that its own metadata says
extents     which bytes of an image hold data, and how many of them are not zeros
room        whether the pool's disk has room for one
tools       how QEMU's programs are run
"""

from bockd.diskimage.opening import IMPORT_FORMATS, INSIST, Image, check_file, open_image
from bockd.diskimage.tools import missing_tool, run_tool, tool_failure, tool_message

__all__ = [
    "IMPORT_FORMATS",
    "INSIST",
    "Image",
    "check_file",
    "missing_tool",
    "open_image",
    "run_tool",
    "tool_failure",
    "tool_message",
]
