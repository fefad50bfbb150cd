"""The file view as the daemon has it: optional, because pyfuse3 has to be compiled."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import trio

from bockd.errors import NotSupportedError
from bockd.fuse.nodes import NodeTable
from bockd.runtime.steprunner import StepRunner


class FileView:
    """A mount to come; made before the event loop runs. NotSupportedError without pyfuse3."""

    def __init__(self, path: Path, data_dir: Path) -> None:
        if find_spec("pyfuse3") is None:
            raise NotSupportedError(
                "--mount needs pyfuse3, which is not installed: 'make setup', or install the "
                "packages fuse3, libfuse3-dev, pkg-config, gcc and python3-dev and then "
                "'pip install .[fuse]' in bockd's directory"
            )
        from bockd.fuse.mountpoint import never_wait_for_own_writeback

        self.path = path
        self._data_dir = data_dir
        never_wait_for_own_writeback()

    async def serve(
        self,
        nodes: NodeTable,
        runner: StepRunner,
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Mount, and serve until cancelled or unmounted. Raises BockdError when it cannot."""
        from bockd.fuse.serving import serve_view
        from bockd.fuse.view import View

        view = View(nodes, runner)
        await serve_view(view, self.path, self._data_dir, task_status=task_status)
