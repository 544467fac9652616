# Adds a headless Chromium and fonts to `code-interpreter-v1`. Runs as root, chrooted into it with this layer on top.
# $APT_PACKAGES is the recipe's list; $APT_CONFIG holds the building machine's sources and stays in /run (a tmpfs).
set -eu
export DEBIAN_FRONTEND=noninteractive LC_ALL=C.UTF-8

apt-get -q update
apt-get -q install -y --no-install-recommends $APT_PACKAGES

# Every program here that asks for "the" browser gets one that starts in a sandbox: Chromium's own sandbox needs a user
# namespace inside ours, which is denied; the sandbox around it is Atoll's.
cat >/etc/chromium.d/sandboxed <<'EOT'
export CHROMIUM_FLAGS="$CHROMIUM_FLAGS --no-sandbox --disable-gpu --disable-dev-shm-usage"
EOT

# The first start would index fonts in every new sandbox.
fc-cache -s
apt-get clean
rm -rf /var/lib/apt/lists/* /var/cache/apt/* /var/log/*.log /var/log/apt /var/cache/ldconfig/aux-cache /root/.cache
install -d /var/lib/apt/lists/partial /var/cache/apt/archives/partial /var/log/apt
