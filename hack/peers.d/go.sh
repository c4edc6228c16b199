# shellcheck shell=bash
# Sourced after setup.sh and debian.sh by the parts that are Go modules.

readonly GO_WANTED=1.26.6 # what the newest of these modules asks for
readonly GO_PACKAGE=golang-1.26

# need_go CACHE: puts a new enough go in PATH: this machine's, else Debian sid's unpacked, else the toolchain that an
# older go takes from the module proxy by itself. Everything it keeps is in CACHE.
need_go() {
  export GOMODCACHE=$1/go/modules GOCACHE=$1/go/build GOFLAGS='-modcacherw -trimpath -buildvcs=false' CGO_ENABLED=0
  if [ -x /usr/local/go/bin/go ]; then PATH=/usr/local/go/bin:$PATH; fi
  if new_enough_go; then return; fi
  say "no Go $GO_WANTED or newer: taking Debian sid's"
  need_mirror
  need_tools "$KEYRING:debian-archive-keyring" dpkg-deb:dpkg
  if retry 3 download_from sid "$1/go/packages" "$GO_PACKAGE-go" "$GO_PACKAGE-src"; then unpack_go "$1/go"; fi
  if GOTOOLCHAIN=local new_enough_go; then return; fi
  export GOTOOLCHAIN=go$GO_WANTED+auto
  new_enough_go || die "no Go $GO_WANTED or newer could be had"
}

# Called in a condition, where errexit is off: hence the one chain.
unpack_go() {
  local tree=$1/root
  rm -rf "$tree"
  dpkg-deb -x "$(newest_package "$1/packages" "$GO_PACKAGE-go")" "$tree" &&
    dpkg-deb -x "$(newest_package "$1/packages" "$GO_PACKAGE-src")" "$tree" &&
    export GOROOT=$tree/usr/lib/go-${GO_PACKAGE#*-} &&
    PATH=$GOROOT/bin:$PATH
}

new_enough_go() {
  local version
  hash -r
  version=$(go env GOVERSION 2>/dev/null) || return 1
  newer_or_same "${version#go}" "$GO_WANTED"
}

# module NAME@VERSION: downloads it, prints its directory (which is not to be written).
module() {
  retry 5 timeout --kill-after=10 600 go mod download "$1" >&2 || return
  (cd / && go mod download -json "$1" | sed -n 's/^\t"Dir": "\(.*\)",*$/\1/p')
}
