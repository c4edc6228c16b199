//! The process: what runs, where, and with which environment.

use std::collections::HashMap;
use std::path::PathBuf;

use oci_spec::runtime::Process;

use crate::error::{Error, Result};
use crate::image::Untrusted;
use crate::proto::ContainerConfig;

/// Where programs are looked for, if nobody says otherwise.
const DEFAULT_PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The most bytes of an image's environment: half of what execve(2) takes with the usual limit of the stack.
const IMAGE_ENV_MOST: usize = 1 << 20;

/// The process of an exec in a container: the container's own user, environment, directory and confinement, with another
/// command. Never more than the container's first process has.
pub(crate) fn for_exec(init: &Process, command: &[String], tty: bool) -> Process {
    let mut process = init.clone();
    let mut env = process.env().clone().unwrap_or_default();
    if tty && !env.iter().any(|variable| variable.starts_with("TERM=")) {
        env.push("TERM=xterm".into());
    }
    process
        .set_args(Some(command.to_vec()))
        .set_terminal(Some(tty))
        .set_env(Some(env))
        .set_console_size(None);
    process
}

/// The command: what is asked for, and what the image has for the rest (a command of the request puts the image's arguments
/// out of force, as in Dockerfiles).
///
/// # Errors
///
/// `InvalidArgument`: there is none.
pub(super) fn args(config: &ContainerConfig, image: &Untrusted) -> Result<Vec<String>> {
    let mut command = config.command.clone();
    let mut args = config.args.as_slice();
    if command.is_empty() {
        if args.is_empty() {
            args = &image.cmd;
        }
        // As Docker takes it: an entry point of one empty word is none.
        if image.entrypoint != [""] {
            command.clone_from(&image.entrypoint);
        }
    }
    command.extend_from_slice(args);
    if command.is_empty() {
        return Err(Error::invalid(
            "config.command: is empty, and so are config.args and the image's entry point and command: say what to run",
        ));
    }
    without_nul("config.command", &command)?;
    Ok(command)
}

/// The environment: defaults, over them the image's, over them the request's. The last of a name holds, at the place of the
/// first.
///
/// # Errors
///
/// `InvalidArgument`: a name that can't be, a value that is no text, or more than 1 MiB of the image.
pub(super) fn env(config: &ContainerConfig, image: &Untrusted, hostname: &str) -> Result<Vec<String>> {
    let size: usize = image.env.iter().map(|variable| variable.len() + 1).sum();
    if size > IMAGE_ENV_MOST {
        return Err(Error::invalid(format_args!(
            "the image's Env: {size} bytes: more than {IMAGE_ENV_MOST} are no environment of a process: build the image with less"
        )));
    }
    let mut env = Environment::of(vec![DEFAULT_PATH.into()]);
    if config.tty {
        env.set("TERM=xterm".into());
    }
    env.set(format!("HOSTNAME={hostname}"));
    for variable in &image.env {
        env.set(variable.clone());
    }
    for (i, variable) in config.envs.iter().enumerate() {
        let refuse = |what: &str| {
            Err(Error::invalid(format_args!(
                "config.envs[{i}]: {:?}: {what}",
                variable.key
            )))
        };
        if variable.key.is_empty() || variable.key.contains('=') {
            return refuse("is no name of a variable");
        }
        let Ok(value) = std::str::from_utf8(&variable.value) else {
            return refuse("the value must be UTF-8: an OCI configuration has no other");
        };
        env.set(format!("{}={value}", variable.key));
    }
    let env = env.list();
    without_nul("config.envs", &env)?;
    Ok(env)
}

/// Variables, each name once, found by it: an image can have a hundred thousand.
#[derive(Debug, Default)]
pub(super) struct Environment {
    /// `name=value`; `None`: taken out.
    list: Vec<Option<String>>,
    /// Where in `list` a name is.
    places: HashMap<String, usize>,
}

