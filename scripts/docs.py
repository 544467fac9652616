"""Builds the documents' site and packs it into the package: src/atoll/control/documents.zip. `make docs` calls it."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKED = ROOT / "src" / "atoll" / "control" / "documents.zip"


def main() -> None:
    """Ends with 1 where a page cannot be made; a link that leads nowhere is such an error."""
    site = ROOT / "build" / "site"
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--clean"]
    environ = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        sys.exit(done.stderr)
    with zipfile.ZipFile(PACKED, "w", zipfile.ZIP_DEFLATED) as packed:
        for path in sorted(site.rglob("*")):
            if path.is_file() and path.suffix not in (".map", ".gz"):
                packed.write(path, str(path.relative_to(site)))
    print(f"documents: {PACKED.stat().st_size >> 10} KiB; `atoll serve` has them at /docs")


if __name__ == "__main__":
    main()
