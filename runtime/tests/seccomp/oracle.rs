//! libseccomp as the oracle: the C program `oracle.c`, compiled here, answers for each profile with its filter.

use std::io::{BufReader, BufWriter, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::OnceLock;

use oci_spec::runtime::{Arch, LinuxSeccomp, LinuxSeccompAction as Action};
use rtc_runtime::seccomp::Insn;

pub(crate) struct Oracle {
    child: Child,
    input: BufWriter<ChildStdin>,
    output: BufReader<ChildStdout>,
}

/// libseccomp's answer for one profile.
pub(crate) struct Answer {
    /// The index of the (name, rule) pair that it refused.
    pub(crate) refused: Option<u32>,
    /// The greatest number that the profile names on x86_64, x32, x86.
    pub(crate) greatest: [u32; 3],
    /// The calls that it names.
    pub(crate) calls: Vec<Call>,
    pub(crate) program: Vec<Insn>,
}

/// A number that the (name, rule) pair of this index names.
pub(crate) struct Call {
    pub(crate) number: u32,
    /// Index into [`Answer::greatest`].
    pub(crate) abi: u32,
    pub(crate) rule: u32,
    /// Not 0: `socketcall(2)` or `ipc(2)` with this first argument.
    pub(crate) first: u32,
}

/// The oracle, compiled once.
fn binary() -> &'static Path {
    static BINARY: OnceLock<PathBuf> = OnceLock::new();
    BINARY.get_or_init(|| {
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/seccomp/oracle.c");
        let binary = Path::new(env!("CARGO_TARGET_TMPDIR")).join("seccomp-oracle");
        let fresh = binary.with_extension(std::process::id().to_string());
        let status = Command::new("cc")
            .args(["-O1", "-Wall", "-Wextra", "-Werror", "-o"])
            .arg(&fresh)
            .arg(&source)
            .arg("-lseccomp")
            .status()
            .expect("a C compiler is needed: apt-get install gcc libc6-dev libseccomp-dev");
        assert!(
            status.success(),
            "oracle.c does not compile: apt-get install libseccomp-dev"
        );
        std::fs::rename(&fresh, &binary).expect("put the oracle in its place");
        binary
    })
}

/// The names of all calls of x86_64, x32 and x86 that libseccomp knows.
pub(crate) fn names() -> Vec<String> {
    let output = Command::new(binary())
        .arg("names")
        .output()
        .expect("run the oracle");
    let text = String::from_utf8(output.stdout).expect("names are ASCII");
    let mut names: Vec<String> = text.lines().map(str::to_owned).collect();
    names.sort();
    names.dedup();
    names
}

/// Makes each call under a filter in a process of its own; what killed that, and the call's errno.
pub(crate) fn under_filter(filter: &[Insn], calls: &[(u32, [u64; 6])]) -> Vec<(u32, u32)> {
    let mut input = Vec::new();
    input.extend((filter.len() as u32).to_ne_bytes());
    for insn in filter {
        input.extend(insn.code.to_ne_bytes());
        input.extend([insn.jt, insn.jf]);
        input.extend(insn.k.to_ne_bytes());
    }
    input.extend((calls.len() as u32).to_ne_bytes());
    for (number, arguments) in calls {
        input.extend(u64::from(*number).to_ne_bytes());
        input.extend(arguments.iter().flat_map(|argument| argument.to_ne_bytes()));
    }
    let mut child = Command::new(binary())
        .arg("kernel")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("start the oracle");
    // It answers each call in 8 bytes, which fit a pipe for some thousand calls.
    child
        .stdin
        .take()
        .expect("stdin is piped")
        .write_all(&input)
        .expect("write to the oracle");
    let output = child.wait_with_output().expect("wait for the oracle");
    assert!(output.status.success());
    let word = |bytes: &[u8]| u32::from_ne_bytes(bytes.try_into().expect("four bytes"));
    output
        .stdout
        .chunks_exact(8)
        .map(|pair| (word(&pair[..4]), word(&pair[4..])))
        .collect()
}

impl Oracle {
    pub(crate) fn start() -> Oracle {
        let mut child = Command::new(binary())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("start the oracle");
        let input = BufWriter::new(child.stdin.take().expect("stdin is piped"));
        let output = BufReader::new(child.stdout.take().expect("stdout is piped"));
        Oracle { child, input, output }
    }

    /// libseccomp's answer; `None` where it gives none, and has to be started again.
    pub(crate) fn ask(&mut self, profile: &LinuxSeccomp) -> Option<Answer> {
        self.send(profile).ok()?;
        let (error, failed) = (self.word()? as i32, self.word()?);
        let greatest = [self.word()?, self.word()?, self.word()?];
        let mut calls = Vec::new();
        for _ in 0..self.word()? {
            calls.push(Call {
                number: self.word()?,
                abi: self.word()?,
                rule: self.word()?,
                first: self.word()?,
            });
        }
        let mut program = Vec::new();
        for _ in 0..self.word()? {
            program.push(self.instruction()?);
        }
        Some(Answer {
            refused: (error != 0).then_some(failed),
            greatest,
            calls,
            program,
        })
    }

    fn send(&mut self, profile: &LinuxSeccomp) -> std::io::Result<()> {
        let input = &mut self.input;
        writeln!(
            input,
            "D {}",
            action(profile.default_action(), profile.default_errno_ret())
        )?;
        for arch in profile
            .architectures()
            .iter()
            .flatten()
            .filter(|arch| **arch != Arch::ScmpArchX86_64)
        {
            writeln!(input, "A {}", *arch as u32)?;
        }
        for rule in profile.syscalls().iter().flatten() {
            let args = rule.args().as_deref().unwrap_or(&[]);
            for name in rule.names() {
                write!(
                    input,
                    "R {} {name} {}",
                    action(rule.action(), rule.errno_ret()),
                    args.len()
                )?;
                for arg in args {
                    let second = arg.value_two().unwrap_or(0);
                    write!(
                        input,
                        " {} {} {} {second}",
                        arg.index(),
                        arg.op() as u32,
                        arg.value()
                    )?;
                }
                writeln!(input)?;
            }
        }
        writeln!(input, "E")?;
        input.flush()
    }

    fn word(&mut self) -> Option<u32> {
        let mut bytes = [0; 4];
        self.output.read_exact(&mut bytes).ok()?;
        Some(u32::from_ne_bytes(bytes))
    }

    fn instruction(&mut self) -> Option<Insn> {
        let mut bytes = [0; 8];
        self.output.read_exact(&mut bytes).ok()?;
        let [c0, c1, jt, jf, k0, k1, k2, k3] = bytes;
        Some(Insn {
            code: u16::from_ne_bytes([c0, c1]),
            jt,
            jf,
            k: u32::from_ne_bytes([k0, k1, k2, k3]),
        })
    }
}

impl Drop for Oracle {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What a filter returns for an action (linux/seccomp.h); written again here, apart from the compiler's.
pub(crate) fn action(action: Action, data: Option<u32>) -> u32 {
    match action {
        Action::ScmpActKill | Action::ScmpActKillThread => 0,
        Action::ScmpActKillProcess => 0x8000_0000,
        Action::ScmpActTrap => 0x0003_0000,
        Action::ScmpActErrno => 0x0005_0000 | data.unwrap_or(1),
        Action::ScmpActNotify => 0x7fc0_0000,
        Action::ScmpActTrace => 0x7ff0_0000 | data.unwrap_or(1),
        Action::ScmpActLog => 0x7ffc_0000,
        Action::ScmpActAllow => 0x7fff_0000,
    }
}
