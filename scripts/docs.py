"""Builds the documents' site and packs it into the package: src/atoll/control/documents.zip. `make docs` calls it."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKED = ROOT / "src" / "atoll" / "control" / "documents.zip"


def main() -> None:
    """Ends with 1 where a page cannot be made; a link that leads nowhere is such an error."""
    (ROOT / "build").mkdir(exist_ok=True)
    # Of its own: two that run at once do not build into each other's, and a server never reads half a file.
    with tempfile.TemporaryDirectory(prefix="documents-", dir=ROOT / "build") as place:
        site, draft = Path(place) / "site", Path(place) / "documents.zip"
        command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(site)]
        environ = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
        done = subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            sys.exit(done.stderr)
        with zipfile.ZipFile(draft, "w", zipfile.ZIP_DEFLATED) as packed:
            for path in sorted(site.rglob("*")):
                if path.is_file() and path.suffix not in (".map", ".gz"):
                    packed.write(path, str(path.relative_to(site)))
        draft.replace(PACKED)
    print(f"documents: {PACKED.stat().st_size >> 10} KiB; `atoll serve` has them at /docs")


if __name__ == "__main__":
    main()