impl Environment {
    pub(super) fn of(list: Vec<String>) -> Self {
        let mut own = Self::default();
        for variable in list {
            own.set(variable);
        }
        own
    }

    /// The last of a name holds, at the place of the first. One without `=` takes the variable out.
    pub(super) fn set(&mut self, variable: String) {
        match variable.split_once('=') {
            // `=x` is no variable.
            Some(("", _)) => {}
            Some((name, _)) => match self.places.get(name) {
                Some(at) => self.list[*at] = Some(variable),
                None => {
                    self.places.insert(name.to_owned(), self.list.len());
                    self.list.push(Some(variable));
                }
            },
            None => {
                if let Some(at) = self.places.remove(&variable) {
                    self.list[at] = None;
                }
            }
        }
    }

    pub(super) fn list(self) -> Vec<String> {
        self.list.into_iter().flatten().collect()
    }
}

/// The working directory; the runtime makes one that is not there.
///
/// # Errors
///
/// `InvalidArgument`: not absolute.
pub(super) fn cwd(config: &ContainerConfig, image: &Untrusted) -> Result<PathBuf> {
    let asked = &config.working_dir;
    if !asked.is_empty() {
        if !asked.starts_with('/') {
            return Err(Error::invalid(format_args!(
                "config.working_dir: {asked:?}: must be absolute"
            )));
        }
        without_nul("config.working_dir", std::slice::from_ref(asked))?;
        return Ok(asked.into());
    }
    without_nul("the image's WorkingDir", std::slice::from_ref(&image.working_dir))?;
    // Some builders leave out the first slash.
    Ok(PathBuf::from("/").join(&image.working_dir))
}

