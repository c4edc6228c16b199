//! The sealing of our own program, from outside: this file is both the program that seals itself (called with
//! `sealed`) and the one that attacks it. Needs root, for mounts in private mount namespaces.

use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader};
use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};

type Test = fn(&Path);

const TESTS: &[(&str, Test)] = &[
    (
        "the_program_cannot_be_written_through_proc_while_it_runs_or_after",
        program_cannot_be_written,
    ),
    ("a_sealed_memfd_cannot_be_written_either", memfd_cannot_be_written),
    (
        "arguments_and_environment_reach_the_sealed_program_untouched",
        arguments_and_environment,
    ),
    (
        "a_marker_from_elsewhere_does_not_stop_the_sealing",
        foreign_marker,
    ),
    ("a_read_only_bind_mount_is_not_taken_for_a_seal", read_only_bind),
    (
        "a_read_only_bind_mount_of_a_writable_overlay_is_not_taken_for_a_seal",
        read_only_bind_of_overlay,
    ),
    (
        "a_program_on_a_read_only_superblock_is_not_executed_again",
        read_only_superblock,
    ),
    ("a_deleted_program_is_copied_to_a_memfd", deleted_program),
    (
        "a_program_covered_by_a_bind_mount_is_sealed_as_what_runs",
        covered_program,
    ),
    ("without_the_right_to_mount_a_memfd_is_used", without_privilege),
    (
        "a_directory_with_separators_in_its_name_is_overlaid",
        odd_directory,
    ),
    ("the_sealed_program_has_no_descriptor_more", no_descriptor_more),
    ("rtc_seals_itself_whatever_its_environment_and_name", rtc_itself),
];

fn main() -> ExitCode {
    if std::env::args().nth(1).as_deref() == Some("sealed") {
        return sealed_program();
    }
    if !nix::unistd::geteuid().is_root() {
        println!("skipped: the tests of sealing need root");
        return ExitCode::SUCCESS;
    }
    let directory = PathBuf::from(format!("/tmp/rtc-sealed.{}", std::process::id()));
    fs::create_dir(&directory).expect("make a directory");
    fs::set_permissions(&directory, fs::Permissions::from_mode(0o755)).expect("chmod");
    let program = directory.join("rtc");
    let mut failed = 0;
    for (name, test) in TESTS {
        let _ = fs::remove_file(&program);
        fs::copy("/proc/self/exe", &program).expect("copy the program");
        let result = std::panic::catch_unwind(|| test(&program));
        println!("test {name} ... {}", if result.is_ok() { "ok" } else { "FAILED" });
        failed += usize::from(result.is_err());
    }
    fs::remove_dir_all(&directory).expect("remove the directory");
    let verdict = if failed == 0 { "ok" } else { "FAILED" };
    println!(
        "\ntest result: {verdict}. {} passed; {failed} failed; 0 ignored",
        TESTS.len() - failed
    );
    ExitCode::from(u8::from(failed > 0))
}

/// Seals itself, says how, lists what it sees, and waits for the end of its standard input.
fn sealed_program() -> ExitCode {
    match rtc_runtime::sealed_exe::ensure() {
        Ok(seal) => println!("{seal:?}"),
        Err(error) => println!("{error:#}"),
    }
    println!("arguments {:?}", std::env::args_os().collect::<Vec<_>>());
    println!("environment {:?}", std::env::vars_os().collect::<Vec<_>>());
    println!(
        "comm {}",
        fs::read_to_string("/proc/self/comm").unwrap_or_default().trim()
    );
    let fds = fs::read_dir("/proc/self/fd").expect("list descriptors");
    println!("descriptors {}", fds.count() - 1);
    println!("end");
    let _ = std::io::stdin().read_line(&mut String::new());
    ExitCode::SUCCESS
}

/// A sealed program that waits, and what it printed.
struct Sealed {
    child: Child,
    lines: Vec<String>,
}

impl Sealed {
    fn start(command: &mut Command) -> Self {
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap_or_else(|e| panic!("{command:?}: {e}"));
        let output = BufReader::new(child.stdout.take().expect("piped"));
        let lines = output
            .lines()
            .map_while(Result::ok)
            .take_while(|line| line != "end")
            .collect();
        Self { child, lines }
    }

