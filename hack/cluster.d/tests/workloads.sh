# shellcheck shell=bash disable=SC2154,SC2016
# What the scheduler and the controllers make pods of.

# deployment NAME REPLICAS SCRIPT
deployment() {
  jq -n --arg name "$1" --argjson replicas "$2" --arg script "$3" --arg image "$BUSYBOX" '{
    apiVersion: "apps/v1", kind: "Deployment", metadata: {name: $name},
    spec: {replicas: $replicas, selector: {matchLabels: {app: $name}},
      strategy: {rollingUpdate: {maxUnavailable: 0, maxSurge: 1}},
      template: {metadata: {labels: {app: $name}}, spec: {terminationGracePeriodSeconds: 10,
        containers: [{name: "main", image: $image, command: ["sh", "-c", $script],
          readinessProbe: {httpGet: {path: "/", port: 80}, periodSeconds: 1}}]}}}}'
}
# It answers for a while after it is told to end, as long as rules may still lead to it.
serve() { echo "mkdir -p /www; echo $1 >/www/index.html; trap 'sleep 4; exit 0' TERM; httpd -f -p 80 -h /www & wait"; }

# While every pod is replaced, a client of the Service has an answer each time.
test_a_deployment_is_updated_without_a_gap() {
  local revision
  deployment web 3 "$(serve one)" | apply
  k expose deployment web --port 80 >/dev/null
  k rollout status deployment/web --timeout=120s >/dev/null
  pod client "until wget -q -O /dev/null http://web; do sleep 0.2; done; echo begun
    n=0; while :; do n=\$((n+1)); timeout 5 wget -q -O - http://web || echo gap; sleep 0.05; done" | apply
  ready client
  eventually 60 log_has client one
  deployment web 3 "$(serve two)" | apply
  k rollout status deployment/web --timeout=120s >/dev/null
  becomes 60 two k logs --tail 1 client
  equal gaps "$(k logs client | grep -c gap || true)" 0
  revision=$(k rollout history deployment/web | tail -n 2 | head -n 1 | cut -d' ' -f1)
  equal revision "$revision" 2
  k rollout undo deployment/web >/dev/null
  k rollout status deployment/web --timeout=120s >/dev/null
  becomes 60 one k logs --tail 1 client
  k scale deployment/web --replicas 1 >/dev/null
  becomes 60 1 pods_of web
}
pods_of() { k get pods -l "app=$1" --no-headers | wc -l; }

test_a_daemon_set_is_on_every_node() {
  k apply -f - >/dev/null <<YAML
apiVersion: apps/v1
kind: DaemonSet
metadata: { name: agent }
spec:
  selector: { matchLabels: { app: agent } }
  template:
    metadata: { labels: { app: agent } }
    spec:
      hostNetwork: true
      terminationGracePeriodSeconds: 1
      containers: [{ name: main, image: $BUSYBOX, command: [sh, -c, "ip addr show up0; $STAY"] }]
YAML
  k rollout status daemonset/agent --timeout=120s >/dev/null
  equal pods "$(field daemonset/agent '{.status.numberReady}')" "$(kube get nodes --no-headers | wc -l)"
  contains address "$(k logs -l app=agent)" "$NODE_IP"
}

# Names, order and volumes are those of the pods that were there before.
test_a_stateful_set_keeps_names_and_volumes() {
  local number
  for number in 0 1; do volume "state$number" state | kube apply -f - >/dev/null; done
  k apply -f - >/dev/null <<YAML
apiVersion: v1
kind: Service
metadata: { name: db }
spec: { clusterIP: None, selector: { app: db }, ports: [{ port: 80 }] }
---
apiVersion: apps/v1
kind: StatefulSet
metadata: { name: db }
spec:
  serviceName: db
  replicas: 2
  selector: { matchLabels: { app: db } }
  template:
    metadata: { labels: { app: db } }
    spec:
      terminationGracePeriodSeconds: 1
      containers:
      - name: main
        image: $BUSYBOX
        command: [sh, -c, "hostname >>/data/starts; $STAY"]
        volumeMounts: [{ name: data, mountPath: /data }]
  volumeClaimTemplates:
  - metadata: { name: data }
    spec: { accessModes: [ReadWriteOnce], storageClassName: test-state, resources: { requests: { storage: 1Mi } } }
YAML
  k rollout status statefulset/db --timeout=120s >/dev/null
  for number in 0 1; do equal "starts of db-$number" "$(k exec "db-$number" -- cat /data/starts)" "db-$number"; done
  k delete pod db-1 >/dev/null
  eventually 60 k get pod db-1
  ready db-1
  equal 'both starts' "$(k exec db-1 -- cat /data/starts)" $'db-1\ndb-1'
  contains 'its name in DNS' "$(k exec db-0 -- nslookup "db-1.db.$NAMESPACE.svc.cluster.local" 2>&1 || true)" "$(field pod/db-1 '{.status.podIP}')"
  k delete statefulset db >/dev/null
  k delete pvc --all >/dev/null
  kube delete pv test-state0 test-state1 >/dev/null
}

test_a_job_runs_to_its_completions() {
  k apply -f - >/dev/null <<YAML
apiVersion: batch/v1
kind: Job
metadata: { name: sums }
spec:
  completions: 4
  parallelism: 2
  completionMode: Indexed
  template:
    spec:
      restartPolicy: Never
      containers: [{ name: main, image: $BUSYBOX, command: [sh, -c, "echo part \$JOB_COMPLETION_INDEX"] }]
YAML
  k wait --for=condition=Complete job/sums --timeout=120s >/dev/null
  equal parts "$(k logs -l job-name=sums --tail=-1 | sort | tr '\n' ' ')" 'part 0 part 1 part 2 part 3 '
}

test_a_failing_job_gives_up_after_its_tries() {
  k apply -f - >/dev/null <<YAML
apiVersion: batch/v1
kind: Job
metadata: { name: bad }
spec:
  backoffLimit: 1
  template:
    spec:
      restartPolicy: Never
      containers: [{ name: main, image: $BUSYBOX, command: [sh, -c, "exit 3"] }]
YAML
  k wait --for=condition=Failed job/bad --timeout=120s >/dev/null
  equal codes "$(k get pods -l job-name=bad -o 'jsonpath={.items[*].status.containerStatuses[0].state.terminated.exitCode}')" '3 3'
}

# Every minute: the first at the next full one.
test_a_cron_job_starts_a_job() {
  k create cronjob tick --image "$BUSYBOX" --schedule '* * * * *' -- echo tick >/dev/null
  eventually 90 has_job
  k wait --for=condition=Complete job --all --timeout=60s >/dev/null
  equal log "$(k logs "$(k get jobs -o name | head -n 1)")" tick
}
has_job() { [ -n "$(k get jobs -o name)" ]; }
