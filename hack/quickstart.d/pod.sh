# shellcheck shell=bash disable=SC2154
# (cri, shim, work: set by who sources this)
# Sourced by hack/quickstart: a node with one pod, all of it in one directory, and its end.
#
#   DIR/lock                   held while its quickstart lives: a directory whose lock is free was left by one that was killed
#   DIR/{root,state,cni,...}   of rtc-cri: nothing is in /var/lib or /etc
#   DIR/registry               an image, and a web server on loopback that is its registry
#   DIR/{bridge,cgroup,ip_forward}   what is not in a directory, and how it was before

readonly IMAGE=quickstart.example/busybox:1
readonly PLUGINS=/usr/lib/cni

# check_node: what no package brings; all that is missing is said at once.
check_node() {
  local missing=()
  has_capability 12 || missing+=('CAP_NET_ADMIN: networks of pods can not be made')
  has_capability 21 || missing+=('CAP_SYS_ADMIN: namespaces and mounts can not be made')
  grep -qw overlay /proc/filesystems || modprobe overlay 2>/dev/null ||
    missing+=('overlayfs: images are mounted with it: modprobe overlay')
  [ "$(stat -f -c %T "$1")" != overlayfs ] ||
    missing+=("a file system for images: $1 is itself an overlay: set TMPDIR to a directory that is not")
  ((${#missing[@]} == 0)) && return
  printf 'missing: %s\n' "${missing[@]}" >&2
  exit 1
}

# make_image DIR: busybox as an image, laid out as a registry answers: any web server of files can be one.
make_image() {
  local layer=$1/layer out=$1/v2/busybox config manifest diff_id
  mkdir -p "$layer"/{bin,etc,tmp,www} "$out"/{manifests,blobs}
  cp /bin/busybox "$layer/bin/"
  busybox --list | while read -r applet; do
    [ -e "$layer/bin/$applet" ] || ln -s busybox "$layer/bin/$applet"
  done
  echo 'root:x:0:0:root:/:/bin/sh' >"$layer/etc/passwd"
  tar -C "$layer" --owner=0 --group=0 --numeric-owner -cf "$1/layer.tar" .
  diff_id=sha256:$(digest "$1/layer.tar")
  gzip -n "$1/layer.tar"
  config='{"architecture":"amd64","os":"linux","config":{"Env":["PATH=/bin"],"Cmd":["sh"]},'
  config+='"rootfs":{"type":"layers","diff_ids":["'$diff_id'"]}}'
  printf '%s' "$config" >"$1/config.json"
  manifest='{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json",'
  manifest+='"config":'$(descriptor application/vnd.oci.image.config.v1+json "$1/config.json")','
  manifest+='"layers":['$(descriptor application/vnd.oci.image.layer.v1.tar+gzip "$1/layer.tar.gz")']}'
  printf '%s' "$manifest" >"$out/manifests/${IMAGE##*:}"
  cp "$out/manifests/${IMAGE##*:}" "$out/manifests/sha256:$(digest "$out/manifests/${IMAGE##*:}")"
  mv "$1/config.json" "$out/blobs/sha256:$(digest "$1/config.json")"
  mv "$1/layer.tar.gz" "$out/blobs/sha256:$(digest "$1/layer.tar.gz")"
  rm -rf "$layer"
}

digest() { sha256sum "$1" | cut -d' ' -f1; }

descriptor() {
  printf '{"mediaType":"%s","digest":"sha256:%s","size":%d}' "$1" "$(digest "$2")" "$(stat -c %s "$2")"
}

# start_registry DIR: on a free port of loopback. Sets `registry`.
start_registry() {
  local port again
  for _ in {1..20}; do
    port=$((20000 + RANDOM % 20000))
    setsid busybox httpd -f -p "127.0.0.1:$port" -h "$1/registry" >"$1/registry.log" 2>&1 9>&- &
    echo $! >"$1/registry.pid"
    registry=127.0.0.1:$port
    for again in {1..50}; do
      kill -0 "$(<"$1/registry.pid")" 2>/dev/null || continue 2
      (: <"/dev/tcp/127.0.0.1/$port") 2>/dev/null && return
      sleep "0.$((again < 9 ? again : 9))"
    done
  done
  die "no registry: $(<"$1/registry.log")"
}

# configure DIR: rtc-cri's files. Other servers of CRI on this machine share nothing with it.
configure() {
  local name=rtcq$$ subnet
  echo "$name" >"$1/bridge"
  echo "/rtc-quickstart-$$" >"$1/cgroup"
  cat /proc/sys/net/ipv4/ip_forward >"$1/ip_forward"
  subnet=$(free_subnet)
  mkdir -p "$1/net.d" "$1/certs.d/${IMAGE%%/*}"
  cat >"$1/config.toml" <<TOML
socket = "$1/rtc-cri.sock"
root = "$1/root"
state = "$1/state"
cgroup_driver = "cgroupfs"
shim = "$shim"
shim_cgroup = "/rtc-quickstart-$$/shims"

[cni]
conf_dir = "$1/net.d"
bin_dirs = ["$PLUGINS"]
cache_dir = "$1/cni"

[images]
certs_dir = "$1/certs.d"
TOML
  cat >"$1/net.d/10-pods.conflist" <<JSON
{ "cniVersion": "1.0.0", "name": "quickstart", "plugins": [
  { "type": "bridge", "bridge": "$name", "isGateway": true,
    "ipam": { "type": "host-local", "dataDir": "$1/addresses", "ranges": [[{ "subnet": "$subnet" }]],
              "routes": [{ "dst": "0.0.0.0/0" }] } } ] }
JSON
  printf '[host."http://%s"]\n  capabilities = ["pull", "resolve"]\n' "$registry" >"$1/certs.d/${IMAGE%%/*}/hosts.toml"
}

# One that no route of this machine is for.
free_subnet() {
  local second
  for second in {213..254}; do
    busybox ip route 2>/dev/null | grep -q "^10\.$second\." && continue
    echo "10.$second.$((RANDOM % 256)).0/24"
    return
  done
  die 'no free subnet in 10.213.0.0 to 10.254.0.0'
}

# start_node DIR: rtc-cri, in a session of its own: Ctrl-C is for us, who then end it in order.
start_node() {
  setsid "$cri" --config "$1/config.toml" >"$1/rtc-cri.log" 2>&1 9>&- &
  echo $! >"$1/rtc-cri.pid"
  for _ in {1..100}; do
    "$cri" --config "$1/config.toml" pod ls --quiet >/dev/null 2>&1 && return
    kill -0 "$(<"$1/rtc-cri.pid")" 2>/dev/null || break
    sleep 0.1
  done
  die "rtc-cri does not run: $(tail -n 5 "$1/rtc-cri.log")"
}

manifest() {
  cat <<YAML
apiVersion: v1
kind: Pod
metadata:
  name: web
spec:
  restartPolicy: Never
  terminationGracePeriodSeconds: 1
  containers:
  - name: server
    image: $IMAGE
    command: [sh, -c]
    args:
    - |
      echo "Hello from the pod \$(hostname)." >/www/index.html
      echo "serving /www on port 80"
      exec httpd -f -p 80 -h /www
    ports: [{ containerPort: 80 }]
    resources: { requests: { cpu: 100m }, limits: { memory: 32Mi } }
    volumeMounts: [{ name: www, mountPath: /www }]
  - name: client
    image: $IMAGE
    command: [sh, -c, "until wget -q -O - http://127.0.0.1 2>/dev/null; do sleep 0.1; done; exec sleep 1000000"]
  volumes:
  - name: www
    emptyDir: { medium: Memory, sizeLimit: 1Mi }
YAML
}

# call WORDS...: the client, as a person calls it.
call() {
  printf '\n$ rtc-cri %s\n' "$*"
  "$cri" --config "$work/config.toml" "$@"
}

# run_pod DIR: the pod, and what it says.
run_pod() {
  local out address
  manifest >"$1/pod.yaml"
  printf '\n$ cat pod.yaml\n'
  cat "$1/pod.yaml"
  printf '\n$ rtc-cri pod run pod.yaml\n'
  out=$("$cri" --config "$1/config.toml" pod run "$1/pod.yaml" --logs "$1/logs" --data "$1/volumes" \
    --cgroup-parent "$(<"$1/cgroup")") || die "the pod does not run; rtc-cri said: $(tail -n 5 "$1/rtc-cri.log")"
  echo "$out"
  address=$(sed -n 's/^ip: *//p' <<<"$out")
  call pod ls
  for _ in {1..50}; do
    [ -n "$("$cri" --config "$1/config.toml" pod logs -c client web)" ] && break
    sleep 0.1
  done
  call pod logs -c server web
  call pod logs -c client web
  call pod exec -c client web -- ps
  printf '\nHTTP from this machine over the bridge, GET http://%s:\n' "$address"
  # shellcheck disable=SC2016 # that bash expands it
  # Static programs of glibc may not resolve names everywhere: bash speaks TCP itself.
  timeout 10 bash -c 'exec 3<>"/dev/tcp/$0/80" && printf "GET / HTTP/1.0\r\n\r\n" >&3 && cat <&3' "$address" ||
    die "no answer from the pod at $address"
}

# remove_node DIR: ends and removes all of it; also what a killed quickstart left. What fails does not keep the rest.
remove_node() (
  set +e
  dir=$1
  cd /
  # One that was killed has left its pods.
  if [ -e "$dir/rtc-cri.pid" ] && ! is_ours "$dir" rtc-cri; then (start_node "$dir"); fi
  if is_ours "$dir" rtc-cri; then "$cri" --config "$dir/config.toml" pod rm --all --time 1 >/dev/null; fi
  end_process "$dir" rtc-cri
  end_process "$dir" registry
  bridge=$(cat "$dir/bridge" 2>/dev/null)
  if [ -e "/sys/class/net/${bridge:-none}" ]; then busybox ip link delete "$bridge"; fi
  # The bridge plugin turned it on.
  if [ -s "$dir/ip_forward" ]; then cat "$dir/ip_forward" >/proc/sys/net/ipv4/ip_forward; fi
  cgroup=$(cat "$dir/cgroup" 2>/dev/null)
  if [ -n "$cgroup" ]; then
    find /sys/fs/cgroup -depth -type d '(' -path "*$cgroup" -o -path "*$cgroup/*" ')' -exec rmdir {} + 2>/dev/null
  fi
  # Innermost first.
  awk -v dir="$dir/" 'index($5, dir) == 1 { print $5 }' /proc/self/mountinfo | tac | while read -r point; do umount "$point"; done
  rm -rf --one-file-system "$dir"
  [ ! -e "$dir" ] && [ ! -e "/sys/class/net/${bridge:-none}" ]
)

# is_ours DIR NAME: the process of a pid file runs, and is that of this directory.
is_ours() {
  local pid
  pid=$(cat "$1/$2.pid" 2>/dev/null) && tr '\0' ' ' 2>/dev/null <"/proc/$pid/cmdline" | grep -qF "$1/"
}

# end_process DIR NAME: in order, and after half a minute at once.
end_process() {
  is_ours "$1" "$2" || return 0
  kill "$(<"$1/$2.pid")"
  for _ in {1..300}; do
    is_ours "$1" "$2" || return 0
    sleep 0.1
  done
  kill -KILL "$(<"$1/$2.pid")" 2>/dev/null || true
}

# remove_stale: what killed quickstarts left.
remove_stale() {
  local dir
  for dir in "${TMPDIR:-/tmp}"/rtc-quickstart-??????; do
    [ -e "$dir/lock" ] || continue
    if flock --nonblock "$dir/lock" true; then
      say "removing what a quickstart left that was killed: $dir"
      remove_node "$dir"
    fi
  done
}
