# shellcheck shell=bash
# Sourced by build: a machine that QEMU emulates without KVM, with Debian's cloud kernel. QEMU is not installed on the
# host: host/ has it with all its libraries, the kernel, and the first file system that the kernel sees (initrd).

readonly EMULATOR=(/usr/bin/qemu-system-x86_64 /usr/libexec/virtiofsd)
# Firmware: the BIOS of a q35, and what loads a kernel that is given on the command line.
readonly FIRMWARE=(usr/share/seabios/bios-256k.bin usr/share/qemu/linuxboot_dma.bin usr/share/qemu/kvmvapic.bin)

packages() {
  cat "$HERE/packages"
  printf '%s\n' linux-image-cloud-amd64 qemu-system-x86 virtiofsd conntrack criu iptables iputils-ping
}

take_kernel() {
  local file release
  make_host_root
  mkdir -p "$PROGRAMS/firmware"
  for file in "${EMULATOR[@]}"; do cp "$TREE$file" "$PROGRAMS/usr/bin/"; done
  cp "$TREE/usr/bin/env" "$PROGRAMS/usr/bin/"
  copy_libraries "${EMULATOR[@]}" /usr/bin/env
  for file in "${FIRMWARE[@]}"; do cp -L "$TREE/$file" "$PROGRAMS/firmware/"; done
  release=$(basename "$TREE"/usr/lib/modules/*-cloud-amd64)
  cp "$TREE/boot/vmlinuz-$release" "$PROGRAMS/vmlinuz"
  make_initrd "$TREE/usr/lib/modules/$release" >"$PROGRAMS/initrd"
  chroot "$PROGRAMS" /usr/bin/env qemu-system-x86_64 --version
  # The machine itself runs none of it.
  rm -rf "$TREE"/usr/bin/qemu-* "$TREE"/usr/libexec/virtiofsd "$TREE"/usr/share/{qemu,seabios} "$TREE"/boot/initrd.img-*
} >"$IMAGE/kernel.log" 2>&1

# make_initrd MODULES: finds the disk, whose driver is a module, and starts systemd on it.
make_initrd() {
  local root=$TREE/mnt/initrd
  mkdir -p "$root"/{bin,dev,new}
  cp "$TREE/usr/bin/busybox" "$root/bin/"
  xz -dc "$1/kernel/drivers/block/virtio_blk.ko.xz" >"$root/virtio_blk.ko"
  cat >"$root/init" <<'INIT'
#!/bin/busybox sh
/bin/busybox mount -t devtmpfs devtmpfs /dev
/bin/busybox insmod /virtio_blk.ko
/bin/busybox mount -t ext4 -o noatime /dev/vda /new
/bin/busybox mount --move /dev /new/dev
exec /bin/busybox switch_root /new /sbin/init
INIT
  chmod +x "$root/init"
  chroot "$TREE" sh -c 'cd /mnt/initrd && find . | busybox cpio -o -H newc 2>/dev/null'
  rm -rf "$root"
}
