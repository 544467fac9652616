# Adds an X server, Xfce, a browser and a VNC server to `base`: what the package e2b-desktop calls, by the names and paths
# that it uses. Runs as root, chrooted into base with this layer on top. $APT_PACKAGES is the recipe's list; $APT_CONFIG
# holds the building machine's sources and stays in /run (a tmpfs).
set -eu
export DEBIAN_FRONTEND=noninteractive LC_ALL=C.UTF-8

apt-get -q update
apt-get -q install -y --no-install-recommends $APT_PACKAGES

# Pages and scripts alone: the package's dependencies (another Node, OpenStack's configuration) serve what is not used.
cd /run/build
apt-get -q -o APT::Sandbox::User=root download novnc
dpkg-deb -x novnc_*.deb novnc
cp -r novnc/usr/share/novnc /opt/noVNC
install -D -m 0644 novnc/usr/share/doc/novnc/copyright /opt/noVNC/LICENSE

# Chromium's own sandbox needs a user namespace inside ours, which is denied; the sandbox around it is Atoll's.
cat >/etc/chromium.d/sandboxed <<'EOT'
export CHROMIUM_FLAGS="$CHROMIUM_FLAGS --no-sandbox --disable-gpu --disable-dev-shm-usage --no-first-run --test-type"
EOT
# `launch("google-chrome")` is the first example of the package.
sed 's/^Name=.*/Name=Google Chrome (Chromium)/; /^NoDisplay/d; $aNoDisplay=true' \
  /usr/share/applications/chromium.desktop >/usr/share/applications/google-chrome.desktop
ln -s chromium /usr/bin/google-chrome
for kind in x-scheme-handler/http x-scheme-handler/https text/html; do
  defaults="${defaults-}$kind=chromium.desktop\n"
done
for kind in text/plain text/x-python application/javascript text/javascript application/json text/markdown text/css; do
  defaults="$defaults$kind=org.xfce.mousepad.desktop\n"
done
printf "[Default Applications]\n$defaults" >/etc/xdg/mimeapps.list

# Debian's waits for ever for a mouse that is there already: the package's `left_click(100, 200)`, called twice.
cat >/usr/local/bin/xdotool <<'EOT'
#!/bin/sh
if [ "$# $1 $2" = "4 mousemove --sync" ]; then
  case $(/usr/bin/xdotool getmouselocation) in "x:$3 y:$4 "*) exit 0 ;; esac
fi
exec /usr/bin/xdotool "$@"
EOT
chmod 0755 /usr/local/bin/xdotool

# Programs type here: a key that a busy machine leaves down for long is still one letter.
install -d /etc/xdg/xfce4/xfconf/xfce-perchannel-xml
cat >/etc/xdg/xfce4/xfconf/xfce-perchannel-xml/keyboards.xml <<'EOT'
<?xml version="1.0" encoding="UTF-8"?>
<channel name="keyboards" version="1.0">
  <property name="Default" type="empty"><property name="KeyRepeat" type="bool" value="false"/></property>
</channel>
EOT

# The first start would ask which panel to make, or index fonts in every new sandbox.
[ -e /etc/xdg/xfce4/panel/default.xml ]
fc-cache -s
apt-get clean
rm -rf /var/lib/apt/lists/* /var/cache/apt/* /var/log/*.log /var/log/apt /var/cache/ldconfig/aux-cache /root/.cache
install -d /var/lib/apt/lists/partial /var/cache/apt/archives/partial /var/log/apt
rm -f /etc/machine-id /var/lib/dbus/machine-id
: >/etc/machine-id
