//! Who the process is: `run_as_*` of the request, else the image's USER, looked up in the image's own `/etc/passwd` and
//! `/etc/group`.
//!
//! What looks like a number is one, or is refused: never a name, and never wrapped into root's (CVE-2024-40635,
//! CVE-2026-46680). A line of those files that is not as it should be is not there.

use crate::error::{Error, Result};
use crate::proto::{
    ContainerUser, Int64Value, LinuxContainerSecurityContext, LinuxContainerUser, SupplementalGroupsPolicy,
};

use super::Files;

const FIELD: &str = "config.linux.security_context";

/// A process' identity.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct User {
    pub(super) uid: u32,
    pub(super) gid: u32,
    /// The group is among them (CVE-2022-36109: one that is left out is no longer denied by a file's mode). Sorted.
    pub(super) groups: Vec<u32>,
}

impl User {
    /// For ContainerStatus.
    pub(super) fn cri(&self) -> ContainerUser {
        ContainerUser {
            linux: Some(LinuxContainerUser {
                uid: self.uid.into(),
                gid: self.gid.into(),
                supplemental_groups: self.groups.iter().copied().map(i64::from).collect(),
            }),
        }
    }

    /// Finds out.
    ///
    /// # Errors
    ///
    /// `InvalidArgument`: an id that can't be, a group without a user, a name that the image does not know.
    pub(super) fn of(context: &LinuxContainerSecurityContext, image: &str, files: &Files) -> Result<Self> {
        let passwd = Lines(files.passwd.as_deref().unwrap_or_default());
        let group = Lines(files.group.as_deref().unwrap_or_default());
        let wanted = Wanted::of(context, image)?;
        let account = match &wanted.user {
            Id::Number(uid) => passwd.accounts().find(|account| account.uid == *uid),
            Id::Name(name) => Some(
                passwd
                    .accounts()
                    .find(|account| account.name == name.as_bytes())
                    .ok_or_else(|| unknown(&wanted.user_field, name, "passwd"))?,
            ),
        };
        let uid = match (&wanted.user, &account) {
            (Id::Number(uid), _) => *uid,
            (Id::Name(_), account) => account.as_ref().map_or(0, |account| account.uid),
        };
        let gid = match &wanted.group {
            Some(Id::Number(gid)) => *gid,
            Some(Id::Name(name)) => group
                .groups()
                .find(|group| group.name == name.as_bytes())
                .map(|group| group.gid)
                .ok_or_else(|| unknown(&wanted.user_field, name, "group"))?,
            None => account.as_ref().map_or(0, |account| account.gid),
        };
        let mut groups = vec![gid];
        for (i, asked) in context.supplemental_groups.iter().enumerate() {
            groups.push(id(&format!("{FIELD}.supplemental_groups[{i}]"), *asked)?);
        }
        if policy(context)? == SupplementalGroupsPolicy::Merge
            && let Some(account) = account
        {
            let member = |group: &Group<'_>| {
                group
                    .members
                    .split(|byte| *byte == b',')
                    .any(|m| m == account.name)
            };
            groups.extend(group.groups().filter(member).map(|group| group.gid));
        }
        groups.sort_unstable();
        groups.dedup();
        Ok(Self { uid, gid, groups })
    }
}

fn unknown(field: &str, name: &str, file: &str) -> Error {
    Error::invalid(format_args!(
        "{field}: {name:?}: is not in /etc/{file} of the image: name one that is there, or a number"
    ))
}

fn policy(context: &LinuxContainerSecurityContext) -> Result<SupplementalGroupsPolicy> {
    SupplementalGroupsPolicy::try_from(context.supplemental_groups_policy).map_err(|_| {
        Error::invalid(format_args!(
            "{FIELD}.supplemental_groups_policy: {}: must be Merge or Strict",
            context.supplemental_groups_policy
        ))
    })
}

/// A user or group as it is named.
#[derive(Debug, PartialEq, Eq)]
enum Id {
    Number(u32),
    Name(String),
}

/// What is asked for.
struct Wanted {
    /// Who asked.
    user_field: String,
    user: Id,
    group: Option<Id>,
}

impl Wanted {
    fn of(context: &LinuxContainerSecurityContext, image: &str) -> Result<Self> {
        let number = |field: &str, value: &Option<Int64Value>| {
            value
                .as_ref()
                .map(|value| id(&format!("{FIELD}.{field}"), value.value).map(Id::Number))
                .transpose()
        };
        let uid = number("run_as_user", &context.run_as_user)?;
        let gid = number("run_as_group", &context.run_as_group)?;
        let name = &context.run_as_username;
        let field = format!("{FIELD}.run_as_username");
        let user = if name.is_empty() {
            uid
        } else {
            Some(parse(&field, name)?)
        };
        match (user, gid) {
            (Some(user), group) => Ok(Self {
                user_field: field,
                user,
                group,
            }),
            (None, Some(_)) => Err(Error::invalid(format_args!(
                "{FIELD}.run_as_group: needs run_as_user or run_as_username"
            ))),
            (None, None) => Self::of_image(image),
        }
    }

