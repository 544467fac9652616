"""What a layer deletes, from the marks of an OCI layer's archive to those of overlayfs.

    .wh.NAME        NAME is gone               → a character device 0:0 called NAME
    .wh..wh..opq    nothing of below is seen   → the attribute `opaque` of the directory

The tree is a stranger's: no link in it is followed, and nothing of a file is read. Nobody else changes it meanwhile.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

_MARK = ".wh."
_OPAQUE = ".wh..wh..opq"


def apply_marks(layer: Path) -> None:
    """Blocks. Raises OSError, ValueError (directories too deep in one another)."""
    try:
        _apply(layer)
    except RecursionError as error:
        raise ValueError("the layer has too many directories in one another") from error


def _apply(layer: Path) -> None:
    attribute = "trusted.overlay.opaque" if os.geteuid() == 0 else "user.overlay.opaque"
    for _, directories, files, descriptor in os.fwalk(layer, follow_symlinks=False):
        present = {*directories, *files}
        for name in files:
            if not name.startswith(_MARK):
                continue
            os.unlink(name, dir_fd=descriptor)
            hidden = name.removeprefix(_MARK)
            if name == _OPAQUE:
                os.setxattr(descriptor, attribute, b"y")
            elif hidden not in ("", ".", "..") and hidden not in present:
                os.mknod(hidden, stat.S_IFCHR, 0, dir_fd=descriptor)
