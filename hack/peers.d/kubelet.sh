# shellcheck shell=bash
# Sourced by the parts kubelet-*: the kubelet, from the Go module k8s.io/kubernetes, as a static program.
. "$(dirname "${BASH_SOURCE[0]}")/../setup.sh"
. "$ROOT/hack/debian.sh"
. "$ROOT/hack/peers.d/go.sh"
readonly MODULE=k8s.io/kubernetes

# write_module VERSION: a module of our own, here, that has Kubernetes as its only requirement. Its staging modules are
# in its repository, where no other module can have them from: each is taken as it is published, v0 for v1.
write_module() {
  local source line
  source=$(module "$MODULE@$1")
  go mod init kubelet
  go mod edit -require="$MODULE@$1"
  while read -r line; do go mod edit -replace="$line=$line@v0.${1#v1.}"; done \
    < <(sed -n 's|^\t\(k8s.io/[a-z-]*\) => ./staging/.*|\1|p' "$source/go.mod")
  go mod edit -json | grep -c '"Old"' | grep -qE '^[0-9]{2}$' || die "$MODULE $1 names its staging modules in another way"
}

# linker_flags VERSION: what it says of itself, which a build from sources alone does not know.
linker_flags() {
  local package=k8s.io/component-base/version
  echo "-s -w -X $package.gitVersion=$1 -X $package.gitMajor=1 -X $package.gitMinor=$(cut -d. -f2 <<<"$1")"
}

install_program() {
  GOBIN=$2 timeout --kill-after=10 3000 go install -mod=mod -ldflags "$(linker_flags "$1")" "$MODULE/cmd/kubelet"
}

# build_kubelet VERSION DIRECTORY CACHE: makes DIRECTORY/kubelet-MINOR/bin/kubelet.
build_kubelet() {
  local bin
  bin=$2/kubelet-$(cut -d. -f1,2 <<<"${1#v}")/bin
  need_go "$3"
  work=$(mktemp -d)
  trap 'rm -rf "$work"' EXIT
  mkdir -p "$bin"
  cd "$work" || exit
  write_module "$1"
  retry 4 install_program "$1" "$bin"
  "$bin/kubelet" --version
}