    fn line(&self, name: &str) -> &str {
        self.lines
            .iter()
            .find_map(|line| line.strip_prefix(name))
            .expect("a line with that name")
            .trim()
    }

    fn seal(&self) -> &str {
        self.lines.first().map_or("nothing", String::as_str)
    }

    fn end(mut self) {
        drop(self.child.stdin.take());
        assert!(self.child.wait().expect("wait").success());
    }
}

fn seal_of(command: &mut Command) -> String {
    let program = Sealed::start(command);
    let seal = program.seal().to_owned();
    program.end();
    seal
}

/// How the program that `script` executes (as `exec "$1" sealed`) is sealed, in a private mount namespace.
fn seal_in_namespace(program: &Path, script: &str) -> String {
    let mut command = Command::new("unshare");
    command
        .args([
            "--mount",
            "--propagation",
            "private",
            "sh",
            "-e",
            "-c",
            script,
            "sh",
        ])
        .arg(program);
    seal_of(&mut command)
}

/// Whether every way of opening for writing is refused, for a reason that outlives the process.
fn refuses_writers(path: &str) -> bool {
    let attempts = [
        OpenOptions::new().write(true).open(path),
        OpenOptions::new().append(true).open(path),
        OpenOptions::new().write(true).truncate(true).open(path),
    ];
    // Not ETXTBSY, which holds only for as long as the program runs.
    let allowed = [Some(libc::EROFS), Some(libc::EPERM)];
    attempts
        .iter()
        .all(|a| a.as_ref().is_err_and(|e| allowed.contains(&e.raw_os_error())))
}

fn program_cannot_be_written(program: &Path) {
    let before = fs::read(program).expect("read");
    let sealed = Sealed::start(Command::new(program).arg("sealed"));
    assert_eq!(sealed.seal(), "Overlay");
    let exe = format!("/proc/{}/exe", sealed.child.id());
    assert!(refuses_writers(&exe), "while it runs");
    let held = File::open(&exe).expect("open for reading");
    sealed.end();
    assert!(
        refuses_writers(&format!("/proc/self/fd/{}", held.as_raw_fd())),
        "after it has ended"
    );
    assert!(before == fs::read(program).expect("read"), "the file has changed");
}

fn memfd_cannot_be_written(program: &Path) {
    let script = r#"exec 3< "$1"; rm "$1"; exec /proc/self/fd/3 sealed"#;
    let sealed = Sealed::start(Command::new("sh").args(["-c", script, "sh"]).arg(program));
    assert_eq!(sealed.seal(), "Memfd");
    let held = File::open(format!("/proc/{}/exe", sealed.child.id())).expect("open for reading");
    sealed.end();
    // A memfd can be opened for writing; its seals refuse the writes.
    let path = format!("/proc/self/fd/{}", held.as_raw_fd());
    let writable = OpenOptions::new()
        .write(true)
        .open(path)
        .expect("open for writing");
    assert_eq!(nix::unistd::write(&writable, b"x"), Err(nix::Error::EPERM));
    assert_eq!(nix::unistd::ftruncate(&writable, 0), Err(nix::Error::EPERM));
}

