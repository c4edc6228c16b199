# shellcheck shell=bash
# Sourced first by every script in hack/: strict mode, where things are, and the few steps that depend on the
# machine (packages, Rust toolchain, downloads). Every step that talks to a package registry is tried again,
# and asks nothing of it when what it would bring is there already.

set -euo pipefail
exec </dev/null # no script here reads a keyboard; this also covers a caller without standard input
umask 022
export LC_ALL=C.UTF-8 DEBIAN_FRONTEND=noninteractive CARGO_TERM_COLOR=never CARGO_TERM_PROGRESS_WHEN=never
HOME=${HOME:-$(getent passwd "$(id -u)" | cut -d: -f6 || true)}
HOME=${HOME:-/root}
PATH=${PATH:-/usr/bin:/bin}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
export HOME PATH

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
readonly ROOT
# The one target: static binaries need it named (.cargo/config.toml), so its name is part of every output path.
readonly RUST_TARGET=x86_64-unknown-linux-gnu
CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$ROOT/target}
export CARGO_TARGET_DIR

say() { printf '%s: %s\n' "${0##*/}" "$*" >&2; }
die() {
  say "$*"
  exit 1
}

# usage: prints the comment at the head of the calling script.
usage() { sed -n '2,/^$/ { /^#/ s/^# \{0,1\}//p }' "$0"; }