    /// `user`, `user:group`, each a name or a number (image-spec, `config.md`, User).
    fn of_image(image: &str) -> Result<Self> {
        let user_field = "the image's USER".to_owned();
        let (user, group) = match image.split_once(':') {
            Some((user, group)) => (user, Some(group)),
            None => (image, None),
        };
        if group.is_some_and(|group| group.contains(':')) {
            return Err(Error::invalid(format_args!(
                "{user_field}: {image:?}: must be USER or USER:GROUP"
            )));
        }
        let user = match user {
            "" => Id::Number(0),
            user => parse(&user_field, user)?,
        };
        let group = group
            .filter(|group| !group.is_empty())
            .map(|group| parse(&user_field, group))
            .transpose()?;
        Ok(Self {
            user_field,
            user,
            group,
        })
    }
}

/// The greatest id means "unchanged" to the kernel.
fn id(field: &str, value: i64) -> Result<u32> {
    u32::try_from(value)
        .ok()
        .filter(|id| *id != u32::MAX)
        .ok_or_else(|| Error::invalid(format_args!("{field}: {value}: must be 0 to 4294967294")))
}

fn parse(field: &str, text: &str) -> Result<Id> {
    let digits = text.strip_prefix(['+', '-']).unwrap_or(text);
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return Ok(Id::Name(text.to_owned()));
    }
    match text.parse().ok().filter(|id| *id != u32::MAX) {
        Some(id) => Ok(Id::Number(id)),
        None => Err(Error::invalid(format_args!(
            "{field}: {text:?}: must be 0 to 4294967294"
        ))),
    }
}

/// The lines of passwd(5) or group(5).
struct Lines<'a>(&'a [u8]);

struct Account<'a> {
    name: &'a [u8],
    uid: u32,
    gid: u32,
}

struct Group<'a> {
    name: &'a [u8],
    gid: u32,
    members: &'a [u8],
}

impl<'a> Lines<'a> {
    fn fields(&self) -> impl Iterator<Item = impl Iterator<Item = &'a [u8]>> {
        self.0
            .split(|byte| *byte == b'\n')
            .map(|line| line.trim_ascii().split(|byte| *byte == b':'))
    }

    fn accounts(&self) -> impl Iterator<Item = Account<'a>> {
        self.fields().filter_map(|mut fields| {
            let name = fields.next().filter(|name| !name.is_empty())?;
            let (uid, gid) = (fields.nth(1)?, fields.next()?);
            Some(Account {
                name,
                uid: number(uid)?,
                gid: number(gid)?,
            })
        })
    }

    fn groups(&self) -> impl Iterator<Item = Group<'a>> {
        self.fields().filter_map(|mut fields| {
            let name = fields.next().filter(|name| !name.is_empty())?;
            let gid = number(fields.nth(1)?)?;
            Some(Group {
                name,
                gid,
                members: fields.next().unwrap_or_default(),
            })
        })
    }
}

