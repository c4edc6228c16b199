# shellcheck shell=bash disable=SC2153
# (DIRECTORY: of hack/cluster)
# Sourced by hack/cluster: what the machine must have, and the cgroups of the node.

# check_machine: what no package brings; all that is missing is said at once, and nothing is made.
check_machine() {
  local missing=()
  [ "$(id -u)" = 0 ] || missing+=("root: you are user $(id -u); run it as: sudo $0 up")
  has_capability 12 || missing+=('CAP_NET_ADMIN: networks of pods can not be made')
  has_capability 21 || missing+=('CAP_SYS_ADMIN: namespaces and mounts can not be made')
  [ "$(uname -m)" = x86_64 ] || missing+=("an x86_64 processor: this one is $(uname -m)")
  grep -qE '^[^ ]+ [^ ]+ cgroup2? ' /proc/mounts || missing+=('a cgroup file system: mount cgroup2 at /sys/fs/cgroup')
  grep -qw overlay /proc/filesystems || modprobe overlay 2>/dev/null || missing+=('overlayfs: modprobe overlay')
  case $DIRECTORY in
    /var/lib* | /var/log* | /etc* | /usr* | /run* | /var/run* | [!/]*)
      missing+=("another directory: RTC_CLUSTER=$DIRECTORY is where the node has its own, or not absolute")
      ;;
  esac
  [ "$(stat -f -c %T "$(existing "$DIRECTORY")")" != overlayfs ] ||
    missing+=("a file system for images: $DIRECTORY is on an overlay: set RTC_CLUSTER to a directory that is not")
  if ((${#missing[@]} == 0)); then
    need_tools ip:iproute2 iptables:iptables unshare:util-linux nsenter:util-linux
    probe_iptables || missing+=("iptables for kube-proxy (above): another kernel, or modprobe xt_comment xt_statistic xt_addrtype xt_MASQUERADE")
    need_space "$(existing "$DIRECTORY")" 3000
  fi
  ((${#missing[@]} == 0)) && return
  printf 'missing: %s\n' "${missing[@]}" >&2
  exit 1
}

# existing PATH: itself, or the nearest directory above that there is.
existing() {
  local path=$1
  while [ ! -e "$path" ]; do path=$(dirname "$path"); done
  echo "$path"
}

# In a network that is gone afterwards: what kube-proxy's rules need of the kernel.
# shellcheck disable=SC2016 # expanded in the new namespace
probe_iptables() {
  unshare --net sh -ec '
    iptables -t nat -N probe
    iptables -t nat -A probe -m comment --comment probe -j MARK --or-mark 0x4000
    iptables -t nat -A probe -m statistic --mode random --probability 0.5 -j RETURN
    iptables -t nat -A probe -m addrtype --dst-type LOCAL -p tcp -m tcp --dport 80 -j DNAT --to-destination 192.0.2.1:80
    iptables -t nat -A POSTROUTING -m mark --mark 0x4000/0x4000 -j MASQUERADE --random-fully
    iptables -A FORWARD -m conntrack --ctstate INVALID -j DROP
    iptables -A FORWARD -p tcp -j REJECT' >&2
}

is_unified() { [ "$(stat -fc %T /sys/fs/cgroup)" = cgroup2fs ]; }

# Mount points of all hierarchies, each once.
hierarchies() {
  if is_unified; then
    echo /sys/fs/cgroup
  else
    awk '$5 ~ "^/sys/fs/cgroup/" { for (i = 6; $i != "-"; i++); if ($(i + 1) ~ /^cgroup2?$/) print $5 }' /proc/self/mountinfo
  fi
}

# cgroup_directories PATH: in every hierarchy.
cgroup_directories() { hierarchies | sed "s|\$|$1|"; }

# $CGROUP, below which the kubelet makes its own, and in it `node` for all that is no pod.
make_cgroups() {
  local root file controller
  CGROUP=/rtc-cluster-$$
  echo "CGROUP=$CGROUP" >"$DIRECTORY/settings" # for `down`, should the rest fail
  if is_unified; then
    for controller in cpu cpuset memory pids io; do
      ! grep -qw "$controller" /sys/fs/cgroup/cgroup.controllers ||
        echo "+$controller" >/sys/fs/cgroup/cgroup.subtree_control
    done
  fi
  for root in $(hierarchies); do
    mkdir -p "$root$CGROUP"
    # Of v1: a new one has none, and nothing can run in it.
    for file in cpuset.cpus cpuset.mems; do
      if ! is_unified && [ -e "$root/$file" ]; then cat "$root/$file" >"$root$CGROUP/$file"; fi
    done
    mkdir -p "$root$CGROUP/node"
    for file in cpuset.cpus cpuset.mems; do
      if ! is_unified && [ -e "$root/$file" ]; then cat "$root/$file" >"$root$CGROUP/node/$file"; fi
    done
  done
}

# remove_cgroups PATH: with what is still ending in them.
remove_cgroups() {
  local directory
  [[ $1 =~ ^/rtc-cluster-[0-9]+$ ]] || return 0
  for directory in $(cgroup_directories "$1"); do
    for _ in {1..200}; do
      find "$directory" -depth -type d -exec rmdir {} + 2>/dev/null || true
      [ -e "$directory" ] || break
      sleep 0.1
    done
    [ ! -e "$directory" ] || say "left: $directory"
  done
}
