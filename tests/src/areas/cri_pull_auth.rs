//! PullImage: who gets which credentials, and that nobody else ever does.

use std::fs;
use std::sync::Arc;

use anyhow::ensure;
use serde_json::json;

use super::cri_pull::{pull, puller, request};
use crate::cri::proto::*;
use crate::cri::{Code, Cri, check, only_ours, refused};
use crate::image_registry::{ImageRegistry, Pushed, Reply, Request};
use crate::registry::Result;
use crate::test;

const LAYERS: &[&[(&str, &[u8])]] = &[&[("one", b"1")], &[("two", b"2")]];

/// `ann:s3cret-password`
const BASIC: &str = "Basic YW5uOnMzY3JldC1wYXNzd29yZA==";

fn ann() -> AuthConfig {
    AuthConfig {
        username: "ann".into(),
        password: "s3cret-password".into(),
        ..AuthConfig::default()
    }
}

fn with_auth(image: &str, auth: AuthConfig) -> PullImageRequest {
    PullImageRequest {
        auth: Some(auth),
        ..request(image)
    }
}

fn deny(reply: &mut Reply, challenge: &str) {
    reply.become_status(401);
    reply.header("www-authenticate", challenge);
}

/// Asks everyone for ann's name and password.
fn ask_for_basic(registry: &ImageRegistry) {
    registry.misbehave(|request, reply| {
        if request.header("authorization") != BASIC {
            deny(reply, "Basic realm=\"test\"");
        }
    });
}

/// Asks everyone for a token, which the service on the same address gives to whom it likes.
fn ask_for_token(
    registry: &ImageRegistry,
    gives: impl Fn(&Request) -> Option<&'static str> + Send + 'static,
) {
    let realm = format!("http://{}/token", registry.address());
    registry.misbehave(move |request, reply| {
        if request.path.starts_with("/token") {
            match gives(request) {
                Some(answer) => {
                    reply.become_status(200);
                    reply.body = answer.as_bytes().to_vec();
                }
                None => reply.become_status(401),
            }
        } else if request.header("authorization") != "Bearer s3cret-token" {
            deny(
                reply,
                &format!("Bearer realm=\"{realm}\",service=\"test\",scope=\"repository:app:pull\""),
            );
        }
    });
}

/// Nothing secret is in what the server wrote, with all its messages on.
fn nothing_is_told(cri: &Cri<'_>) -> Result {
    let log = fs::read_to_string(cri.log())?;
    for secret in ["s3cret", BASIC, "YW5uOnMzY3JldC1wYXNzd29yZA"] {
        ensure!(!log.contains(secret), "{secret} is in the log:\n{log}");
    }
    Ok(())
}

test!(
    fn user_name_and_password_are_given_to_who_asks(t: &Test) -> Result {
        puller().with(t, |cri| {
            let registry = ImageRegistry::start()?;
            let pushed = registry.push("app", "1", LAYERS);
            ask_for_basic(&registry);
            let name = registry.name("app:1");
            let encoded = AuthConfig {
                auth: BASIC["Basic ".len()..].into(),
                server_address: format!("http://{}", registry.address()),
                ..AuthConfig::default()
            };
            for auth in [ann(), encoded] {
                let answer = check("PullImage", cri.pull_image(with_auth(&name, auth)))?;
                ensure!(answer.image_ref == pushed.config, "the id");
            }
            nothing_is_told(cri)
        })
    }
);

test!(
    fn wrong_or_missing_credentials_are_denied_and_not_told(t: &Test) -> Result {
        puller().with(t, |cri| {
            only_ours(t)?;
            let registry = ImageRegistry::start()?;
            registry.push("app", "1", LAYERS);
            let name = registry.name("app:1");
            let bob = AuthConfig {
                username: "bob".into(),
                password: "s3cret-of-bob".into(),
                ..AuthConfig::default()
            };
            let denied = |auth: Option<AuthConfig>, text: &str| {
                let request = PullImageRequest {
                    auth,
                    ..request(&name)
                };
                let result = cri.pull_image(request);
                if let Err(status) = &result {
                    ensure!(!status.message().contains("s3cret"), "{status:?}");
                }
                refused(result, Code::PermissionDenied, &[&registry.address(), text])
            };
            ask_for_basic(&registry);
            denied(None, "no credentials were given")?;
            denied(Some(bob.clone()), "not accepted")?;
            ask_for_token(&registry, |request| {
                (request.header("authorization") == BASIC).then_some("")
            });
            denied(None, "no credentials were given")?;
            denied(Some(bob.clone()), "not accepted")?;
            registry.misbehave(|_, reply| reply.become_status(403));
            denied(Some(bob), "403")?;
            let bad = AuthConfig {
                auth: "s3cret%".into(),
                ..AuthConfig::default()
            };
            refused(
                cri.pull_image(with_auth(&name, bad)),
                Code::InvalidArgument,
                &["auth.auth"],
            )?;
            nothing_is_told(cri)
        })
    }
);