fn number(text: &[u8]) -> Option<u32> {
    if !text.first()?.is_ascii_digit() {
        return None;
    }
    let id = std::str::from_utf8(text).ok()?.parse().ok()?;
    (id != u32::MAX).then_some(id)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\n\nbroken\nhuge:x:4294967296:0::/:\nminus:x:-1:0::/:\n\
                          ann:x:1000:1001:Ann:/home/ann:/bin/sh\nbob:x:1002:1003::/:";
    const GROUP: &str =
        "root:x:0:\nwheel:x:10:ann,bob\nstaff:x:50:bob\nann:x:1001:ann\nbad:x:x:ann\nmore:x:2000:x,ann\n";

    fn files() -> Files {
        Files {
            passwd: Some(PASSWD.into()),
            group: Some(GROUP.into()),
            seccomp: None,
        }
    }

    fn image(user: &str) -> Result<User> {
        User::of(&LinuxContainerSecurityContext::default(), user, &files())
    }

    fn user(uid: u32, gid: u32, groups: &[u32]) -> User {
        User {
            uid,
            gid,
            groups: groups.into(),
        }
    }

    fn int(value: i64) -> Option<Int64Value> {
        Some(Int64Value { value })
    }

    #[test]
    fn every_form_of_an_images_user_is_understood() {
        assert_eq!(image("").unwrap(), user(0, 0, &[0]));
        assert_eq!(image("1000").unwrap(), user(1000, 1001, &[10, 1001, 2000]));
        assert_eq!(image("ann").unwrap(), user(1000, 1001, &[10, 1001, 2000]));
        assert_eq!(image("ann:staff").unwrap(), user(1000, 50, &[10, 50, 1001, 2000]));
        assert_eq!(image("ann:7").unwrap(), user(1000, 7, &[7, 10, 1001, 2000]));
        assert_eq!(image("77:8").unwrap(), user(77, 8, &[8]));
        assert_eq!(image("77:staff").unwrap(), user(77, 50, &[50]));
        assert_eq!(image("77").unwrap(), user(77, 0, &[0]));
        assert_eq!(image(":staff").unwrap(), user(0, 50, &[50]));
        assert!(image("a:b:c").is_err());
    }

    #[test]
    fn a_name_that_the_image_does_not_know_is_refused() {
        for name in ["eve", "ann:eve", "broken", "huge", "minus", " root"] {
            let error = image(name).unwrap_err().to_string();
            assert!(error.contains("of the image"), "{name}: {error}");
        }
        let none = User::of(
            &LinuxContainerSecurityContext::default(),
            "ann",
            &Files::default(),
        );
        assert!(none.is_err());
    }

    #[test]
    fn cve_2024_40635_an_id_out_of_range_is_refused_and_never_root() {
        for value in [-1, 1 << 32, (1 << 32) - 1, i64::MAX, i64::MIN] {
            let context = LinuxContainerSecurityContext {
                run_as_user: int(value),
                ..Default::default()
            };
            let error = User::of(&context, "", &files()).unwrap_err().to_string();
            assert!(
                error.contains("run_as_user") && error.contains(&value.to_string()),
                "{error}"
            );
            let context = LinuxContainerSecurityContext {
                run_as_user: int(1),
                run_as_group: int(value),
                ..Default::default()
            };
            assert!(User::of(&context, "", &files()).is_err());
            let context = LinuxContainerSecurityContext {
                supplemental_groups: vec![value],
                ..Default::default()
            };
            assert!(User::of(&context, "", &files()).is_err());
        }
    }

    #[test]
    fn cve_2026_46680_what_looks_like_a_number_is_never_taken_for_a_name() {
        let number = "99999999999999999999";
        let files = Files {
            passwd: Some(format!("{number}:x:0:0::/:\n-1:x:0:0::/:\n").into()),
            group: Some(format!("{number}:x:0:\n").into()),
            seccomp: None,
        };
        for text in [
            number,
            "-1",
            "4294967295",
            "4294967296",
            "1:99999999999999999999",
            "1:-5",
        ] {
            let error = User::of(&LinuxContainerSecurityContext::default(), text, &files).unwrap_err();
            assert!(error.to_string().contains("must be 0 to"), "{error}");
            let context = LinuxContainerSecurityContext {
                run_as_username: text.split(':').next_back().unwrap().into(),
                ..Default::default()
            };
            assert!(User::of(&context, "", &files).is_err());
        }
    }

    #[test]
    fn what_is_asked_for_is_over_what_the_image_says() {
        let context = LinuxContainerSecurityContext {
            run_as_user: int(1002),
            ..Default::default()
        };
        assert_eq!(
            User::of(&context, "ann", &files()).unwrap(),
            user(1002, 1003, &[10, 50, 1003])
        );
        let context = LinuxContainerSecurityContext {
            run_as_username: "ann".into(),
            run_as_group: int(5),
            ..Default::default()
        };
        assert_eq!(
            User::of(&context, "bob:wheel", &files()).unwrap(),
            user(1000, 5, &[5, 10, 1001, 2000])
        );
        let context = LinuxContainerSecurityContext {
            run_as_group: int(5),
            ..Default::default()
        };
        assert!(
            User::of(&context, "ann", &files())
                .unwrap_err()
                .to_string()
                .contains("run_as_group")
        );
    }

    #[test]
    fn the_images_groups_are_merged_unless_the_policy_is_strict() {
        let mut context = LinuxContainerSecurityContext {
            run_as_user: int(1000),
            supplemental_groups: vec![77, 10],
            ..Default::default()
        };
        assert_eq!(
            User::of(&context, "", &files()).unwrap().groups,
            [10, 77, 1001, 2000]
        );
        context.supplemental_groups_policy = SupplementalGroupsPolicy::Strict.into();
        assert_eq!(User::of(&context, "", &files()).unwrap().groups, [10, 77, 1001]);
        context.supplemental_groups_policy = 9;
        assert!(User::of(&context, "", &files()).is_err());
    }

    #[test]
    fn any_bytes_are_read_as_lines() {
        let files = Files {
            passwd: Some(b"\xff\xfe:x:1:2\n:::\n\0\nann:x:5:6".to_vec()),
            group: Some(b"\xff:\xff:9:ann,\xff\n::::".to_vec()),
            seccomp: None,
        };
        let context = LinuxContainerSecurityContext::default();
        assert_eq!(User::of(&context, "ann", &files).unwrap(), user(5, 6, &[6, 9]));
    }
}