# has_capability BIT: of capabilities(7), effective.
has_capability() {
  local mask
  mask=$(sed -n 's/^CapEff:[[:space:]]*//p' /proc/self/status)
  (((16#$mask >> $1) & 1))
}

need_root() { [ "$(id -u)" = 0 ] || die "needs root (you are user $(id -u)): sudo $0"; }

# retry TIMES COMMAND...: until it succeeds, with a growing pause.
retry() {
  local times=$1 try pause=3
  shift
  for ((try = 1; ; try++)); do
    "$@" && return 0
    ((try < times)) || return 1
    say "try $try of $times failed: $*: again in $pause s"
    sleep "$pause"
    pause=$((pause * 2))
  done
}

# wait_for_lock FD SECONDS WHAT: takes the lock on an open descriptor, and says so when it has to wait.
wait_for_lock() {
  flock --nonblock "$1" && return 0
  say "another run holds $3: waiting for it, up to $2 s"
  flock --wait "$2" "$1" || die "another run still holds $3 after $2 s"
}

# need_space DIRECTORY MEGABYTES
need_space() {
  local free
  free=$(df --output=avail -BM "$1" | tail -n 1 | tr -dc 0-9)
  ((free >= $2)) || die "$1: $free MB free, $2 MB needed: make room or choose another place"
}

# need_tools WHAT:PACKAGE...: installs the packages of what is missing. WHAT is a command, or a path.
need_tools() {
  local pair what missing=()
  for pair; do
    what=${pair%%:*}
    case $what in
      /*) [ -e "$what" ] ;;
      *) command -v "$what" >/dev/null ;;
    esac || missing+=("${pair#*:}")
  done
  ((${#missing[@]})) || return 0
  install_packages "${missing[@]}"
}

install_packages() {
  command -v apt-get >/dev/null || die "missing: $*: install them (no apt-get on this machine)"
  [ "$(id -u)" = 0 ] || die "missing: $*: install them, or run this as root"
  say "installing: $*"
  retry 5 apt_install "$@" || die "could not install: $*"
}

# A busy dpkg is waited for; stale or absent package lists and a dpkg that was interrupted are mended first.
apt_install() {
  local log
  log=$(mktemp)
  if apt_get install --no-install-recommends "$@" >"$log" 2>&1; then
    rm -f "$log"
    return 0
  fi
  dpkg --configure -a >>"$log" 2>&1 || true
  apt_get update >>"$log" 2>&1 || true
  if apt_get install --no-install-recommends "$@" >>"$log" 2>&1; then
    rm -f "$log"
    return 0
  fi
  tail -n 15 "$log" >&2
  rm -f "$log"
  return 1
}

apt_get() {
  timeout --kill-after=30 900 apt-get -q -y -o DPkg::Lock::Timeout=600 -o Acquire::Retries=5 \
    -o Acquire::http::Timeout=60 -o Dpkg::Use-Pty=0 -o Dpkg::Options::=--force-confold "$@"
}

# What a build needs besides Rust: a linker driver, and the static C library.
need_compiler() { need_tools gcc:gcc ld:binutils /usr/lib/x86_64-linux-gnu/libc.a:libc6-dev; }

# need_rust [COMPONENT...]: puts a cargo in PATH that is new enough, with its components (clippy, rustfmt).
need_rust() {
  local wanted have bin component
  wanted=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' "$ROOT/Cargo.toml")
  for bin in "${CARGO_HOME:-$HOME/.cargo}/bin" /root/.cargo/bin /usr/local/cargo/bin /usr/lib/rustup/bin; do
    if ! command -v cargo >/dev/null && [ -x "$bin/cargo" ]; then use_cargo_in "$bin"; fi
  done
  have=$(rust_version)
  if ! newer_or_same "$have" "$wanted"; then
    install_rust "$wanted"
    have=$(rust_version)
    newer_or_same "$have" "$wanted" || die "rustc ${have:-is missing}: $wanted or newer is needed, and none could be installed"
  fi
  for component; do
    "$(component_command "$component")" --version >/dev/null 2>&1 && continue
    command -v rustup >/dev/null || die "$component is missing: install it beside rustc $have"
    retry 4 rustup component add "$component" >&2 || die "rustup could not add $component"
  done
}

# A rustup in another user's home (CI may set HOME) finds its toolchains only when told.
use_cargo_in() {
  PATH=$1:$PATH
  if [ ! -d "${RUSTUP_HOME:-$HOME/.rustup}" ] && [ -d "${1%/.cargo/bin}/.rustup" ]; then
    export RUSTUP_HOME=${1%/.cargo/bin}/.rustup
  fi
}

rust_version() { rustc --version 2>/dev/null | awk '{ print $2 }' || true; }
newer_or_same() { [ -n "$1" ] && [ "$(printf '%s\n' "$2" "$1" | sort -V | head -n 1)" = "$2" ]; }
apt_version() { apt-cache policy "$1" 2>/dev/null | sed -n 's/ *Candidate: \([0-9.]*\).*/\1/p' || true; }
apt_has() { [ -n "$(apt_version "$1")" ]; }
component_command() { case $1 in clippy) echo cargo-clippy ;; *) echo "$1" ;; esac }

install_rust() {
  local wanted=$1
  say "no Rust $wanted or newer: installing it"
  if ! command -v rustup >/dev/null && apt_has rustup; then
    install_packages rustup
  fi
  if command -v rustup >/dev/null; then
    retry 4 rustup toolchain install "$wanted" --profile minimal --component clippy --component rustfmt >&2 &&
      export RUSTUP_TOOLCHAIN=$wanted
    hash -r
  elif newer_or_same "$(apt_version rustc)" "$wanted"; then
    install_packages rustc cargo rust-clippy rustfmt
  else
    die "no Rust toolchain, and this distribution's is too old: install rustup as the Rust project's site says, then run this again"
  fi
}

# fetch_crates: all that the lock files name, once; cargo stays offline afterwards, so no later step can meet the network.
fetch_crates() {
  local manifest fetch
  for manifest in "$ROOT/Cargo.toml" "$ROOT/fuzz/Cargo.toml"; do
    [ -e "${manifest%toml}lock" ] || continue
    fetch=(cargo fetch --locked --target "$RUST_TARGET" --manifest-path "$manifest")
    if ! "${fetch[@]}" --offline >/dev/null 2>&1; then
      say "downloading the crates of ${manifest#"$ROOT/"}"
      retry 5 env CARGO_NET_OFFLINE=false CARGO_NET_RETRY=5 timeout --kill-after=10 900 "${fetch[@]}" >&2 ||
        die "could not download the crates of ${manifest#"$ROOT/"}"
    fi
  done
  export CARGO_NET_OFFLINE=true
}
