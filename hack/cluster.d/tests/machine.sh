# shellcheck shell=bash disable=SC2154,SC2016
# The machine around the node: what `up` and `down` leave of it.

# snapshot: what a second cluster could have changed, one thing a line.
snapshot() {
  (
    awk '{ print "mount", $5, $9 }' /proc/self/mountinfo | grep -v -e "$DIRECTORY" || true
    ip -o link | sed 's/^[0-9]*: /link /; s/ mtu.*//'
    ip -o addr | awk '{ print "address", $2, $4 }'
    iptables-save 2>/dev/null | grep -v '^#' | sed 's/\[[0-9:]*\]//; s/^/iptables /'
    for file in net/ipv4/ip_forward vm/overcommit_memory vm/panic_on_oom kernel/panic kernel/panic_on_oops \
      kernel/keys/root_maxkeys kernel/keys/root_maxbytes net/netfilter/nf_conntrack_max kernel/hostname; do
      [ ! -e "/proc/sys/$file" ] || echo "setting $file $(<"/proc/sys/$file")"
    done
    find /etc /usr /opt /lib /root /home /srv /var/lib /var/log -xdev -printf 'file %p\n' 2>/dev/null | grep -v -E '/var/lib/(apt|dpkg)|/\.cache/'
    find /run -xdev -maxdepth 1 -printf 'file %p\n'
    find /sys/fs/cgroup -maxdepth 2 -name 'rtc-cluster-*' -printf 'cgroup %p\n'
    ls -d "$1" 2>/dev/null || true
  ) | sort
}

# A second cluster beside this one: it comes up, and with its end the machine is as before.
test_down_leaves_the_machine_as_it_was() {
  local second=$DIRECTORY-second server
  # shellcheck disable=SC2153
  server=$(. "$DIRECTORY/settings" && echo "$SERVER")
  snapshot "$second" >"$DIRECTORY/before"
  (
    # shellcheck source=/dev/null
    . "$DIRECTORY/settings"
    RTC_CLUSTER=$second CRI=$CRI SHIM=$(realpath "$DIRECTORY/bin/containerd-shim-rtc-v2") "$ROOT/hack/cluster" up --server "$server"
  )
  RTC_CLUSTER=$second "$ROOT/hack/cluster" kubectl get --raw /readyz
  contains 'beside this one' "$(RTC_CLUSTER=$second "$ROOT/hack/cluster" kubectl get namespaces -o name)" namespace/kube-system
  RTC_CLUSTER=$second "$ROOT/hack/cluster" down
  snapshot "$second" >"$DIRECTORY/after"
  # Processes that are still there say whose they are.
  equal processes "$(pgrep -f "$second" || true)" ''
  diff "$DIRECTORY/before" "$DIRECTORY/after"
}

# said COMMAND...: what a command says that has to fail.
said() {
  local output
  if output=$("$@" 2>&1); then fail "succeeded: $*"; fi
  echo "$output"
}

test_a_wrong_call_or_machine_is_said_and_nothing_is_left() {
  local nowhere=/var/tmp/rtc-cluster-nowhere
  contains 'a cluster that runs' "$(said "$ROOT/hack/cluster" up)" 'there is a cluster'
  contains 'none runs' "$(RTC_CLUSTER=$nowhere said "$ROOT/hack/cluster" status)" 'no cluster runs'
  contains 'none to end' "$(RTC_CLUSTER=$nowhere said "$ROOT/hack/cluster" down)" 'no cluster'
  contains 'another server' "$(RTC_CLUSTER=$nowhere said "$ROOT/hack/cluster" up --server docker)" '--server docker'
  contains 'a place of the node' "$(RTC_CLUSTER=/run/cluster said "$ROOT/hack/cluster" up)" RTC_CLUSTER=/run/cluster
  contains 'not root' "$(RTC_CLUSTER=$nowhere said setpriv --reuid 65534 --clear-groups "$ROOT/hack/cluster" up)" root
  contains 'no networks' "$(RTC_CLUSTER=$nowhere said setpriv --bounding-set -net_admin "$ROOT/hack/cluster" up)" CAP_NET_ADMIN
  contains 'no namespaces' "$(RTC_CLUSTER=$nowhere said setpriv --bounding-set -sys_admin "$ROOT/hack/cluster" up)" CAP_SYS_ADMIN
  [ ! -e "$nowhere" ] || fail "$nowhere is there"
}

test_a_directory_that_no_cluster_made_is_neither_removed_nor_believed() {
  local foreign=/var/tmp/rtc-cluster-foreign verb
  mkdir -m 755 "$foreign"
  echo 'touch /var/tmp/rtc-cluster-foreign/run' >"$foreign/settings"
  for verb in up down status; do
    contains "$verb" "$(RTC_CLUSTER=$foreign said "$ROOT/hack/cluster" "$verb")" "no cluster's"
  done
  touch "$foreign/.rtc-cluster"
  chmod 777 "$foreign"
  contains 'writable by all' "$(RTC_CLUSTER=$foreign said "$ROOT/hack/cluster" down)" "no cluster's"
  equal 'what is there' "$(ls "$foreign")" settings
  rm -r "$foreign"
}
