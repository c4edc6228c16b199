//! PullImage: registries as they are: token services, blob stores behind signed addresses, limits, what they say of errors.

use std::fs;
use std::sync::Arc;
use std::time::Instant;

use anyhow::ensure;
use serde_json::json;

use super::cri_pull::{pull, puller, request};
use crate::cri::proto::*;
use crate::cri::{Code, Cri, check, only_ours, refused};
use crate::image_registry::{ImageRegistry, Reply, Request};
use crate::registry::Result;
use crate::test;

const LAYERS: &[&[(&str, &[u8])]] = &[&[("one", b"1")], &[("two", b"2")]];

/// `ann:s3cret-password`
const BASIC: &str = "Basic YW5uOnMzY3JldC1wYXNzd29yZA==";

fn as_ann(image: &str) -> PullImageRequest {
    let ann = AuthConfig {
        username: "ann".into(),
        password: "s3cret-password".into(),
        ..AuthConfig::default()
    };
    PullImageRequest {
        auth: Some(ann),
        ..request(image)
    }
}

fn answer(reply: &mut Reply, status: u16, body: &serde_json::Value) {
    reply.become_status(status);
    reply.body = body.to_string().into_bytes();
}

/// Wants a token of this realm, with these parameters of the challenge.
fn ask_for_token(registry: &ImageRegistry, realm: &str, more: &str) {
    let challenge = format!("Bearer realm=\"{realm}\"{more}");
    registry.misbehave(move |request, reply| {
        if request.header("authorization") != "Bearer s3cret-token" {
            reply.become_status(401);
            reply.header("www-authenticate", &challenge);
        }
    });
}

fn nothing_is_told(cri: &Cri<'_>) -> Result {
    let log = fs::read_to_string(cri.log())?;
    for secret in ["s3cret", BASIC] {
        ensure!(!log.contains(secret), "{secret} is in the log:\n{log}");
    }
    Ok(())
}

test!(
    fn a_token_service_on_another_host_gets_the_password_and_the_registry_does_not(t: &Test) -> Result {
        puller().with(t, |cri| {
            let (registry, service) = (ImageRegistry::start()?, ImageRegistry::start()?);
            let pushed = registry.push("app", "1", LAYERS);
            let realm = format!("http://{}/oauth?account=x", service.address());
            ask_for_token(
                &registry,
                &realm,
                ",service=\"test\",scope=\"repository:app:pull repository:base:pull\"",
            );
            service.misbehave(|request, reply| {
                let by_form = request.method == "POST" && request.body.contains("password=s3cret-password");
                if request.header("authorization") == BASIC || by_form {
                    let token = json!({"token": "s3cret-token", "access_token": "s3cret-token"});
                    answer(reply, 200, &token);
                } else {
                    reply.become_status(401);
                }
            });
            let pulled = check("PullImage", cri.pull_image(as_ann(&registry.name("app:1"))))?;
            ensure!(pulled.image_ref == pushed.config, "the id");
            let asked = registry.requests();
            let told = |request: &Request| request.header("authorization").starts_with("Basic");
            ensure!(!asked.iter().any(told), "{asked:?}");
            let asked = service.requests();
            if cri.is_ours() {
                ensure!(asked.len() == 1, "{asked:?}");
                let expected = "/oauth?account=x&service=test&scope=repository%3Aapp%3Apull\
                                &scope=repository%3Abase%3Apull&account=ann";
                ensure!(asked[0].path == expected, "{asked:?}");
            }
            Ok(())
        })
    }
);

test!(
    fn a_token_service_that_knows_only_one_method_is_asked_by_it(t: &Test) -> Result {
        puller().with(t, |cri| {
            let (registry, service) = (ImageRegistry::start()?, ImageRegistry::start()?);
            ask_for_token(&registry, &format!("http://{}/token", service.address()), "");
            for (tag, method, status) in [("1", "POST", 404), ("2", "POST", 405), ("3", "GET", 404)] {
                let pushed = registry.push("app", tag, &[&[(tag, b"x")]]);
                service.misbehave(move |request, reply| {
                    if request.method == method {
                        answer(
                            reply,
                            200,
                            &json!({"token": "s3cret-token", "access_token": "s3cret-token"}),
                        );
                    } else {
                        reply.become_status(status);
                    }
                });
                let name = registry.name(&format!("app:{tag}"));
                let pulled = check("PullImage", cri.pull_image(as_ann(&name)))?;
                ensure!(pulled.image_ref == pushed.config, "the id");
            }
            nothing_is_told(cri)
        })
    }
);

