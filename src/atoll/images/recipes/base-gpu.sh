# `base` for sandboxes with a GPU. Runs as root, chrooted into base with this layer on top.
# A driver's libraries come from the host; where that is not Debian they may lie where Debian's linker does not look.
set -eu
printf '/usr/lib64\n/usr/local/nvidia/lib64\n' >/etc/ld.so.conf.d/gpu.conf
