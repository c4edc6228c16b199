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
  eventually 30 k exec client -- wget -q -T 3 -O - "http://$address"
  for url in http://web "http://web.$NAMESPACE" "http://web.$NAMESPACE.svc.cluster.local" "http://$NODE_IP:$port"; do
    equal "client: $url" "$(k exec client -- wget -q -T 5 -O - "$url")" web
  done
  equal 'to itself' "$(k exec web -- wget -q -T 5 -O - http://web)" web
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
  eventually 30 k exec client -- wget -q -T 3 -O - http://web
  answers=$(k exec client -- sh -c 'for i in $(seq 60); do wget -q -T 3 -O - http://web; done' | sort | uniq -c | wc -l)
  equal 'endpoints that answered' "$answers" 3
  k scale deployment/web --replicas 0 >/dev/null
  eventually 60 refused
}
refused() { k exec client -- sh -c 'wget -q -T 5 -O - http://web' 2>&1 | grep -q refused; }

test_udp_by_a_service_and_by_a_host_port() {
  local address
  pod echo 'exec nc -lu -p 5000 -e sh -c "read -r line; echo got \$line"' \
    '{"ports": [{"containerPort": 5000, "hostPort": 15000, "protocol": "UDP"}]}' | apply
  pod client "$STAY" | apply
  k expose pod echo --port 5000 --protocol UDP >/dev/null
  ready echo client
  address=$(field service/echo '{.spec.clusterIP}')
  eventually 60 udp_answers "$address" 5000
  k delete pod echo >/dev/null
  pod echo 'exec nc -lu -p 5000 -e sh -c "read -r line; echo got \$line"' \
    '{"ports": [{"containerPort": 5000, "hostPort": 15000, "protocol": "UDP"}]}' | apply
  ready echo
  eventually 60 udp_answers "$NODE_IP" 15000
}
udp_answers() { k exec client -- sh -c "echo ping | nc -u -w 2 $1 $2" | grep -q 'got ping'; }

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
  equal 'a pod' "$(k exec client -- wget -q -T 5 -O - "http://$NODE_IP:18080")" 'by port'
  equal 'the node' "$(page "$NODE_IP" 18080)" 'by port'
  k delete pod web >/dev/null
  if page "$NODE_IP" 18080 2>/dev/null; then fail 'the port still answers'; fi
}