test!(
    fn an_identity_token_is_never_sent_by_get(t: &Test) -> Result {
        puller().with(t, |cri| {
            only_ours(t)?;
            let (registry, service) = (ImageRegistry::start()?, ImageRegistry::start()?);
            registry.push("app", "1", LAYERS);
            ask_for_token(&registry, &format!("http://{}/token", service.address()), "");
            service.misbehave(|_, reply| {
                let why = json!({"error": "unsupported_grant_type", "error_description": "no tokens here"});
                answer(reply, 400, &why);
            });
            let identity = AuthConfig {
                identity_token: "s3cret-identity".into(),
                ..AuthConfig::default()
            };
            let request = PullImageRequest {
                auth: Some(identity),
                ..request(&registry.name("app:1"))
            };
            let told = [
                "token service",
                "unsupported_grant_type",
                "no tokens here",
                "not accepted",
            ];
            refused(cri.pull_image(request), Code::PermissionDenied, &told)?;
            let asked = service.requests();
            ensure!(asked.iter().all(|request| request.method == "POST"), "{asked:?}");
            nothing_is_told(cri)
        })
    }
);

test!(
    fn what_a_registry_says_of_an_error_is_shown_and_made_harmless(t: &Test) -> Result {
        puller().with(t, |cri| {
            only_ours(t)?;
            let (registry, service) = (ImageRegistry::start()?, ImageRegistry::start()?);
            registry.push("app", "1", LAYERS);
            let name = registry.name("app:1");
            // As the registry of the distribution project, and of most others.
            registry.misbehave(|_, reply| {
                let error = json!({"code": "DENIED", "message": "pay first\u{1b}[2J"});
                answer(reply, 403, &json!({"errors": [error]}));
            });
            let result = cri.pull_image(request(&name));
            if let Err(status) = &result {
                ensure!(!status.message().contains('\u{1b}'), "{status:?}");
            }
            refused(result, Code::PermissionDenied, &["403", "DENIED: pay first"])?;
            // After the credentials were shown.
            registry.misbehave(|_, reply| {
                answer(
                    reply,
                    401,
                    &json!({"errors": [{"code": "UNAUTHORIZED", "message": "expired yesterday"}]}),
                );
                reply.header("www-authenticate", "Basic realm=\"x\"");
            });
            refused(
                cri.pull_image(as_ann(&name)),
                Code::PermissionDenied,
                &["expired yesterday"],
            )?;
            // As Docker Hub's token service.
            ask_for_token(&registry, &format!("http://{}/token", service.address()), "");
            service.misbehave(|_, reply| {
                answer(reply, 401, &json!({"details": "incorrect username or password"}));
            });
            refused(
                cri.pull_image(as_ann(&name)),
                Code::PermissionDenied,
                &[&service.address(), "incorrect username or password"],
            )?;
            // No JSON, as a load balancer says it.
            registry.misbehave(|_, reply| {
                reply.become_status(418);
                reply.body = b"<html>teapot</html>".to_vec();
            });
            refused(cri.pull_image(request(&name)), Code::FailedPrecondition, &["418"])
        })
    }
);

test!(
    fn a_limit_of_requests_is_told_and_not_waited_for_when_it_is_long(t: &Test) -> Result {
        puller().with(t, |cri| {
            only_ours(t)?;
            let registry = ImageRegistry::start()?;
            registry.push("app", "1", LAYERS);
            // As Docker Hub has it.
            registry.misbehave(|_, reply| {
                let error =
                    json!({"code": "TOOMANYREQUESTS", "message": "You have reached your pull rate limit."});
                answer(reply, 429, &json!({"errors": [error]}));
                for (name, value) in [
                    ("ratelimit-limit", "100;w=21600"),
                    ("ratelimit-remaining", "0;w=21600"),
                    ("docker-ratelimit-source", "192.0.2.1"),
                    ("retry-after", "3600"),
                ] {
                    reply.header(name, value);
                }
            });
            let begun = Instant::now();
            refused(
                cri.pull_image(request(&registry.name("app:1"))),
                Code::Unavailable,
                &[
                    "RegistryUnavailable",
                    "TOOMANYREQUESTS: You have reached",
                    "100 requests in 21600 s, 0 left",
                    "come again in 3600 s",
                ],
            )?;
            ensure!(begun.elapsed().as_secs() < 10, "it waits for an hour");
            ensure!(registry.requests().len() == 1, "it asks again");
            Ok(())
        })
    }
);

