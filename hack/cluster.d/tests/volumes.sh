# shellcheck shell=bash disable=SC2154,SC2016
# What a pod has only by an API server: ConfigMaps, Secrets, tokens, the downward API, claims.

# Files appear with their modes and owners; a change of the API's object reaches the running container; subPath stays.
test_config_maps_and_secrets_as_files_and_environment() {
  k create configmap settings --from-literal=colour=green --from-literal=size=10 >/dev/null
  k create secret generic password --from-literal=word=sesame >/dev/null
  pod reader "$STAY" '{"volumeMounts": [{"name": "settings", "mountPath": "/settings"},
      {"name": "settings", "mountPath": "/one", "subPath": "size"},
      {"name": "password", "mountPath": "/password", "readOnly": true}],
      "env": [{"name": "COLOUR", "valueFrom": {"configMapKeyRef": {"name": "settings", "key": "colour"}}},
        {"name": "WORD", "valueFrom": {"secretKeyRef": {"name": "password", "key": "word"}}}]}' \
    '{"volumes": [{"name": "settings", "configMap": {"name": "settings"}},
      {"name": "password", "secret": {"secretName": "password", "defaultMode": 256}}]}' | apply
  ready reader
  equal environment "$(k exec reader -- sh -c 'echo $COLOUR $WORD')" 'green sesame'
  equal files "$(k exec reader -- sh -c 'cat /settings/colour; echo; cat /one; echo; cat /password/word')" $'green\n10\nsesame'
  equal mode "$(k exec reader -- stat -L -c %a /password/word)" 400
  equal 'in memory' "$(k exec reader -- stat -f -c %T /password)" tmpfs
  k create configmap settings --from-literal=colour=blue --from-literal=size=11 --dry-run=client -o yaml | k replace -f - >/dev/null
  k annotate pod reader synced=now >/dev/null # else the kubelet looks once a minute
  becomes 120 blue k exec reader -- cat /settings/colour
  equal subPath "$(k exec reader -- cat /one)" 10
}

# The token in its projected volume is good for the API; the certificate beside it is the API server's.
test_a_service_account_token_is_good_for_the_api() {
  local token
  pod caller "$STAY" '{"volumeMounts": [{"name": "token", "mountPath": "/token"}]}' '{"volumes": [{"name": "token", "projected":
    {"sources": [{"serviceAccountToken": {"path": "own", "audience": "tests", "expirationSeconds": 600}}]}}]}' | apply
  ready caller
  token=$(k exec caller -- cat /var/run/secrets/kubernetes.io/serviceaccount/token)
  # Of a configuration without the administrator's certificate.
  equal user "$(kube --kubeconfig /dev/null --server "https://$NODE_IP:6443" --insecure-skip-tls-verify --token "$token" \
    auth whoami -o 'jsonpath={.status.userInfo.username}')" "system:serviceaccount:$NAMESPACE:default"
  equal namespace "$(k exec caller -- cat /var/run/secrets/kubernetes.io/serviceaccount/namespace)" "$NAMESPACE"
  k exec caller -- cat /var/run/secrets/kubernetes.io/serviceaccount/ca.crt | cmp - "$DIRECTORY/node/etc/kubernetes/pki/ca.crt"
  contains audience "$(k exec caller -- cat /token/own | cut -d. -f2 | tr '_-' '/+' | base64 -d 2>/dev/null || true)" '"aud":["tests"]'
}

test_the_downward_api_tells_a_pod_what_it_is() {
  pod self "$STAY" '{"resources": {"limits": {"memory": "48Mi", "cpu": "500m"}},
      "env": [{"name": "NAME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
        {"name": "NODE", "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}},
        {"name": "ADDRESS", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
        {"name": "MEMORY", "valueFrom": {"resourceFieldRef": {"resource": "limits.memory"}}}],
      "volumeMounts": [{"name": "self", "mountPath": "/self"}]}' \
    '{"volumes": [{"name": "self", "downwardAPI": {"items": [{"path": "labels", "fieldRef": {"fieldPath": "metadata.labels"}}]}}]}' | apply
  ready self
  equal environment "$(k exec self -- sh -c 'echo $NAME $NODE $ADDRESS $MEMORY')" \
    "self $NODE_NAME $(field pod/self '{.status.podIP}') $((48 << 20))"
  equal labels "$(k exec self -- cat /self/labels)" 'app="self"'
  k label pod self moved=yes >/dev/null
  eventually 120 exec_has self /self/labels 'moved="yes"'
}
exec_has() { k exec "$1" -- cat "$2" | grep -qF -- "$3"; }

# What a claim is bound to outlives the pod.
test_a_claim_keeps_its_data() {
  volume first | kube apply -f - >/dev/null
  k apply -f - >/dev/null <<'YAML'
apiVersion: v1
kind: PersistentVolumeClaim
metadata: { name: data }
spec: { accessModes: [ReadWriteOnce], storageClassName: test-first, resources: { requests: { storage: 1Mi } } }
YAML
  pod one 'echo kept >/data/file' '{"volumeMounts": [{"name": "data", "mountPath": "/data"}]}' \
    '{"restartPolicy": "Never", "volumes": [{"name": "data", "persistentVolumeClaim": {"claimName": "data"}}]}' | apply
  k wait --for=jsonpath='{.status.phase}'=Succeeded pod/one --timeout=120s >/dev/null
  pod two 'cat /data/file' '{"volumeMounts": [{"name": "data", "mountPath": "/data", "readOnly": true}]}' \
    '{"restartPolicy": "Never", "volumes": [{"name": "data", "persistentVolumeClaim": {"claimName": "data"}}]}' | apply
  k wait --for=jsonpath='{.status.phase}'=Succeeded pod/two --timeout=120s >/dev/null
  equal data "$(k logs two)" kept
  k delete pod one two >/dev/null
  k delete pvc data >/dev/null
  kube delete pv test-first >/dev/null
}

# volume NAME [CLASS]: a PersistentVolume of a directory of the node.
volume() {
  cat <<YAML
apiVersion: v1
kind: PersistentVolume
metadata: { name: test-$1 }
spec:
  capacity: { storage: 1Mi }
  accessModes: [ReadWriteOnce]
  storageClassName: test-${2:-$1}
  persistentVolumeReclaimPolicy: Retain
  hostPath: { path: /var/lib/test-volumes/$1, type: DirectoryOrCreate }
YAML
}
