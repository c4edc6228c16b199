# shellcheck shell=bash disable=SC2034,SC2154
# (DIRECTORY, HERE, NODE_NAME, kube, on_node: of hack/cluster)
# Sourced by hack/cluster: runs the tests of tests/*.sh, each a function test_* in a namespace of its own that is deleted
# afterwards. Its output is shown where it fails.

readonly BUSYBOX=registry.k8s.io/e2e-test-images/busybox:1.29-4
# Ends at once when it is told to: a shell that waits for `sleep` does not.
readonly STAY="trap 'exit 0' TERM; while :; do sleep 1 & wait \$!; done"

# What tests are written with. `k` is kubectl in the test's namespace.
k() { kube -n "$NAMESPACE" "$@"; }
apply() { k apply -f - >/dev/null; }
fail() {
  echo "$*" >&2
  exit 1
}

# equal WHAT ACTUAL WANTED
equal() { [ "$2" = "$3" ] || fail "$1: ${2@Q}, not ${3@Q}"; }
# contains WHAT TEXT PART
contains() { [[ $2 == *"$3"* ]] || fail "$1: no ${3@Q} in ${2@Q}"; }
# eventually SECONDS COMMAND...: until it succeeds.
eventually() {
  local until=$((SECONDS + $1))
  shift
  until "$@" >/dev/null 2>&1; do
    ((SECONDS < until)) || fail "not in time: $*: $("$@" 2>&1 | tail -n 3)"
    sleep 0.5
  done
}
# becomes SECONDS WANTED COMMAND...: until it prints that.
becomes() {
  local until=$((SECONDS + $1)) wanted=$2 last
  shift 2
  until last=$("$@" 2>&1) && [ "$last" = "$wanted" ]; do
    ((SECONDS < until)) || fail "not in time: $*: ${last@Q}, not ${wanted@Q}"
    sleep 0.5
  done
}
ready() { k wait --for=condition=Ready pod "$@" --timeout=120s >/dev/null; }
# field KIND/NAME JSONPATH
field() { k get "$1" -o "jsonpath=$2"; }
# log_has POD TEXT
log_has() { k logs "$1" | grep -qF -- "$2"; }

# page ADDRESS PORT: what the node has by HTTP, of bash: a static busybox may not resolve names.
# shellcheck disable=SC2016 # expanded on the node
page() {
  on_node timeout 5 bash -c 'exec 3<>"/dev/tcp/$0/$1" && printf "GET / HTTP/1.0\r\n\r\n" >&3 && sed "1,/^\r*\$/d" <&3' "$1" "$2"
}

# pod NAME SCRIPT [FURTHER-FIELDS-OF-THE-CONTAINER [FURTHER-FIELDS-OF-THE-POD]]: JSON, a pod of one container.
pod() {
  jq -n --arg name "$1" --arg image "$BUSYBOX" --arg script "$2" --argjson container "${3:-{\}}" --argjson spec "${4:-{\}}" '{
    apiVersion: "v1", kind: "Pod", metadata: {name: $name, labels: {app: $name}},
    spec: ({terminationGracePeriodSeconds: 2,
      containers: [{name: "main", image: $image, command: ["sh", "-c", $script]} + $container]} + $spec)}'
}

# one NAME: in a process of its own, where any command that fails ends it.
one() {
  local status=0 began log=$DIRECTORY/logs/test-$1.log
  began=$(milliseconds)
  (
    set -euo pipefail
    NAMESPACE=test-${1//_/-}
    kube create namespace "$NAMESPACE" >/dev/null
    eventually 60 k get serviceaccount default
    "test_$1"
  ) >"$log" 2>&1 &
  wait $! || status=$?
  if ((status)); then
    (NAMESPACE=test-${1//_/-} && k get pods -o wide && k get events --sort-by=.lastTimestamp | tail -n 25) >>"$log" 2>&1 || true
  fi
  kube delete namespace "test-${1//_/-}" --wait --timeout=120s >>"$log" 2>&1 || {
    echo 'the namespace could not be deleted' >>"$log"
    status=1
  }
  began=$(($(milliseconds) - began))
  if ((status)); then
    printf 'FAILED %s (%d.%d s)\n' "$1" $((began / 1000)) $((began / 100 % 10))
    sed 's/^/  | /' "$log" | tail -n 60
    return 1
  fi
  printf 'ok     %s (%d.%d s)\n' "$1" $((began / 1000)) $((began / 100 % 10))
}

run_test() {
  local file name all passed=0 failed=0
  need_tools jq:jq
  # shellcheck source=/dev/null
  for file in "$HERE"/tests/*.sh; do . "$file"; done
  mapfile -t all < <(declare -F | sed -n 's/^declare -f test_//p')
  if [ "${1:-}" = --list ]; then
    printf '%s\n' "${all[@]}"
    return
  fi
  first_process >/dev/null
  for name; do declare -F "test_$name" >/dev/null || die "no test $name: hack/cluster test --list"; done
  (($#)) || set -- "${all[@]}"
  for name; do
    if one "$name"; then passed=$((passed + 1)); else failed=$((failed + 1)); fi
  done
  echo "$passed passed, $failed failed"
  ((failed == 0))
}