test!(
    fn a_registry_that_never_has_enough_is_not_asked_for_ever(t: &Test) -> Result {
        puller().with(t, |cri| {
            let registry = ImageRegistry::start()?;
            registry.push("app", "1", LAYERS);
            let realm = format!("http://{}/token", registry.address());
            // Each token is good for nothing, and each challenge asks for more.
            let mut number = 0;
            registry.misbehave(move |request, reply| {
                number += 1;
                if request.path.starts_with("/token") {
                    let token = format!("s3cret-{number}");
                    answer(reply, 200, &json!({"token": token, "access_token": token}));
                } else {
                    reply.become_status(401);
                    let challenge = format!(
                        "Bearer realm=\"{realm}\",scope=\"repository:app:pull,x{number}\",error=\"insufficient_scope\""
                    );
                    reply.header("www-authenticate", &challenge);
                }
            });
            let result = cri.pull_image(as_ann(&registry.name("app:1")));
            ensure!(result.is_err(), "{result:?}");
            let asked = registry.requests().len();
            ensure!(asked <= 12, "{asked} requests");
            // Redirects that lead to each other.
            let itself = registry.address();
            registry.misbehave(move |request, reply| {
                reply.redirect(&format!("http://{itself}{}x", request.path));
            });
            let result = cri.pull_image(request(&registry.name("app:1")));
            if cri.is_ours() {
                refused(result, Code::FailedPrecondition, &["more than 10 redirects"])?;
            } else {
                ensure!(result.is_err(), "{result:?}");
            }
            let asked = registry.requests().len();
            ensure!(asked <= 44, "{asked} requests");
            Ok(())
        })
    }
);

test!(
    fn a_blob_store_behind_a_signed_address_gets_no_secret_and_its_signature_is_told_to_nobody(
        t: &Test,
    ) -> Result {
        puller().with(t, |cri| {
            let (registry, store) = (ImageRegistry::start()?, Arc::new(ImageRegistry::start()?));
            let directory = cri.directory.join("certs.d/registry.test");
            fs::create_dir_all(&directory)?;
            let text = format!(
                "server = \"http://{}\"\n[header]\nx-key = \"s3cret-key\"\n",
                registry.address()
            );
            fs::write(directory.join("hosts.toml"), text)?;
            let pushed = registry.push("app", "1", LAYERS);
            store.push("app", "1", LAYERS);
            // localhost: to Go, too, it is another host then.
            let place = store.address().replace("127.0.0.1", "localhost");
            let token = format!("http://{}/token", registry.address());
            registry.misbehave(move |request, reply| {
                if request.path.starts_with("/token") {
                    answer(reply, 200, &json!({"token": "s3cret-token"}));
                } else if request.header("authorization") != "Bearer s3cret-token" {
                    reply.become_status(401);
                    reply.header("www-authenticate", &format!("Bearer realm=\"{token}\""));
                } else if request.is_blob() {
                    let path = request.path.split('?').next().unwrap_or_default();
                    reply.redirect(&format!("http://{place}{path}?X-Amz-Signature=s3cret-signature"));
                }
            });
            // S3 refuses what has both a signature and a header.
            store.misbehave(|request, reply| {
                if !request.header("authorization").is_empty() || !request.path.contains("s3cret-signature") {
                    reply.become_status(400);
                }
            });
            ensure!(pull(cri, "registry.test/app:1")? == pushed.config, "the id");
            let asked = store.requests();
            ensure!(asked.len() >= 3, "{asked:?}");
            if cri.is_ours() {
                ensure!(
                    asked.iter().all(|request| request.header("x-key").is_empty()),
                    "{asked:?}"
                );
            }
            // The signature has run out.
            store.misbehave(|_, reply| reply.become_status(403));
            registry.push("app", "2", &[&[("other", b"3")]]);
            let result = cri.pull_image(request("registry.test/app:2"));
            if let Err(status) = &result
                && cri.is_ours()
            {
                ensure!(!status.message().contains("s3cret"), "{status:?}");
            }
            let code = if cri.is_ours() {
                Code::PermissionDenied
            } else {
                Code::Unknown
            };
            refused(result, code, &["403", &registry.address()])?;
            if cri.is_ours() {
                nothing_is_told(cri)
            } else {
                Ok(())
            }
        })
    }
);

test!(
    fn a_registry_that_does_not_know_head_is_asked_by_get(t: &Test) -> Result {
        puller().with(t, |cri| {
            only_ours(t)?;
            let registry = ImageRegistry::start()?;
            let pushed = registry.push("app", "1", LAYERS);
            registry.misbehave(|request, reply| {
                if request.method == "HEAD" {
                    reply.become_status(405);
                }
            });
            let name = registry.name("app:1");
            for _ in 0..2 {
                ensure!(pull(cri, &name)? == pushed.config, "the id");
            }
            let pushed = registry.push("app", "1", &[&[("new", b"1")]]);
            ensure!(pull(cri, &name)? == pushed.config, "the tag moved");
            Ok(())
        })
    }
);
