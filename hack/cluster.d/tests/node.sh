# shellcheck shell=bash disable=SC2154,SC2016
# The node: drained, and its components killed one after the other.

# Only the budget allows: never below it; what is of the node itself stays.
test_a_node_is_drained_and_comes_back() {
  deployment web 2 "$(serve drained)" | apply
  k rollout status deployment/web --timeout=120s >/dev/null
  k create poddisruptionbudget web --selector app=web --max-unavailable 2 >/dev/null
  kube drain "$NODE_NAME" --ignore-daemonsets --delete-emptydir-data --timeout=180s --pod-selector app=web >/dev/null 2>&1
  equal schedulable "$(kube get node "$NODE_NAME" -o 'jsonpath={.spec.unschedulable}')" true
  becomes 60 'Pending Pending' k get pods -l app=web -o 'jsonpath={.items[*].status.phase}'
  kube uncordon "$NODE_NAME" >/dev/null
  k rollout status deployment/web --timeout=120s >/dev/null
}

# kill_process PATTERN: on the node, by its command line.
kill_process() {
  local pid
  # shellcheck disable=SC2009 # pgrep is not everywhere
  pid=$(on_node ps -eo pid,args | grep -E -- "$1" | grep -v grep | awk '{ print $1; exit }')
  [ -n "$pid" ] || fail "no process $1"
  on_node kill -KILL "$pid"
}
identity() { field pod/steady '{.status.containerStatuses[0].containerID} {.status.containerStatuses[0].restartCount} {.metadata.uid}'; }
works() {
  pod "after-$1" 'echo made' '{}' '{"restartPolicy": "Never"}' | k apply -f - &&
    k wait --for=jsonpath='{.status.phase}'=Succeeded "pod/after-$1" --timeout=10s &&
    k exec steady -- true
}

# Nobody helps: static pods are started again by the kubelet, the kubelet and the CRI server by the node's first process.
test_each_component_is_killed_and_the_cluster_comes_back() {
  local name before
  declare -A processes=([server]="--config $DIRECTORY/server.toml" [kubelet]='^ *[0-9]+ kubelet '
    [scheduler]='^ *[0-9]+ kube-scheduler ' [controllers]='^ *[0-9]+ kube-controller-manager ' [proxy]='kube-proxy --config'
    [dns]='^ *[0-9]+ /coredns ' [api]='^ *[0-9]+ kube-apiserver ' [etcd]='^ *[0-9]+ etcd ')
  pod steady "$STAY" | apply
  ready steady
  before=$(identity)
  for name in "${!processes[@]}"; do
    kill_process "${processes[$name]}"
    sleep 1
    eventually 180 works "$name"
    becomes 60 "$before" identity
  done
  eventually 120 system_is_ready
}
system_is_ready() {
  local pods
  pods=$(kube -n kube-system get pods --no-headers) && [ -n "$pods" ] && ! grep -vqE ' 1/1 +Running' <<<"$pods"
}

# A shim that is killed takes its own pod's containers with it, and the kubelet starts them again; no other pod is touched.
test_a_killed_shim_costs_its_own_pod_alone() {
  local before
  [ "$(. "$DIRECTORY/settings" && echo "$SERVER")" = rtc-cri ] || return 0
  pod steady "$STAY" | apply
  pod victim "echo victim; $STAY" | apply
  ready steady victim
  before=$(identity)
  on_node kill -KILL "$(shim_of victim)"
  becomes 120 1 restarts victim
  ready victim
  equal steady "$(identity)" "$before"
}

# shim_of POD: the parent of its container's first process.
shim_of() {
  local id
  id=$(field "pod/$1" '{.metadata.uid}')
  on_node sh -c 'for pid in $(find /sys/fs/cgroup -path "*'"$id"'*" -name cgroup.procs -exec cat {} + | sort -un); do
    [ "$pid" = 0 ] || { sed -n "s/^PPid:[[:space:]]*//p" "/proc/$pid/status"; exit; }; done'
}
