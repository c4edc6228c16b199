# shellcheck shell=bash
# Sourced after setup.sh: packages of any Debian suite, downloaded with apt lists of their own from the mirror that apt
# is set up with. Nothing of another suite is ever installed on the host.

readonly KEYRING=/usr/share/keyrings/debian-archive-keyring.gpg

# The Debian mirror that apt is set up with.
mirror() {
  [ -n "${MIRROR:-}" ] && echo "$MIRROR" && return
  # shellcheck disable=SC2016 # apt's own format string
  apt-get indextargets --format '$(SITE)' 2>/dev/null | grep -m 1 -E '/debian/?$' || true
}

need_mirror() {
  MIRROR=$(mirror)
  [ -n "$MIRROR" ] || die 'apt is set up with no Debian mirror: set MIRROR'
}

# download_from SUITE DIRECTORY PACKAGE...: their newest versions into DIRECTORY, which may hold them already.
download_from() {
  local suite=$1 directory=$2 apt options status=0
  shift 2
  apt=$(mktemp -d)
  mkdir -p "$apt"/{lists/partial,cache/archives/partial,preferences} "$directory"
  : >"$apt/status"
  echo "deb [signed-by=$KEYRING] $MIRROR $suite main" >"$apt/sources.list"
  options=(-q -o Dir::Etc::sourcelist="$apt/sources.list" -o Dir::Etc::sourceparts=/dev/null
    -o Dir::Etc::preferencesparts="$apt/preferences" -o Dir::State::lists="$apt/lists" -o Dir::Cache="$apt/cache"
    -o Dir::State::status="$apt/status" -o APT::Sandbox::User=root -o Acquire::Retries=5 -o Acquire::http::Timeout=60
    -o Acquire::Check-Valid-Until=false # a mirror may be a snapshot, and the clock of a test machine wrong
    -o Acquire::Languages=none -o Acquire::IndexTargets::deb::DEP-11::DefaultEnabled=false)
  timeout --kill-after=30 600 apt-get "${options[@]}" update &&
    (cd "$directory" && timeout --kill-after=30 600 apt-get "${options[@]}" download "$@") || status=$?
  rm -rf "$apt"
  return "$status"
}

# newest_package DIRECTORY NAME: the file of its last downloaded version.
newest_package() { find "$1" -name "$2_*.deb" -printf '%T@ %p\n' | sort -rn | head -n 1 | cut -d' ' -f2-; }
