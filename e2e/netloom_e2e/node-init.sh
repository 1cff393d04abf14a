#!/bin/sh
# Process 1 of a node: `node-init.sh NAME FOLDER`, in mount, uts, ipc and pid namespaces of its own, and in the node's
# network namespace. It makes the machine's file system look like a node's own, says so, and collects orphans until it is
# killed: then the kernel kills all that runs in here, and nothing of these mounts is left.
set -eu
name=$1 folder=$2

# The machine's /proc still shows the number by which the machine knows this process.
read -r pid _ </proc/self/stat
echo "$pid" >"$folder/pid"

mount --make-rprivate /
hostname "$name"
mount -t proc proc /proc

# /sys shows the devices of the network namespace it was mounted in; the control groups on it are kept.
mount -t tmpfs tmpfs /run
mkdir /run/cgroup
mount --rbind /sys/fs/cgroup /run/cgroup
mount -t sysfs sysfs /sys
mount --move /run/cgroup /sys/fs/cgroup
rmdir /run/cgroup
mount -t bpf bpf /sys/fs/bpf

# What is written to these stays in the node, and in its folder: a reboot finds it again.
for place in /etc /opt /var/log; do
    layer=$folder/layers$place
    mkdir -p "$layer/upper" "$layer/work"
    mount -t overlay -o "lowerdir=$place,upperdir=$layer/upper,workdir=$layer/work" "node$place" "$place"
done
# Nothing of the machine's own is seen in this one, where somebody else's agent may keep its state meanwhile. No overlay
# either: containerd lays its own, which cannot lie on one.
mkdir -p "$folder/plain/var/lib"
mount --bind "$folder/plain/var/lib" /var/lib
mkdir -p /var/lib/containerd /var/lib/kubelet

# A kubelet and kube-proxy set these for the whole machine, where they have nothing to say.
for setting in vm/overcommit_memory vm/panic_on_oom kernel/panic kernel/panic_on_oops kernel/keys/root_maxkeys \
    kernel/keys/root_maxbytes; do
    decoy=$folder/decoys/$setting
    mkdir -p "${decoy%/*}"
    cat "/proc/sys/$setting" >"$decoy"
    mount --bind "$decoy" "/proc/sys/$setting"
done

mkdir -p /etc/cni/net.d /opt/cni/bin /run/netns
mount --make-rshared /
: >"$folder/ready"

trap : CHLD
while :; do
    sleep 86400 &
    wait $! || :
done
