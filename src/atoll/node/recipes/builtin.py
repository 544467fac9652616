"""The recipes that ship with Atoll. Data only."""

from __future__ import annotations

from types import MappingProxyType

from atoll.node.recipes.recipe import Recipe

BASE = Recipe(
    name="base",
    summary="Debian with a shell, git, Python, Node and the tools that agents reach for",
    script="base.sh",
    apt_packages=(
        # shell and files
        "bash", "coreutils", "less", "nano", "vim-tiny", "file", "tree", "unzip", "zip", "xz-utils", "bzip2", "jq", "ripgrep",
        # being root when needed, looking at processes and ports
        "sudo", "procps", "psmisc", "lsof", "iproute2", "netcat-openbsd",
        # getting things
        "ca-certificates", "curl", "wget", "git", "openssh-client",
        # languages
        "python3", "python-is-python3", "python3-pip", "python3-venv", "nodejs",
    ),
)  # fmt: skip

CODE_INTERPRETER = Recipe(
    name="code-interpreter-v1",
    summary="base with a Jupyter kernel, numpy, pandas, matplotlib and scikit-learn",
    script="code-interpreter-v1.sh",
    parent="base",
    names=("code-interpreter",),
    pip_packages=(
        # the kernel
        "jupyter_client>=8.6", "ipykernel>=6.29,<8",
        # what the platform promises
        "numpy", "pandas", "matplotlib", "scikit-learn",
        # what people import next
        "pillow", "requests", "sympy", "openpyxl", "plotly", "seaborn", "beautifulsoup4",
    ),
    env_vars=MappingProxyType({"MPLBACKEND": "module://matplotlib_inline.backend_inline"}),
    interpreter=True,
)  # fmt: skip

RECIPES: MappingProxyType[str, Recipe] = MappingProxyType({r.name: r for r in (BASE, CODE_INTERPRETER)})
