# shellcheck shell=bash
# Sourced by build: a User Mode Linux machine. Its kernel is a program of the host, built for a newer C library than the
# host may have: host/ has one beside it.

# Suites to take the kernel from, best first: only 7.x has `seccomp=on`, by which it is three times as fast.
readonly KERNEL_SUITES=(sid forky trixie)

packages() { cat "$HERE/packages"; }

take_kernel() {
  retry 4 download_kernel || {
    tail -n 15 "$IMAGE/kernel.log" >&2
    die 'could not get a UML kernel'
  }
}

# Downloads the kernel's package, and tries it.
download_kernel() {
  local suite
  for suite in "${KERNEL_SUITES[@]}"; do
    if download_from "$suite" "$CACHE/kernel-$suite" user-mode-linux && install_kernel "$CACHE/kernel-$suite"; then
      return 0
    fi
    say "no usable kernel from $suite"
  done
  return 1
} >"$IMAGE/kernel.log" 2>&1

# install_kernel DIRECTORY-OF-THE-PACKAGE: into host/, with the libraries of the tree, and tries that it starts.
# (Called in a condition, where errexit is off: hence the one chain.)
# shellcheck disable=SC2016 # $1 is expanded in the new namespaces
install_kernel() {
  local package unpacked=$IMAGE/unpacked
  package=$(newest_package "$1" user-mode-linux)
  rm -rf "$unpacked"
  make_host_root
  mkdir -p "$TREE/mnt"
  dpkg-deb -x "$package" "$unpacked" &&
    cp "$(find "$unpacked/usr/bin" -name 'linux*' -type f | head -n 1)" "$PROGRAMS/linux" &&
    cp -a "$unpacked/usr/lib/uml/modules/." "$TREE/usr/lib/modules/" &&
    cp "$TREE/usr/bin/env" "$PROGRAMS/usr/bin/" &&
    cp "$PROGRAMS/linux" "$TREE/mnt/linux" &&
    copy_libraries /mnt/linux /usr/bin/env &&
    rm -rf "$unpacked" "$TREE/mnt/linux" &&
    unshare --mount --pid --fork bash -c 'mount -t proc proc "$1/proc" && chroot "$1" /linux --version' - "$PROGRAMS"
}
