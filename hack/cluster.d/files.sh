# shellcheck shell=bash disable=SC2154
# (PEERS, OTHERS, CRI, SHIM, CGROUP, DIRECTORY, NODE_NAME, NODE_IP: set by hack/cluster)
# Sourced by hack/cluster: what the node's programs are told.

readonly REGISTRY=127.0.0.1:5000 PODS=10.244.0.0

# write_files SERVER
write_files() {
  local server=$1 socket=/run/$1/$1.sock
  write_settings "$server"
  cat >"$DIRECTORY/registry.yml" <<END
version: 0.1
log: {level: warn, accesslog: {disabled: true}}
storage: {filesystem: {rootdirectory: $PEERS/cluster-images/storage}, maintenance: {readonly: {enabled: true}}}
http: {addr: $REGISTRY}
END
  mkdir -p "$DIRECTORY/certs.d/_default" "$DIRECTORY/net.d"
  # No other is asked: there is no way out.
  printf 'server = "http://%s"\n[host."http://%s"]\n  capabilities = ["pull", "resolve"]\n' "$REGISTRY" "$REGISTRY" \
    >"$DIRECTORY/certs.d/_default/hosts.toml"
  write_network
  "write_$server" >"$DIRECTORY/server.toml"
  write_kubeadm "unix://$socket" >"$DIRECTORY/kubeadm.yaml"
}

# For bash: of the node's first process, and of all that enters the node.
write_settings() {
  local path=$PEERS/kubernetes/bin:$PEERS/kubelet-1.37/bin:$PEERS/registry/bin
  if [ "$1" = containerd ]; then path+=:$OTHERS/containerd-2.4/bin:$OTHERS/runc/bin; fi
  mkdir -p "$DIRECTORY/bin"
  ln -sf "$SHIM" "$DIRECTORY/bin/containerd-shim-rtc-v2"
  cat >"$DIRECTORY/settings" <<END
PEERS='$PEERS'
SERVER='$1'
CRI='$CRI'
CGROUP='$CGROUP'
NODE_NAME='$NODE_NAME'
NODE_IP='$NODE_IP'
PATH='$path:/usr/sbin:/usr/bin:/sbin:/bin'
END
}

# A pair of interfaces for each pod and routes between: all that goes to a Service passes the node's rules without
# br_netfilter. There is one node, whose share of the pods' addresses is the first.
write_network() {
  cat >"$DIRECTORY/net.d/10-pods.conflist" <<END
{ "cniVersion": "1.0.0", "name": "pods", "plugins": [
  { "type": "ptp", "ipMasq": false,
    "ipam": { "type": "host-local", "dataDir": "/run/addresses", "ranges": [[{ "subnet": "${PODS}/24" }]],
              "routes": [{ "dst": "0.0.0.0/0" }] } },
  { "type": "portmap", "capabilities": { "portMappings": true } } ] }
END
}

write_rtc-cri() {
  cat <<END
cgroup_driver = "cgroupfs"
shim = "$DIRECTORY/bin/containerd-shim-rtc-v2"
shim_cgroup = "$CGROUP/shims"
[cni]
conf_dir = "$DIRECTORY/net.d"
bin_dirs = ["$PEERS/registry/cni"]
[images]
certs_dir = "$DIRECTORY/certs.d"
[handlers.second]
END
}

write_containerd() {
  local images='plugins."io.containerd.cri.v1.images"' runtime='plugins."io.containerd.cri.v1.runtime"'
  cat <<END
version = 3
disabled_plugins = ["io.containerd.nri.v1.nri", "io.containerd.snapshotter.v1.devmapper"]
[$images.pinned_images]
  sandbox = "registry.k8s.io/pause:3.10"
[$images.registry]
  config_path = "$DIRECTORY/certs.d"
[$runtime]
  restrict_oom_score_adj = true
[$runtime.cni]
  bin_dirs = ["$PEERS/registry/cni"]
  conf_dir = "$DIRECTORY/net.d"
[$runtime.containerd]
  default_runtime_name = "runc"
[$runtime.containerd.runtimes.runc]
  runtime_type = "io.containerd.runc.v2"
[$runtime.containerd.runtimes.second]
  runtime_type = "io.containerd.runc.v2"
END
}

# write_kubeadm SOCKET. What differs from kubeadm's own defaults is the machine's: a node without systemd, perhaps with
# cgroup v1, whose settings of connection tracking are the whole machine's; nothing is written into /usr.
write_kubeadm() {
  local plugins=/var/lib/kubelet/volumeplugins
  cat <<END
apiVersion: kubeadm.k8s.io/v1beta4
kind: InitConfiguration
localAPIEndpoint: { advertiseAddress: $NODE_IP, bindPort: 6443 }
nodeRegistration:
  name: $NODE_NAME
  criSocket: $1
  taints: []
  ignorePreflightErrors: [SystemVerification, Swap, NumCPU, Mem]
  kubeletExtraArgs: [{ name: node-ip, value: $NODE_IP }]
---
apiVersion: kubeadm.k8s.io/v1beta4
kind: ClusterConfiguration
clusterName: rtc
kubernetesVersion: $("$PEERS/kubernetes/bin/kubeadm" version -o short)
networking: { podSubnet: $PODS/16, serviceSubnet: 10.96.0.0/16 }
controllerManager:
  extraArgs: [{ name: flex-volume-plugin-dir, value: $plugins }]
---
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
cgroupDriver: cgroupfs
cgroupRoot: $CGROUP
failCgroupV1: false
failSwapOn: false
volumePluginDir: $plugins
serializeImagePulls: false
imageGCHighThresholdPercent: 100
evictionHard: { memory.available: 100Mi, nodefs.available: 1Gi, imagefs.available: 1Gi }
maxPods: 250
---
apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
mode: iptables
conntrack: { maxPerCore: 0, tcpEstablishedTimeout: 0s, tcpCloseWaitTimeout: 0s }
END
}
