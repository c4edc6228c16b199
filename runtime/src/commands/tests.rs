//! The table of verbs as a whole.

use super::*;

#[test]
fn every_verb_has_help_that_begins_with_its_name() {
    for command in COMMANDS {
        let text = help::command("rtc", command);
        let mut lines = text.lines();
        assert_eq!(lines.next(), Some("NAME:"));
        assert!(
            lines
                .next()
                .unwrap()
                .starts_with(&format!("   rtc {} - ", command.name))
        );
        assert!(text.contains("\nUSAGE:\n") && text.contains("\nOPTIONS:\n"));
    }
    let text = help::program("rtc");
    assert_eq!(
        text.lines().nth(1),
        Some("   rtc - Open Container Initiative runtime")
    );
}

#[test]
fn no_flag_is_named_twice() {
    for flags in COMMANDS.iter().map(|c| c.flags).chain([GLOBAL_FLAGS]) {
        for (i, flag) in flags.iter().enumerate() {
            assert!(
                flags[..i].iter().all(|other| other.name != flag.name),
                "{}",
                flag.name
            );
            assert!(
                flag.short
                    .is_none_or(|s| flags[..i].iter().all(|other| other.short != Some(s))),
                "{}",
                flag.name
            );
        }
    }
}

fn fails(arguments: &[&str]) -> (String, u8) {
    let arguments: Vec<OsString> = std::iter::once(&"/usr/bin/rtc")
        .chain(arguments)
        .map(OsString::from)
        .collect();
    let failure = dispatch(&arguments).unwrap_err();
    (format!("{:#}", failure.error), failure.code)
}

#[test]
fn mistakes_on_the_command_line_say_where_help_is() {
    for (arguments, text) in [
        (&["foo"][..], "unknown command \"foo\"; see rtc --help"),
        (&["foo", "-h"], "No help topic for 'foo'"),
        (&["help", "foo"], "No help topic for 'foo'"),
        (
            &["--nope", "list"],
            "flag provided but not defined: --nope; see rtc --help",
        ),
        (
            &["state"],
            "state: requires exactly 1 argument(s), not 0; see rtc state --help",
        ),
        (
            &["kill", "a", "TERM", "b"],
            "kill: requires a maximum of 2 argument(s), not 3; see rtc kill --help",
        ),
        (
            &["exec"],
            "exec: requires a minimum of 1 argument(s), not 0; see rtc exec --help",
        ),
        (
            &["run", "--nope"],
            "run: flag provided but not defined: --nope; see rtc run --help",
        ),
        (
            &["--log-format", "xml", "list"],
            "--log-format: \"xml\": must be text or json",
        ),
        (
            &["--rootless", "maybe", "list"],
            "--rootless: \"maybe\": must be true, false or auto",
        ),
        (
            &["checkpoint", "--manage-cgroups-mode", "x", "id"],
            "checkpoint container \"id\": --manage-cgroups-mode: \"x\": must be soft, full, strict or ignore",
        ),
    ] {
        assert_eq!(fails(arguments), (text.to_string(), 1));
    }
}

#[test]
fn an_exec_that_fails_exits_with_255() {
    let root = std::env::temp_dir().join(format!("rtc-commands-{}", std::process::id()));
    let (error, code) = fails(&["--root", root.to_str().unwrap(), "exec", "nobody", "true"]);
    assert!(code == 255 && error.contains("does not exist"), "{error}");
    std::fs::remove_dir_all(root).ok();
}
