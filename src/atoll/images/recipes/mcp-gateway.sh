# Adds the MCP gateway to `base`: its packages in a directory of their own, so that servers may have other versions.
# Runs as root, chrooted into base with this layer on top.
set -eu
export LC_ALL=C.UTF-8 HOME=/run/build/home
mkdir -p "$HOME"
python3 -m venv --without-pip /opt/mcp-gateway
python3 -m pip --python /opt/mcp-gateway/bin/python install --only-binary=:all: --no-cache-dir --progress-bar off $PIP_PACKAGES
install -m 0644 /run/build/mcp_gateway.py /opt/mcp-gateway/gateway.py
printf '#!/bin/sh\nexec /opt/mcp-gateway/bin/python -I /opt/mcp-gateway/gateway.py "$@"\n' >/usr/local/bin/mcp-gateway
chmod 0755 /usr/local/bin/mcp-gateway
