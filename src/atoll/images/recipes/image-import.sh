# Adds what fetches and unpacks images to `base`. Runs as root, chrooted into it with this layer on top.
# $APT_PACKAGES is the recipe's list; $APT_CONFIG holds the building machine's sources and stays in /run (a tmpfs).
set -eu
export DEBIAN_FRONTEND=noninteractive LC_ALL=C.UTF-8

apt-get -q update
apt-get -q install -y --no-install-recommends $APT_PACKAGES
skopeo --version
apt-get clean
rm -rf /var/lib/apt/lists/* /var/cache/apt/* /var/log/*.log /var/log/apt /var/cache/ldconfig/aux-cache /root/.cache
install -d /var/lib/apt/lists/partial /var/cache/apt/archives/partial /var/log/apt
