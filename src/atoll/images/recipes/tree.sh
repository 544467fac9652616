# Runs one script inside a template tree, in private mount, pid, ipc and uts namespaces: all mounts vanish with them.
# usage: sh tree.sh MOUNT_POINT INPUTS_DIR [LOWERDIR UPPERDIR WORKDIR]
# INPUTS_DIR holds what the script may see of the machine that builds; it appears as /run/build on a tmpfs.
set -eu
root=$1 inputs=$2
if [ $# -gt 2 ]; then
  mount -t overlay overlay -o "lowerdir=$3,upperdir=$4,workdir=$5" "$root"
else
  mount --bind "$root" "$root"
fi
mount -t proc -o nosuid,nodev,noexec proc "$root/proc"
mount -t tmpfs -o nosuid,mode=0755 tmpfs "$root/dev"
for node in null zero full random urandom; do
  : >"$root/dev/$node"
  mount --bind "/dev/$node" "$root/dev/$node"
done
mkdir "$root/dev/shm"
ln -s /proc/self/fd "$root/dev/fd"
mount -t tmpfs -o nosuid,nodev,mode=0755 tmpfs "$root/run"
mount -t tmpfs -o nosuid,nodev,mode=1777 tmpfs "$root/tmp"
mkdir "$root/run/build"
cp -rL "$inputs/." "$root/run/build/"
if [ -e "$inputs/binds" ]; then
  while IFS='	' read -r name source; do
    mkdir -p "$root/run/build/$name"
    mount --bind "$source" "$root/run/build/$name"
    mount -o remount,bind,ro "$root/run/build/$name"
  done <"$inputs/binds"
fi
for file in resolv.conf hosts; do
  [ ! -e "$inputs/$file" ] || [ ! -e "$root/etc/$file" ] || mount --bind "$inputs/$file" "$root/etc/$file"
done
hostname sandbox
# What the script runs needs to own and write files, not to change the machine.
exec chroot "$root" setpriv \
  --inh-caps=-all --bounding-set=-all,+chown,+dac_override,+fowner,+fsetid,+setuid,+setgid,+kill \
  /bin/sh /run/build/script.sh