test!(
    fn a_token_is_fetched_once_for_a_pull(t: &Test) -> Result {
        puller().with(t, |cri| {
            let registry = ImageRegistry::start()?;
            let pushed = registry.push("app", "1", LAYERS);
            ask_for_token(&registry, |request| {
                (request.method == "GET" && request.header("authorization") == BASIC)
                    .then_some(r#"{"token": "s3cret-token", "expires_in": 60}"#)
                    .or_else(|| {
                        let grant = request.method == "POST" && request.body.contains("grant_type=password");
                        grant.then_some(r#"{"access_token": "s3cret-token"}"#)
                    })
            });
            let answer = check(
                "PullImage",
                cri.pull_image(with_auth(&registry.name("app:1"), ann())),
            )?;
            ensure!(answer.image_ref == pushed.config, "the id");
            let requests = registry.requests();
            let asked: Vec<_> = requests
                .iter()
                .filter(|request| request.path.starts_with("/token"))
                .collect();
            if cri.is_ours() {
                ensure!(asked.len() == 1, "{asked:?}");
                ensure!(
                    asked[0]
                        .path
                        .contains("service=test&scope=repository%3Aapp%3Apull"),
                    "{asked:?}"
                );
            }
            nothing_is_told(cri)
        })
    }
);

test!(
    fn a_token_that_ran_out_is_fetched_again(t: &Test) -> Result {
        puller().with(t, |cri| {
            only_ours(t)?;
            let registry = ImageRegistry::start()?;
            let pushed = registry.push("app", "1", LAYERS);
            let realm = format!("http://{}/token", registry.address());
            // A token is good for two requests.
            let (mut number, mut left) = (0, 0);
            registry.misbehave(move |request, reply| {
                if request.path.starts_with("/token") {
                    (number, left) = (number + 1, 2);
                    reply.become_status(200);
                    reply.body = json!({"token": format!("s3cret-{number}")})
                        .to_string()
                        .into_bytes();
                } else if left == 0 || request.header("authorization") != format!("Bearer s3cret-{number}") {
                    deny(reply, &format!("Bearer realm=\"{realm}\""));
                } else {
                    left -= 1;
                }
            });
            ensure!(pull(cri, &registry.name("app:1"))? == pushed.config, "the id");
            nothing_is_told(cri)
        })
    }
);

test!(
    fn identity_and_registry_tokens_are_taken(t: &Test) -> Result {
        puller().with(t, |cri| {
            only_ours(t)?;
            let registry = ImageRegistry::start()?;
            let pushed = registry.push("app", "1", LAYERS);
            ask_for_token(&registry, |request| {
                let right = request.method == "POST"
                    && request.body.contains("grant_type=refresh_token")
                    && request.body.contains("refresh_token=s3cret-identity");
                right.then_some(r#"{"access_token": "s3cret-token"}"#)
            });
            let identity = AuthConfig {
                identity_token: "s3cret-identity".into(),
                ..AuthConfig::default()
            };
            let token = AuthConfig {
                registry_token: "s3cret-token".into(),
                ..AuthConfig::default()
            };
            for auth in [identity, token] {
                let answer = check(
                    "PullImage",
                    cri.pull_image(with_auth(&registry.name("app:1"), auth)),
                )?;
                ensure!(answer.image_ref == pushed.config, "the id");
            }
            let wrong = AuthConfig {
                registry_token: "s3cret-other".into(),
                ..AuthConfig::default()
            };
            let result = cri.pull_image(with_auth(&registry.name("app:1"), wrong));
            refused(result, Code::PermissionDenied, &["not accepted"])?;
            nothing_is_told(cri)
        })
    }
);

/// Two registries with the same image, the first a mirror of the second's name.
fn mirrored(cri: &Cri<'_>, mirror: &ImageRegistry, itself: &ImageRegistry) -> Result<Pushed> {
    mirror.push("app", "1", LAYERS);
    let directory = cri.directory.join("certs.d/registry.test");
    fs::create_dir_all(&directory)?;
    let text = format!(
        "server = \"http://{}\"\n[host.\"http://{}\"]\n",
        itself.address(),
        mirror.address()
    );
    fs::write(directory.join("hosts.toml"), text)?;
    Ok(itself.push("app", "1", LAYERS))
}

test!(
    fn credentials_never_go_to_a_mirror_of_another_host(t: &Test) -> Result {
        puller().with(t, |cri| {
            only_ours(t)?;
            let (mirror, itself) = (ImageRegistry::start()?, ImageRegistry::start()?);
            let pushed = mirrored(cri, &mirror, &itself)?;
            ask_for_basic(&mirror);
            ask_for_basic(&itself);
            let answer = check(
                "PullImage",
                cri.pull_image(with_auth("registry.test/app:1", ann())),
            )?;
            ensure!(answer.image_ref == pushed.config, "the id");
            let (asked, answered) = (mirror.requests(), itself.requests());
            ensure!(!asked.is_empty(), "the mirror is asked first");
            ensure!(
                asked
                    .iter()
                    .all(|request| request.header("authorization").is_empty()),
                "{asked:?}"
            );
            ensure!(
                answered
                    .iter()
                    .any(|request| request.header("authorization") == BASIC),
                "{answered:?}"
            );
            // Those that are the mirror's own do.
            let theirs = AuthConfig {
                server_address: format!("http://{}", mirror.address()),
                ..ann()
            };
            check(
                "PullImage",
                cri.pull_image(with_auth("registry.test/app:1", theirs)),
            )?;
            ensure!(
                mirror
                    .requests()
                    .iter()
                    .any(|request| request.header("authorization") == BASIC),
                "the mirror's own"
            );
            ensure!(itself.requests().is_empty(), "the mirror had it");
            nothing_is_told(cri)
        })
    }
);

test!(
    fn credentials_never_follow_a_redirect_to_another_host(t: &Test) -> Result {
        puller().with(t, |cri| {
            // To Go another port is the same host.
            only_ours(t)?;
            let (registry, storage) = (ImageRegistry::start()?, Arc::new(ImageRegistry::start()?));
            let pushed = registry.push("app", "1", LAYERS);
            storage.push("app", "1", LAYERS);
            let place = storage.address();
            registry.misbehave(move |request, reply| {
                if request.header("authorization") != BASIC {
                    deny(reply, "Basic realm=\"test\"");
                } else if request.is_blob() {
                    reply.redirect(&format!("http://{place}{}", request.path));
                }
            });
            let answer = check(
                "PullImage",
                cri.pull_image(with_auth(&registry.name("app:1"), ann())),
            )?;
            ensure!(answer.image_ref == pushed.config, "the id");
            let asked = storage.requests();
            ensure!(asked.len() >= 3, "{asked:?}");
            ensure!(
                asked
                    .iter()
                    .all(|request| request.header("authorization").is_empty()),
                "{asked:?}"
            );
            nothing_is_told(cri)
        })
    }
);

test!(
    fn a_pull_shows_its_own_credentials_though_another_is_under_way(t: &Test) -> Result {
        puller().with(t, |cri| {
            only_ours(t)?;
            let registry = ImageRegistry::start()?;
            registry.push("app", "1", LAYERS);
            registry.misbehave(|request, reply| {
                if request.header("authorization") != BASIC {
                    deny(reply, "Basic realm=\"test\"");
                } else if request.is_blob() {
                    reply.stall_after(0, std::time::Duration::from_millis(500));
                }
            });
            let name = registry.name("app:1");
            let other = cri.another_client()?;
            std::thread::scope(|scope| {
                let ann = scope.spawn({
                    let name = &name;
                    move || other.pull_image(with_auth(name, ann()))
                });
                let nobody = cri.pull_image(request(&name));
                refused(nobody, Code::PermissionDenied, &["no credentials"])?;
                check("PullImage", ann.join().expect("a pull")).map(drop)
            })
        })
    }
);