fn arguments_and_environment(program: &Path) {
    let mut command = Command::new(program);
    command
        .arg0("odd name")
        .args(["sealed", "", "ä\n"])
        .env_clear()
        .env("A", "1")
        .env("LD_PRELOAD", "=x");
    let sealed = Sealed::start(&mut command);
    assert_eq!(sealed.seal(), "Overlay");
    assert_eq!(sealed.line("arguments"), r#"["odd name", "sealed", "", "ä\n"]"#);
    assert_eq!(
        sealed.line("environment"),
        r#"[("A", "1"), ("LD_PRELOAD", "=x")]"#
    );
    assert_eq!(sealed.line("comm"), "rtc");
    sealed.end();
}

fn foreign_marker(program: &Path) {
    for marker in ["", "1", "1:2:3:4:5", "\n"] {
        assert_eq!(
            seal_of(Command::new(program).arg("sealed").env("_RTC_SEALED", marker)),
            "Overlay"
        );
    }
}

fn read_only_bind(program: &Path) {
    let script =
        r#"d=$(dirname "$1"); mount --bind "$d" "$d"; mount -o remount,bind,ro "$d"; exec "$1" sealed"#;
    assert_eq!(seal_in_namespace(program, script), "Overlay");
}

fn read_only_bind_of_overlay(program: &Path) {
    let script = r#"
        exec 9< "$1"; d=$(dirname "$1"); mount -t tmpfs none "$d"; cd "$d"; mkdir lower upper work all
        cp /proc/self/fd/9 lower/rtc; chmod 755 lower/rtc
        mount -t overlay -o lowerdir=lower,upperdir=upper,workdir=work none all; mount -o remount,bind,ro all
        exec all/rtc sealed"#;
    let seal = seal_in_namespace(program, script);
    assert!(["Overlay", "Memfd"].contains(&seal.as_str()), "{seal}");
}

fn read_only_superblock(program: &Path) {
    let script = r#"
        exec 9< "$1"; d=$(dirname "$1"); mount -t tmpfs none "$d"; cp /proc/self/fd/9 "$1"; chmod 755 "$1"
        mount -o remount,ro "$d"; exec "$1" sealed"#;
    assert_eq!(seal_in_namespace(program, script), "Installed");
}

fn deleted_program(program: &Path) {
    let script = r#"exec 3< "$1"; rm "$1"; exec /proc/self/fd/3 sealed"#;
    assert_eq!(
        seal_of(Command::new("sh").args(["-c", script, "sh"]).arg(program)),
        "Memfd"
    );
}

fn covered_program(program: &Path) {
    // The overlay shows what is under the bind mount: another file, which must not be the one to go on.
    let script = r#"cp "$1" "$1.other"; mount --bind "$1.other" "$1"; exec "$1" sealed"#;
    assert_eq!(seal_in_namespace(program, script), "Memfd");
}

fn without_privilege(program: &Path) {
    let mut command = Command::new("setpriv");
    command
        .args(["--reuid=65534", "--regid=65534", "--clear-groups"])
        .arg(program)
        .arg("sealed");
    let sealed = Sealed::start(&mut command);
    assert_eq!(sealed.seal(), "Memfd");
    assert_eq!(sealed.line("comm"), "rtc");
    sealed.end();
}

fn odd_directory(program: &Path) {
    let directory = program.with_file_name("a:b,c\\d=e f");
    fs::create_dir(&directory).expect("make a directory");
    let copy = directory.join("rtc:,\\");
    fs::copy(program, &copy).expect("copy the program");
    assert_eq!(seal_of(Command::new(copy).arg("sealed")), "Overlay");
}

fn no_descriptor_more(program: &Path) {
    // `ls` has what every child of ours has, and the directory it reads.
    let listing = Command::new("ls")
        .arg("/proc/self/fd")
        .stdin(Stdio::piped())
        .output()
        .expect("ls");
    let inherited = String::from_utf8_lossy(&listing.stdout).lines().count() - 1;
    let sealed = Sealed::start(Command::new(program).arg("sealed"));
    assert_eq!(sealed.seal(), "Overlay");
    assert_eq!(sealed.line("descriptors"), inherited.to_string());
    sealed.end();
}

/// Of `rtc` itself, which has an entry of its own before libc's.
fn rtc_itself(program: &Path) {
    fs::copy(env!("CARGO_BIN_EXE_rtc"), program).expect("copy rtc");
    let says = |command: &mut Command, seal: &str| {
        command.args(["--debug", "--root", "/nowhere", "exec", "none", "true"]);
        let output = command.stdin(Stdio::null()).output().expect("run rtc");
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(text.contains(seal) && text.contains("none"), "{text}");
        assert!(!text.contains("_RTC_SEALED"), "{text}");
    };
    says(&mut Command::new(program), "using overlayfs");
    says(Command::new(program).env_clear(), "using overlayfs");
    says(Command::new(program).env_clear().arg0(""), "using overlayfs");
    says(Command::new(program).env("_RTC_SEALED", "1"), "using overlayfs");
    let many = (0..3000).map(|i| (format!("V{i}"), "v"));
    says(Command::new(program).envs(many), "using overlayfs");
    let mut unprivileged = Command::new("setpriv");
    unprivileged
        .args(["--reuid=65534", "--regid=65534", "--clear-groups"])
        .arg(program);
    says(&mut unprivileged, "using a memfd");
}
