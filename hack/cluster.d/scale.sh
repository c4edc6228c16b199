# shellcheck shell=bash disable=SC2153,SC2154
# Sourced by hack/cluster: times a Deployment that grows to many pods and goes again.

# cpu NAME...: seconds of processor time that these cgroups of v1 or v2 have had.
cpu_seconds() {
  local directory=/sys/fs/cgroup/cpuacct$1
  if [ -e "$directory/cpuacct.usage" ]; then
    awk '{ printf "%.1f", $1 / 1e9 }' "$directory/cpuacct.usage"
  else
    awk '/^usage_usec/ { printf "%.1f", $2 / 1e6 }' "/sys/fs/cgroup$1/cpu.stat"
  fi
}

run_scale() {
  local pods=${1:-100} image=registry.k8s.io/e2e-test-images/busybox:1.29-4 began up gone all
  [[ $pods =~ ^[1-9][0-9]*$ ]] || die "scale takes a number of pods, not $pods"
  first_process >/dev/null
  . "$DIRECTORY/settings"
  # It ends when it is told to, so that what is timed is not a grace period.
  kube create deployment many --image "$image" --replicas 1 -- sh -c "trap 'exit 0' TERM; sleep 100000 & wait" >/dev/null
  kube rollout status deployment/many --timeout=120s >/dev/null # the image is there
  all=$(cpu_seconds "$CGROUP")
  began=$(milliseconds)
  kube scale deployment many --replicas "$pods" >/dev/null
  kube rollout status deployment/many --timeout=900s >/dev/null
  up=$(($(milliseconds) - began))
  printf '%s: 1 to %d pods ready: %d.%d s; CPU of the whole node with its pods: %s s\n' "$SERVER" "$pods" $((up / 1000)) $((up / 100 % 10)) \
    "$(awk "BEGIN { print $(cpu_seconds "$CGROUP") - $all }")"
  began=$(milliseconds)
  kube delete deployment many --cascade=foreground --timeout=900s >/dev/null
  kube wait --for=delete pod -l app=many --timeout=900s >/dev/null
  gone=$(($(milliseconds) - began))
  printf '%s: all gone: %d.%d s\n' "$SERVER" $((gone / 1000)) $((gone / 100 % 10))
}
