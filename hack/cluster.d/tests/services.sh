# shellcheck shell=bash disable=SC2154,SC2016
# kube-proxy's rules and CoreDNS over the pods' network.

# By name and by address, from another pod, from the node, and from a pod to itself.
test_a_service_is_reached_from_everywhere() {
  local address port
  pod web "mkdir /www; hostname >/www/index.html; exec httpd -f -p 8080 -h /www" | apply
  pod client "$STAY" | apply
  k apply -f - >/dev/null <<'YAML'
apiVersion: v1
kind: Service
metadata: { name: web }
spec: { type: NodePort, selector: { app: web }, ports: [{ port: 80, targetPort: 8080 }] }
YAML
  ready web client
  address=$(field service/web '{.spec.clusterIP}') port=$(field service/web '{.spec.ports[0].nodePort}')
  eventually 30 k exec client -- timeout 5 wget -q -O - "http://$address"
  for url in http://web "http://web.$NAMESPACE" "http://web.$NAMESPACE.svc.cluster.local" "http://$NODE_IP:$port"; do
    equal "client: $url" "$(k exec client -- timeout 5 wget -q -O - "$url")" web
  done
  equal 'to itself' "$(k exec web -- timeout 5 wget -q -O - "http://$address")" web
  equal 'the node' "$(page "$address" 80)" web
  contains 'the API server' "$(k exec client -- sh -c 'echo | nc -w 3 kubernetes.default 443 && echo open')" open
}

# Each endpoint has its share; with none the client is told at once.
test_a_service_has_several_endpoints_or_none() {
  local answers
  deployment web 3 'mkdir /www; hostname >/www/index.html; exec httpd -f -p 80 -h /www' | apply
  k expose deployment web --port 80 >/dev/null
  pod client "$STAY" | apply
  k rollout status deployment/web --timeout=120s >/dev/null
  ready client
  eventually 30 k exec client -- timeout 5 wget -q -O - http://web
  answers=$(k exec client -- sh -c 'for i in $(seq 60); do timeout 5 wget -q -O - http://web; done' | sort | uniq -c | wc -l)
  equal 'endpoints that answered' "$answers" 3
  k scale deployment/web --replicas 0 >/dev/null
  eventually 60 refused
}
refused() { [[ $(k exec client -- timeout 5 wget -q -O - http://web 2>&1 || true) == *refused* ]]; }

# resolver NAME: a pod that forwards queries to the cluster's DNS, and is asked by a Service or a port of the node.
resolver() {
  k create configmap resolver --from-literal='Corefile=. {
      forward . 10.96.0.10
    }' --dry-run=client -o yaml | k apply -f - >/dev/null
  k apply -f - >/dev/null <<YAML
apiVersion: v1
kind: Pod
metadata: { name: $1, labels: { app: resolver } }
spec:
  terminationGracePeriodSeconds: 0
  volumes: [{ name: config, configMap: { name: resolver } }]
  containers:
  - name: main
    image: $(kube -n kube-system get deployment coredns -o 'jsonpath={.spec.template.spec.containers[0].image}')
    args: [-conf, /config/Corefile]
    ports: [{ containerPort: 53, hostPort: 53, protocol: UDP }]
    volumeMounts: [{ name: config, mountPath: /config }]
YAML
  ready "$1"
}

# Also by the pod that is there next: what the node remembers of the first one's connections is forgotten.
test_udp_by_a_service_and_by_a_host_port() {
  local address
  resolver one
  pod client "$STAY" | apply
  k create service clusterip resolver --tcp 1:1 --dry-run=client -o json |
    jq '.spec.ports = [{name: "dns", port: 5353, targetPort: 53, protocol: "UDP"}, {name: "low", port: 53, targetPort: 53, protocol: "UDP"}]' | apply
  ready client
  address=$(field service/resolver '{.spec.clusterIP}')
  eventually 60 resolves "$address"
  eventually 60 resolves "$NODE_IP"
  k delete pod one >/dev/null
  resolver two
  eventually 60 resolves "$address"
  eventually 60 resolves "$NODE_IP"
}
resolves() { k exec client -- timeout 3 nslookup kubernetes.default.svc.cluster.local "$1" | grep -q 10.96.0.1; }

test_dns_knows_services_pods_and_what_is_not_there() {
  pod client "$STAY" | apply
  ready client
  contains search "$(k exec client -- cat /etc/resolv.conf)" "search $NAMESPACE.svc.cluster.local svc.cluster.local cluster.local"
  contains server "$(k exec client -- cat /etc/resolv.conf)" 'nameserver 10.96.0.10'
  contains kubernetes "$(k exec client -- nslookup kubernetes.default.svc.cluster.local 2>&1)" 10.96.0.1
  contains missing "$(k exec client -- nslookup no-such.default.svc.cluster.local 2>&1 || true)" NXDOMAIN
  contains 'by TCP' "$(k exec client -- sh -c 'echo | nc -w 3 10.96.0.10 53 && echo open')" open
}

test_a_host_port_leads_to_the_pod() {
  pod web "mkdir /www; echo by port >/www/index.html; exec httpd -f -p 80 -h /www" \
    '{"ports": [{"containerPort": 80, "hostPort": 18080}]}' | apply
  pod client "$STAY" | apply
  ready web client
  equal 'a pod' "$(k exec client -- timeout 5 wget -q -O - "http://$NODE_IP:18080")" 'by port'
  equal 'the node' "$(page "$NODE_IP" 18080)" 'by port'
  k delete pod web >/dev/null
  if page "$NODE_IP" 18080 2>/dev/null; then fail 'the port still answers'; fi
}
