# shellcheck shell=bash disable=SC2154,SC2016
# Pods by themselves, and what kubectl does with one by way of the API server, the kubelet and the CRI server's streams.

test_a_pod_starts_and_its_log_is_read() {
  pod web "echo hello; echo trouble >&2; $STAY" | apply
  ready web
  equal log "$(k logs web | sort)" $'hello\ntrouble' # two streams: in any order
  contains id "$(field pod/web '{.status.containerStatuses[0].containerID}')" "://"
  contains address "$(field pod/web '{.status.podIP}')" 10.244.
  k delete pod web >/dev/null
}

# By both protocols: WebSocket is kubectl's own choice, SPDY what older ones speak.
test_exec_by_both_protocols() {
  local websockets status
  pod web "$STAY" | apply
  ready web
  for websockets in true false; do
    export KUBECTL_REMOTE_COMMAND_WEBSOCKETS=$websockets
    equal output "$(k exec web -- sh -c 'echo out; echo err >&2' 2>/dev/null)" out
    equal input "$(echo 'from here' | k exec -i web -- cat)" 'from here'
    status=0
    k exec web -- sh -c 'exit 7' 2>/dev/null || status=$?
    equal status "$status" 7
    equal bytes "$(head -c 3000000 /dev/zero | k exec -i web -- wc -c)" 3000000
  done
  # A command that is not there is said by name.
  contains message "$(k exec web -- /no/such 2>&1 || true)" /no/such
}

test_cp_both_ways() {
  local work
  work=$(mktemp -d)
  pod web "$STAY" | apply
  ready web
  head -c 2000000 /dev/urandom >"$work/sent"
  k cp "$work/sent" web:/tmp/there
  k cp web:/tmp/there "$work/back" >/dev/null
  cmp "$work/sent" "$work/back"
  rm -rf "$work"
}

test_port_forward_by_both_protocols() {
  local websockets port forward
  pod web "mkdir /www; echo forwarded >/www/index.html; exec httpd -f -p 80 -h /www" | apply
  ready web
  for websockets in true false; do
    port=$((20000 + RANDOM % 20000))
    KUBECTL_PORT_FORWARD_WEBSOCKETS=$websockets kube -n "$NAMESPACE" port-forward pod/web "$port:80" >/dev/null &
    forward=$!
    becomes 20 forwarded page 127.0.0.1 "$port"
    for _ in 1 2 3; do equal page "$(page 127.0.0.1 "$port")" forwarded; done
    kill "$forward"
    wait "$forward" || true
  done
}

test_attach_to_a_running_container() {
  pod echo 'while read -r line; do echo "got $line"; done' '{"stdin": true, "stdinOnce": true}' '{"restartPolicy": "Never"}' | apply
  ready echo
  contains output "$({ echo one && sleep 1 && echo two; } | k attach -i echo 2>/dev/null)" 'got two'
  k wait --for=jsonpath='{.status.phase}'=Succeeded pod/echo --timeout=60s >/dev/null
}

# limit POD: of memory, as the container sees it.
memory_limit() { k exec "$1" -- sh -c 'cat /sys/fs/cgroup/memory.max 2>/dev/null || cat /sys/fs/cgroup/memory/memory.limit_in_bytes'; }
cpu_quota() { k exec "$1" -- sh -c 'cut -d" " -f1 /sys/fs/cgroup/cpu.max 2>/dev/null || cat /sys/fs/cgroup/cpu/cpu.cfs_quota_us'; }

