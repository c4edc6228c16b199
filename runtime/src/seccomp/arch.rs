//! The ABIs a seccomp filter of this target can see, native first.
//!
//! The kernel tells a filter the ABI as `AUDIT_ARCH_*` (audit.h); x32 shares x86_64's value and is told from it by
//! bit 30 of the number. Architectures that a profile lists and that are not of this target can never be seen on
//! this kernel: they are accepted and add nothing.

use oci_spec::runtime::Arch;

use super::table;

/// Bit 30 of the number marks a call of x32 (asm/unistd.h `__X32_SYSCALL_BIT`).
pub(super) const X32_BIT: u32 = 0x4000_0000;

/// One system call ABI.
pub(super) struct Abi {
    /// Its name in a profile.
    pub(super) arch: Arch,
    /// `seccomp_data.arch`.
    pub(super) audit: u32,
    /// Whether arguments are compared in 64 bits; 32-bit ABIs compare the low word only.
    pub(super) wide: bool,
    /// Or-ed to each number of the table.
    pub(super) bit: u32,
    /// Its multiplexed calls, if it has them.
    pub(super) multiplexed: Option<Multiplexed>,
    /// Call 0 is the multiplexer that s390 uses for numbers that do not fit the instruction: unknown large numbers
    /// arrive as 0 and must read as "no such call".
    pub(super) zero_is_unknown: bool,
}

/// Numbers of the two calls that stand for a family: `socketcall(2)` and `ipc(2)`.
pub(super) struct Multiplexed {
    pub(super) socketcall: u32,
    pub(super) ipc: u32,
}

#[cfg(any(target_arch = "x86_64", target_arch = "powerpc64", target_arch = "s390x"))]
const SOCKETCALL_AND_IPC: Option<Multiplexed> = Some(Multiplexed {
    socketcall: 102,
    ipc: 117,
});

const fn abi(arch: Arch, audit: u32, wide: bool) -> Abi {
    Abi {
        arch,
        audit,
        wide,
        bit: 0,
        multiplexed: None,
        zero_is_unknown: false,
    }
}

/// The ABIs of this target in the order of the table's columns: the native one, ABIs with its `audit` value, others.
#[cfg(target_arch = "x86_64")]
pub(super) static ABIS: [Abi; table::COLUMNS] = [
    abi(Arch::ScmpArchX86_64, 0xc000_003e, true),
    Abi {
        bit: X32_BIT,
        ..abi(Arch::ScmpArchX32, 0xc000_003e, false)
    },
    Abi {
        multiplexed: SOCKETCALL_AND_IPC,
        ..abi(Arch::ScmpArchX86, 0x4000_0003, false)
    },
];

/// The ABIs of this target in the order of the table's columns: the native one, ABIs with its `audit` value, others.
#[cfg(target_arch = "aarch64")]
pub(super) static ABIS: [Abi; table::COLUMNS] = [
    abi(Arch::ScmpArchAarch64, 0xc000_00b7, true),
    abi(Arch::ScmpArchArm, 0x4000_0028, false),
];

/// The ABIs of this target in the order of the table's columns: the native one, ABIs with its `audit` value, others.
#[cfg(target_arch = "riscv64")]
pub(super) static ABIS: [Abi; table::COLUMNS] = [abi(Arch::ScmpArchRiscv64, 0xc000_00f3, true)];

/// The ABIs of this target in the order of the table's columns: the native one, ABIs with its `audit` value, others.
#[cfg(target_arch = "loongarch64")]
pub(super) static ABIS: [Abi; table::COLUMNS] = [abi(Arch::ScmpArchLoongarch64, 0xc000_0102, true)];

/// The ABIs of this target in the order of the table's columns: the native one, ABIs with its `audit` value, others.
#[cfg(all(target_arch = "powerpc64", target_endian = "little"))]
pub(super) static ABIS: [Abi; table::COLUMNS] = [
    Abi {
        multiplexed: SOCKETCALL_AND_IPC,
        ..abi(Arch::ScmpArchPpc64le, 0xc000_0015, true)
    },
    Abi {
        multiplexed: SOCKETCALL_AND_IPC,
        ..abi(Arch::ScmpArchPpc, 0x0000_0014, false)
    },
];

/// The ABIs of this target in the order of the table's columns: the native one, ABIs with its `audit` value, others.
#[cfg(all(target_arch = "powerpc64", target_endian = "big"))]
pub(super) static ABIS: [Abi; table::COLUMNS] = [
    Abi {
        multiplexed: SOCKETCALL_AND_IPC,
        ..abi(Arch::ScmpArchPpc64, 0x8000_0015, true)
    },
    Abi {
        multiplexed: SOCKETCALL_AND_IPC,
        ..abi(Arch::ScmpArchPpc, 0x0000_0014, false)
    },
];

/// The ABIs of this target in the order of the table's columns: the native one, ABIs with its `audit` value, others.
#[cfg(target_arch = "s390x")]
pub(super) static ABIS: [Abi; table::COLUMNS] = [
    Abi {
        multiplexed: SOCKETCALL_AND_IPC,
        zero_is_unknown: true,
        ..abi(Arch::ScmpArchS390x, 0x8000_0016, true)
    },
    Abi {
        multiplexed: SOCKETCALL_AND_IPC,
        zero_is_unknown: true,
        ..abi(Arch::ScmpArchS390, 0x0000_0016, false)
    },
];

impl Multiplexed {
    /// The number and the first argument by which `name` can also be called (linux/net.h, linux/ipc.h); `None`
    /// where it is not one of a family.
    pub(super) fn call(&self, name: &str) -> Option<(u32, u32)> {
        let (number, first_argument) = match name {
            "socket" => (self.socketcall, 1),
            "bind" => (self.socketcall, 2),
            "connect" => (self.socketcall, 3),
            "listen" => (self.socketcall, 4),
            "accept" => (self.socketcall, 5),
            "getsockname" => (self.socketcall, 6),
            "getpeername" => (self.socketcall, 7),
            "socketpair" => (self.socketcall, 8),
            "send" => (self.socketcall, 9),
            "recv" => (self.socketcall, 10),
            "sendto" => (self.socketcall, 11),
            "recvfrom" => (self.socketcall, 12),
            "shutdown" => (self.socketcall, 13),
            "setsockopt" => (self.socketcall, 14),
            "getsockopt" => (self.socketcall, 15),
            "sendmsg" => (self.socketcall, 16),
            "recvmsg" => (self.socketcall, 17),
            "accept4" => (self.socketcall, 18),
            "recvmmsg" => (self.socketcall, 19),
            "sendmmsg" => (self.socketcall, 20),
            "semop" => (self.ipc, 1),
            "semget" => (self.ipc, 2),
            "semctl" => (self.ipc, 3),
            "semtimedop" => (self.ipc, 4),
            "msgsnd" => (self.ipc, 11),
            "msgrcv" => (self.ipc, 12),
            "msgget" => (self.ipc, 13),
            "msgctl" => (self.ipc, 14),
            "shmat" => (self.ipc, 21),
            "shmdt" => (self.ipc, 22),
            "shmget" => (self.ipc, 23),
            "shmctl" => (self.ipc, 24),
            _ => return None,
        };
        Some((number, first_argument))
    }
}
