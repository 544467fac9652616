# Adds Jupyter kernels and the usual data libraries to `base`. Runs as root, chrooted into base with this layer on top.
# $PIP_PACKAGES and $APT_PACKAGES are the recipe's lists; pip's and apt's own settings come from the machine that builds
# and stay in /run (a tmpfs).
set -eu
export DEBIAN_FRONTEND=noninteractive LC_ALL=C.UTF-8 HOME=/run/build/home
mkdir -p "$HOME"

# apt downloads and unpacks while pip resolves and downloads. What apt says is shown when it is done.
(
  install -d /usr/share/man/man1 # Java's package links into it
  apt-get -q update
  apt-get -q install -y --no-install-recommends -o Acquire::Retries=3 -o Dpkg::Options::=--force-unsafe-io $APT_PACKAGES
) >/run/build/apt.log 2>&1 &
apt=$!

# Wheels only: nothing that a package brings along is run as root here.
python3 -m pip install --only-binary=:all: --no-cache-dir --no-warn-script-location --progress-bar off $PIP_PACKAGES
wait "$apt" || { cat /run/build/apt.log; exit 1; }
tail -n 3 /run/build/apt.log

install -d /usr/local/share/jupyter/kernels/ir
cat >/usr/local/share/jupyter/kernels/ir/kernel.json <<'EOF'
{
  "argv": ["/usr/bin/R", "--slave", "-e", "IRkernel::main()", "--args", "{connection_file}"],
  "display_name": "R",
  "language": "R",
  "interrupt_mode": "signal"
}
EOF
install -d /usr/local/share/jupyter/kernels/javascript
cat >/usr/local/share/jupyter/kernels/javascript/kernel.json <<'EOF'
{
  "argv": ["/usr/local/bin/deno", "jupyter", "--kernel", "--conn", "{connection_file}"],
  "display_name": "Deno",
  "language": "typescript",
  "env": {"NO_COLOR": "1"}
}
EOF

# Without the launcher that the wheel brings, which would keep a second JVM for the first. What is opened is what the
# guest sets a cell's variables in. One compiler alone halves the processor time of a start (1.4 s instead of 2.5).
cat >/usr/local/share/jupyter/kernels/java/kernel.json <<'EOF'
{
  "argv": [
    "/usr/bin/java", "--add-opens=jdk.jshell/jdk.jshell=ALL-UNNAMED", "--add-opens=java.base/java.util=ALL-UNNAMED",
    "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-XX:-UsePerfData", "-jar", "{resource_dir}/jjava.jar", "{connection_file}"
  ],
  "display_name": "Java",
  "language": "java",
  "interrupt_mode": "message"
}
EOF

# `import x from "x"` of what `npm install` put into node_modules, in a JavaScript cell and with any directory; a file of
# that name nearer to the program wins.
printf '{ "nodeModulesDir": "manual", "lock": false }\n' >/deno.json

# What matplotlib's own font lacks, programs take from the one that has Chinese, Japanese and Korean.
settings=$(python3 -c 'import matplotlib; print(matplotlib.get_data_path())')/matplotlibrc
sed -i 's/^#*font\.family:.*/font.family: sans-serif, WenQuanYi Micro Hei/' "$settings"

# What the first import would otherwise do in every new sandbox: byte code is there (pip compiles), fonts are indexed.
install -d /usr/local/share/matplotlib
MPLCONFIGDIR=/usr/local/share/matplotlib MPLBACKEND=agg python3 -c 'import matplotlib.font_manager'
install -d -o user -g user -m 0755 /home/user/.cache /home/user/.cache/matplotlib
install -o user -g user -m 0644 /usr/local/share/matplotlib/fontlist-*.json /home/user/.cache/matplotlib/
rm -rf /usr/local/share/matplotlib

apt-get clean
rm -rf /root/.cache /root/.config /root/.ipython
rm -rf /var/lib/apt/lists/* /var/cache/apt/* /var/log/*.log /var/log/apt /var/cache/ldconfig/aux-cache
install -d /var/lib/apt/lists/partial /var/cache/apt/archives/partial /var/log/apt