test_a_pod_is_resized_in_place() {
  local id
  pod web "$STAY" '{"resources": {"requests": {"cpu": "50m", "memory": "32Mi"}, "limits": {"cpu": "100m", "memory": "64Mi"}}}' | apply
  ready web
  id=$(field pod/web '{.status.containerStatuses[0].containerID}')
  equal memory "$(memory_limit web)" $((64 << 20))
  equal cpu "$(cpu_quota web)" 10000
  k patch pod web --subresource resize --patch '{"spec": {"containers": [{"name": "main", "resources":
    {"requests": {"cpu": "60m", "memory": "40Mi"}, "limits": {"cpu": "200m", "memory": "96Mi"}}}]}}' >/dev/null
  becomes 60 $((96 << 20)) memory_limit web
  equal cpu "$(cpu_quota web)" 20000
  becomes 60 96Mi field pod/web '{.status.containerStatuses[0].resources.limits.memory}'
  equal 'the same container' "$(field pod/web '{.status.containerStatuses[0].containerID}')" "$id"
  equal restarts "$(restarts web)" 0
}

restarts() { field "pod/$1" '{.status.containerStatuses[0].restartCount}'; }

test_a_resize_that_wants_a_restart_has_one() {
  pod web "$STAY" '{"resources": {"requests": {"memory": "32Mi"}, "limits": {"memory": "64Mi"}},
    "resizePolicy": [{"resourceName": "memory", "restartPolicy": "RestartContainer"}]}' | apply
  ready web
  k patch pod web --subresource resize --patch '{"spec": {"containers": [{"name": "main", "resources":
    {"requests": {"memory": "32Mi"}, "limits": {"memory": "80Mi"}}}]}}' >/dev/null
  becomes 60 1 restarts web
  ready web
  equal memory "$(memory_limit web)" $((80 << 20))
}

test_a_runtime_class_chooses_the_handler() {
  kube apply -f - >/dev/null <<'YAML'
apiVersion: node.k8s.io/v1
kind: RuntimeClass
metadata: { name: second }
handler: second
---
apiVersion: node.k8s.io/v1
kind: RuntimeClass
metadata: { name: missing }
handler: no-such-handler
YAML
  pod other "$STAY" '{}' '{"runtimeClassName": "second"}' | apply
  pod none "$STAY" '{}' '{"runtimeClassName": "missing"}' | apply
  ready other
  contains handlers "$(field "node/$NODE_NAME" '{.status.runtimeHandlers[*].name}')" second
  eventually 60 event_says none no-such-handler
  kube delete runtimeclass second missing >/dev/null
}

# event_says POD TEXT
event_says() { k get events --field-selector "involvedObject.name=$1" -o 'jsonpath={.items[*].message}' | grep -qF -- "$2"; }

test_an_ephemeral_container_joins_a_pod() {
  pod web "$STAY" | apply
  ready web
  k debug web --image="$BUSYBOX" --container=visitor --target=main --profile=general -- \
    sh -c 'echo visitor of $(hostname); ps; sleep 1000' >/dev/null
  eventually 60 visitor_has_seen 'visitor of web'
  # With --target in the container's processes: pid 1 is the pod's.
  contains processes "$(k logs web -c visitor)" "trap 'exit 0' TERM"
}
visitor_has_seen() { k logs web -c visitor | grep -qF "$1"; }

test_init_containers_and_sidecars_in_order() {
  k apply -f - >/dev/null <<YAML
apiVersion: v1
kind: Pod
metadata: { name: ordered }
spec:
  restartPolicy: Never
  volumes: [{ name: shared, emptyDir: {} }]
  initContainers:
  - { name: first, image: $BUSYBOX, command: [sh, -c, "echo first >>/shared/order"], volumeMounts: [{ name: shared, mountPath: /shared }] }
  - { name: side, image: $BUSYBOX, restartPolicy: Always, command: [sh, -c, "echo side >>/shared/order; touch /shared/up; $STAY"],
      startupProbe: { exec: { command: [test, -e, /shared/up] }, periodSeconds: 1 }, volumeMounts: [{ name: shared, mountPath: /shared }] }
  containers:
  - { name: main, image: $BUSYBOX, command: [sh, -c, "echo main >>/shared/order; cat /shared/order"], volumeMounts: [{ name: shared, mountPath: /shared }] }
YAML
  k wait --for=jsonpath='{.status.phase}'=Succeeded pod/ordered --timeout=120s >/dev/null
  equal order "$(k logs ordered -c main | tr '\n' ' ')" 'first side main '
}
