//! `rtc-cri image pull|ls|rm`.

use std::collections::BTreeSet;
use std::process::ExitCode;

use anyhow::{Context as _, Result};
use rtc_cri::proto::extension::ProgressRequest;
use rtc_cri::proto::{
    AuthConfig, ImageSpec, ImageStatusRequest, ListImagesRequest, PodSandboxConfig, PullImageRequest,
    RemoveImageRequest,
};

use super::arguments::{Arguments, Flag, Usage};
use super::connection::{Server, answer};
use super::terminal::{Bar, Step, say, size, table};
use super::{Verb, terminal};

pub(super) const PULL: Verb = Verb {
    object: "image",
    name: "pull",
    operands: "IMAGE",
    about: "Pulls an image, as docker.io/library/busybox:latest; prints its id.",
    flags: &[
        Flag::value(
            "user",
            Some('u'),
            "NAME",
            "log in as NAME; the password is a line of standard input",
        ),
        Flag::switch("quiet", Some('q'), "no progress"),
    ],
};

pub(super) const LS: Verb = Verb {
    object: "image",
    name: "ls",
    operands: "",
    about: "Lists images.",
    flags: &[Flag::switch("quiet", Some('q'), "ids only")],
};

pub(super) const RM: Verb = Verb {
    object: "image",
    name: "rm",
    operands: "IMAGE...",
    about: "Removes images by name or id.",
    flags: &[],
};

/// Digits of an id that a person is shown.
pub(super) const SHORT: usize = 12;

/// An image by its name.
pub(super) fn spec(name: &str) -> ImageSpec {
    ImageSpec {
        image: name.to_owned(),
        user_specified_image: name.to_owned(),
        ..ImageSpec::default()
    }
}

/// `image pull`.
pub(super) async fn pull(server: Server, arguments: &Arguments) -> Result<ExitCode> {
    let name = arguments.one("IMAGE")?;
    let auth = arguments.value("user").map(login).transpose()?;
    let id = fetch(&server, name, auth, None, arguments.has("quiet")).await?;
    say(&format!("{id}\n"));
    Ok(ExitCode::SUCCESS)
}

fn login(user: &str) -> Result<AuthConfig> {
    if user.is_empty() {
        return Err(Usage("--user: \"\": must be a name".into()).into());
    }
    let mut password = String::new();
    {
        let _quiet = terminal::NoEcho::on_stdin("password: ")?;
        std::io::stdin()
            .read_line(&mut password)
            .context("read the password")?;
    }
    Ok(AuthConfig {
        username: user.to_owned(),
        password: password.trim_end_matches(['\n', '\r']).to_owned(),
        ..AuthConfig::default()
    })
}

/// Pulls an image and shows how far it is; answers its id.
///
/// # Errors
///
/// The server's.
pub(super) async fn fetch(
    server: &Server,
    name: &str,
    auth: Option<AuthConfig>,
    sandbox_config: Option<PodSandboxConfig>,
    quiet: bool,
) -> Result<String> {
    let request = PullImageRequest {
        image: Some(spec(name)),
        auth,
        sandbox_config,
    };
    let mut images = server.images();
    let pulling = images.pull_image(request);
    if quiet {
        return Ok(answer("PullImage", pulling.await)?.image_ref);
    }
    let mut bar = Bar::new(name);
    let (result, last) = {
        tokio::pin!(pulling);
        let mut last = None;
        let mut ticks = tokio::time::interval(bar.interval());
        let result = loop {
            tokio::select! {
                result = &mut pulling => break result,
                _ = ticks.tick() => {
                    let step = progress(server, name).await;
                    last = step.or(last);
                    bar.show(last);
                }
            }
        };
        (result, last)
    };
    bar.end();
    let id = answer("PullImage", result)?.image_ref;
    // A quick pull may have ended before its manifest was seen: its size is not known.
    let known = last.filter(|step| step.layers > 0);
    let came = known.map_or(String::new(), |step| format!("{}, ", size(step.size)));
    eprintln!(
        "pulled {}: {came}{:.1} s",
        terminal::harmless(name),
        bar.seconds()
    );
    Ok(id)
}

/// How far a pull is; `None`: there is none, or the server does not tell.
async fn progress(server: &Server, name: &str) -> Option<Step> {
    let request = ProgressRequest {
        image: name.to_owned(),
    };
    let now = server.pulls().progress(request).await.ok()?.into_inner();
    now.running.then_some(Step {
        layers: now.layers,
        done: now.layers_done,
        size: now.size,
        taken: now.taken,
    })
}

/// Whether an image is there.
///
/// # Errors
///
/// The server's.
pub(super) async fn find(server: &Server, name: &str) -> Result<Option<rtc_cri::proto::Image>> {
    let request = ImageStatusRequest {
        image: Some(spec(name)),
        verbose: false,
    };
    Ok(answer("ImageStatus", server.images().image_status(request).await)?.image)
}

/// `image ls`.
pub(super) async fn ls(server: Server, arguments: &Arguments) -> Result<ExitCode> {
    if let [name, ..] = &arguments.names[..] {
        return Err(Usage(format!("{name:?}: takes no names")).into());
    }
    let request = ListImagesRequest::default();
    let mut images = answer("ListImages", server.images().list_images(request).await)?.images;
    images.sort_by(|a, b| a.repo_tags.cmp(&b.repo_tags).then_with(|| a.id.cmp(&b.id)));
    if arguments.has("quiet") {
        say(&images
            .iter()
            .map(|image| format!("{}\n", image.id))
            .collect::<String>());
        return Ok(ExitCode::SUCCESS);
    }
    let mut rows = Vec::new();
    for image in images {
        // One without a tag has the name that it was pulled by.
        let names: BTreeSet<String> = match &image.repo_tags[..] {
            [] => image.repo_digests.iter().map(|digest| shorten(digest)).collect(),
            tags => tags.iter().cloned().collect(),
        };
        let id = image.id.trim_start_matches("sha256:");
        let id: String = id.chars().take(SHORT).collect();
        let names = if names.is_empty() {
            BTreeSet::from(["-".to_owned()])
        } else {
            names
        };
        rows.extend(
            names
                .into_iter()
                .map(|name| vec![name, id.clone(), size(image.size)]),
        );
    }
    say(&table(&["IMAGE", "ID", "SIZE"], &rows));
    Ok(ExitCode::SUCCESS)
}

/// `name@sha256:0123...` with as many digits as a person reads.
fn shorten(digest: &str) -> String {
    match digest.split_once("@sha256:") {
        Some((name, digits)) => {
            let digits: String = digits.chars().take(SHORT).collect();
            format!("{name}@sha256:{digits}")
        }
        None => digest.to_owned(),
    }
}

/// `image rm`.
pub(super) async fn rm(server: Server, arguments: &Arguments) -> Result<ExitCode> {
    let mut failed = false;
    for name in arguments.some("IMAGE")? {
        match remove(&server, name).await {
            Ok(()) => say(&format!("{name}\n")),
            Err(error) => {
                failed = true;
                eprintln!("rtc-cri: {}", terminal::harmless(&format!("{name}: {error:#}")));
            }
        }
    }
    Ok(if failed {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    })
}

async fn remove(server: &Server, name: &str) -> Result<()> {
    // CRI removes what is not there without a word; a person who misspelled it wants to know.
    find(server, name)
        .await?
        .with_context(|| "there is no such image: rtc-cri image ls shows those that there are")?;
    let request = RemoveImageRequest {
        image: Some(spec(name)),
    };
    answer("RemoveImage", server.images().remove_image(request).await).map(drop)
}