fn without_nul(field: &str, words: &[String]) -> Result<()> {
    match words.iter().position(|word| word.contains('\0')) {
        Some(at) => Err(Error::invalid(format_args!(
            "{field}[{at}]: {:?}: must not have a NUL byte",
            words[at]
        ))),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::KeyValue;
    use oci_spec::runtime::{Capability, LinuxCapabilities};

    fn words(words: &[&str]) -> Vec<String> {
        words.iter().map(|word| (*word).to_owned()).collect()
    }

    fn run(command: &[&str], args: &[&str], entrypoint: &[&str], cmd: &[&str]) -> Result<Vec<String>> {
        let config = ContainerConfig {
            command: words(command),
            args: words(args),
            ..Default::default()
        };
        let image = Untrusted {
            entrypoint: words(entrypoint),
            cmd: words(cmd),
            ..Default::default()
        };
        super::args(&config, &image)
    }

    #[test]
    fn a_command_puts_all_of_the_images_out_of_force_and_args_only_its_cmd() {
        assert_eq!(run(&[], &[], &["e"], &["c"]).unwrap(), ["e", "c"]);
        assert_eq!(run(&[], &["a"], &["e"], &["c"]).unwrap(), ["e", "a"]);
        assert_eq!(run(&["x"], &[], &["e"], &["c"]).unwrap(), ["x"]);
        assert_eq!(run(&["x"], &["a"], &["e"], &["c"]).unwrap(), ["x", "a"]);
        assert_eq!(run(&[], &[], &[""], &["c"]).unwrap(), ["c"]);
        assert!(
            run(&[], &[], &[], &[])
                .unwrap_err()
                .to_string()
                .contains("config.command")
        );
        assert!(run(&["x\0"], &[], &[], &[]).is_err());
    }

    fn env_of(tty: bool, image: &[&str], envs: &[(&str, &[u8])]) -> Result<Vec<String>> {
        let envs = envs
            .iter()
            .map(|(key, value)| KeyValue {
                key: (*key).into(),
                value: (*value).into(),
            })
            .collect();
        let config = ContainerConfig {
            envs,
            tty,
            ..Default::default()
        };
        let image = Untrusted {
            env: words(image),
            ..Default::default()
        };
        env(&config, &image, "pod-1")
    }

    #[test]
    fn the_requests_environment_is_over_the_images_and_that_over_the_defaults() {
        let env = env_of(
            true,
            &["PATH=/bin", "A=1", "B=2", "junk", "=x"],
            &[("A", b"3"), ("HOSTNAME", b"h")],
        );
        assert_eq!(
            env.unwrap(),
            ["PATH=/bin", "TERM=xterm", "HOSTNAME=h", "A=3", "B=2"]
        );
        assert_eq!(env_of(false, &[], &[]).unwrap(), [DEFAULT_PATH, "HOSTNAME=pod-1"]);
        assert_eq!(
            env_of(false, &["A=1", "A"], &[]).unwrap(),
            [DEFAULT_PATH, "HOSTNAME=pod-1"]
        );
    }

    #[test]
    fn a_hundred_thousand_variables_take_no_time_and_an_images_megabytes_are_refused() {
        let begun = std::time::Instant::now();
        let many: Vec<String> = (0..100_000).map(|at| format!("V{at}=")).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        let request: Vec<(&str, &[u8])> = many
            .iter()
            .map(|name| (&name[..name.len() - 1], &b"1"[..]))
            .collect();
        assert_eq!(env_of(false, &many, &request).unwrap().len(), 100_002);
        assert!(
            begun.elapsed() < std::time::Duration::from_secs(5),
            "{:?}",
            begun.elapsed()
        );
        let much = format!("A={}", "x".repeat(IMAGE_ENV_MOST));
        let error = env_of(false, &[&much], &[]).unwrap_err().to_string();
        assert!(error.contains("the image's Env"), "{error}");
    }

    #[test]
    fn variables_that_can_not_be_are_refused_by_name() {
        for (key, value) in [("", &b"x"[..]), ("a=b", b"x"), ("A", b"\xff"), ("A", b"\0")] {
            let error = env_of(false, &[], &[(key, value)]).unwrap_err();
            assert!(error.to_string().contains("config.envs["), "{error}");
        }
    }

    #[test]
    fn the_working_directory_is_the_requests_or_the_images_or_the_root() {
        let of = |asked: &str, image: &str| {
            let config = ContainerConfig {
                working_dir: asked.into(),
                ..Default::default()
            };
            cwd(
                &config,
                &Untrusted {
                    working_dir: image.into(),
                    ..Default::default()
                },
            )
        };
        assert_eq!(of("/a", "/b").unwrap().to_str(), Some("/a"));
        assert_eq!(of("", "/b").unwrap().to_str(), Some("/b"));
        assert_eq!(of("", "app").unwrap().to_str(), Some("/app"));
        assert_eq!(of("", "").unwrap().to_str(), Some("/"));
        assert!(of("a", "").is_err());
    }

    /// CVE-2025-27612: another runtime's exec had inheritable and ambient capabilities that its container had not.
    #[test]
    fn cve_2025_27612_an_exec_has_no_capability_that_the_container_has_not() {
        let all = [
            Capability::Chown,
            Capability::Kill,
            Capability::SysAdmin,
            Capability::NetRaw,
        ];
        let subset = |bits: usize| {
            all.into_iter()
                .enumerate()
                .filter(|(at, _)| bits & 1 << at != 0)
                .map(|(_, one)| one)
                .collect()
        };
        // Every combination of sets, small as they are.
        for bits in 0..1 << 12 {
            let mut sets = LinuxCapabilities::default();
            sets.set_bounding(Some(subset(bits & 15)))
                .set_inheritable(Some(subset(bits >> 4 & 15)))
                .set_ambient(Some(subset(bits >> 8)));
            let mut init = Process::default();
            init.set_capabilities(Some(sets.clone()))
                .set_no_new_privileges(Some(true));
            let exec = for_exec(&init, &words(&["sh"]), true);
            assert_eq!(exec.capabilities().as_ref(), Some(&sets));
            assert_eq!(exec.no_new_privileges(), Some(true));
        }
    }
}
