# Adds a Jupyter kernel and the usual data libraries to `base`. Runs as root, chrooted into base with this layer on top.
# $PIP_PACKAGES is the recipe's list; pip's own settings come from the machine that builds and stay in /run (a tmpfs).
set -eu
export LC_ALL=C.UTF-8 HOME=/run/build/home
mkdir -p "$HOME"

# Wheels only: nothing that a package brings along is run as root here.
python3 -m pip install --only-binary=:all: --no-cache-dir --no-warn-script-location --progress-bar off $PIP_PACKAGES
python3 -m bash_kernel.install --sys-prefix
install -d /usr/local/share/jupyter/kernels/javascript
cat >/usr/local/share/jupyter/kernels/javascript/kernel.json <<'EOF'
{
  "argv": ["/usr/local/bin/deno", "jupyter", "--kernel", "--conn", "{connection_file}"],
  "display_name": "Deno",
  "language": "typescript",
  "env": {"NO_COLOR": "1"}
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

rm -rf /root/.cache /root/.config /root/.ipython
