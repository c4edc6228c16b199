//! PullImage: what is downloaded, how often, and what is refused; against a registry that misbehaves.

use std::fs;
use std::time::Duration;

use anyhow::{Context, ensure};
use serde_json::json;

use crate::cri::proto::*;
use crate::cri::{Code, Cri, Setup, check, only_ours, refused};
use crate::image_registry::{self, CONFIG, INDEX, ImageRegistry, LAYER, MANIFEST, Pushed, Request};
use crate::registry::Result;
use crate::test;
use crate::wait;

/// A server that only pulls: it has no network.
pub(super) fn puller() -> Setup {
    Setup {
        network: None,
        ..Setup::default()
    }
}

pub(super) fn request(image: &str) -> PullImageRequest {
    PullImageRequest {
        image: Some(ImageSpec {
            image: image.to_owned(),
            ..ImageSpec::default()
        }),
        ..PullImageRequest::default()
    }
}

pub(super) fn pull(cri: &Cri<'_>, image: &str) -> Result<String> {
    Ok(check("PullImage", cri.pull_image(request(image)))?.image_ref)
}

fn listed(cri: &Cri<'_>) -> Result<Vec<Image>> {
    Ok(check("ListImages", cri.list_images(ListImagesRequest::default()))?.images)
}

/// Directories of layers.
fn layers(cri: &Cri<'_>) -> Result<usize> {
    Ok(fs::read_dir(cri.root().join("layers"))?.count())
}

/// GETs of this blob.
fn downloads(requests: &[Request], digest: &str) -> usize {
    requests
        .iter()
        .filter(|request| request.method == "GET" && request.path.contains(digest))
        .count()
}

/// It is refused so, and nothing stays of it.
fn is_refused(cri: &Cri<'_>, image: &str, code: Code, texts: &[&str]) -> Result {
    refused(cri.pull_image(request(image)), code, texts)?;
    ensure!(listed(cri)?.is_empty(), "an image stays");
    // It is removed in the background.
    wait::until("the layers to be gone", || Ok((layers(cri)? == 0).then_some(())))
}

const TWO: &[&[(&str, &[u8])]] = &[&[("one", b"1")], &[("two", b"2")]];

test!(
    fn an_image_is_pulled_by_tag_and_by_digest(t: &Test) -> Result {
        puller().with(t, |cri| {
            let registry = ImageRegistry::start()?;
            let pushed = registry.push("some/app", "v1", TWO);
            ensure!(
                pull(cri, &registry.name("some/app:v1"))? == pushed.config,
                "the id"
            );
            let by_digest = registry.name(&format!("some/app@{}", pushed.manifest));
            registry.requests();
            ensure!(pull(cri, &by_digest)? == pushed.config, "the same image");
            ensure!(
                !registry.requests().iter().any(Request::is_blob),
                "nothing is downloaded again"
            );
            let images = listed(cri)?;
            ensure!(images.len() == 1, "{images:?}");
            ensure!(images[0].id == pushed.config, "{images:?}");
            ensure!(
                images[0].repo_tags == [registry.name("some/app:v1")],
                "{images:?}"
            );
            ensure!(images[0].repo_digests == [by_digest], "{images:?}");
            Ok(())
        })
    }
);

test!(
    fn a_layer_that_is_here_is_not_downloaded_again(t: &Test) -> Result {
        puller().with(t, |cri| {
            let registry = ImageRegistry::start()?;
            let one = registry.push("one", "1", TWO);
            let two = registry.push("two", "1", &[TWO[0], TWO[1], &[("three", b"3")]]);
            pull(cri, &registry.name("one:1"))?;
            registry.requests();
            ensure!(pull(cri, &registry.name("two:1"))? == two.config, "the id");
            let requests = registry.requests();
            for digest in &one.layers {
                ensure!(downloads(&requests, digest) == 0, "{digest} is asked for again");
            }
            ensure!(downloads(&requests, &two.layers[2]) == 1, "{requests:?}");
            Ok(())
        })
    }
);

test!(
    fn a_tag_is_asked_for_anew_each_time(t: &Test) -> Result {
        puller().with(t, |cri| {
            let registry = ImageRegistry::start()?;
            let name = registry.name("app:latest");
            let old = registry.push("app", "latest", TWO);
            ensure!(pull(cri, &name)? == old.config, "the id");
            registry.requests();
            ensure!(pull(cri, &name)? == old.config, "the id");
            if cri.is_ours() {
                let requests = registry.requests();
                ensure!(
                    requests.len() == 1 && requests[0].method == "HEAD",
                    "{requests:?}"
                );
            }
            let new = registry.push("app", "latest", &[TWO[1]]);
            ensure!(pull(cri, &name)? == new.config, "the tag moved");
            let tagged: Vec<_> = listed(cri)?
                .into_iter()
                .filter(|image| image.repo_tags.contains(&name))
                .collect();
            ensure!(tagged.len() == 1 && tagged[0].id == new.config, "{tagged:?}");
            Ok(())
        })
    }
);

test!(
    fn of_an_index_the_image_for_this_machine_is_pulled(t: &Test) -> Result {
        puller().with(t, |cri| {
            let registry = ImageRegistry::start()?;
            let (ours, other) = (
                registry.push("app", "amd64", TWO),
                registry.push("app", "arm64", &[TWO[1]]),
            );
            let entry = |pushed: &Pushed, architecture: &str| {
                json!({"mediaType": MANIFEST, "digest": pushed.manifest, "size": pushed.size,
                       "platform": {"os": "linux", "architecture": architecture}})
            };
            let index = |entries: serde_json::Value| {
                json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": entries})
                    .to_string()
                    .into_bytes()
            };
            let both = index(json!([entry(&other, "arm64"), entry(&ours, "amd64")]));
            let digest = registry.manifest("app", "both", INDEX, &both);
            ensure!(pull(cri, &registry.name("app:both"))? == ours.config, "the id");
            let images = listed(cri)?;
            let expected = registry.name(&format!("app@{digest}"));
            ensure!(
                images[0].repo_digests == [expected],
                "the index's digest: {images:?}"
            );
            let none = index(json!([entry(&other, "arm64")]));
            registry.manifest("app", "none", INDEX, &none);
            let result = cri.pull_image(request(&registry.name("app:none")));
            refused(result, Code::NotFound, &["linux/amd64", "linux/arm64"])
        })
    }
);

test!(
    fn content_with_another_digest_is_refused_and_nothing_of_it_stays(t: &Test) -> Result {
        puller().with(t, |cri| {
            only_ours(t)?;
            let registry = ImageRegistry::start()?;
            let pushed = registry.push("app", "1", TWO);
            let name = registry.name("app:1");
            for digest in [&pushed.layers[0], &pushed.layers[1], &pushed.config] {
                let wrong = digest.clone();
                registry.misbehave(move |request, reply| {
                    if request.path.contains(&wrong)
                        && let Some(last) = reply.body.last_mut()
                    {
                        *last ^= 1;
                    }
                });
                is_refused(
                    cri,
                    &name,
                    Code::FailedPrecondition,
                    &[&registry.address(), digest],
                )?;
            }
            // The manifest, by the header it comes with and by the digest it is asked by.
            registry.misbehave(|request, reply| {
                if request.path.contains("/manifests/") {
                    reply.body.push(b' ');
                }
            });
            is_refused(cri, &name, Code::FailedPrecondition, &[&pushed.manifest])?;
            let by_digest = registry.name(&format!("app@{}", pushed.manifest));
            is_refused(cri, &by_digest, Code::FailedPrecondition, &[&pushed.manifest])?;
            registry.behave();
            ensure!(
                pull(cri, &name)? == pushed.config,
                "the same pull, the registry as it should be"
            );
            Ok(())
        })
    }
);

test!(
    fn a_broken_download_goes_on_where_it_broke(t: &Test) -> Result {
        puller().with(t, |cri| {
            only_ours(t)?;
            let registry = ImageRegistry::start()?;
            let content = vec![7; 100_000];
            let pushed = registry.push("app", "1", &[&[("big", &content)]]);
            let layer = pushed.layers[0].clone();
            let mut left = 3;
            registry.misbehave(move |request, reply| {
                if request.path.contains(&layer) && left > 0 {
                    left -= 1;
                    reply.cut_after(20_000);
                    if left == 1 {
                        reply.ignore_range();
                    }
                }
            });
            ensure!(pull(cri, &registry.name("app:1"))? == pushed.config, "the id");
            let requests = registry.requests();
            let ranges: Vec<_> = requests
                .iter()
                .filter(|request| request.path.contains(&pushed.layers[0]))
                .map(|request| request.header("range"))
                .collect();
            // The third answer was the beginning again: nothing new in what came of it.
            ensure!(
                ranges == ["", "bytes=20000-", "bytes=20000-", "bytes=40000-"],
                "{ranges:?}"
            );
            Ok(())
        })
    }
);

test!(
    fn a_registry_that_stalls_is_asked_again(t: &Test) -> Result {
        only_ours(t)?;
        let setup = Setup {
            images: "stall_timeout = 1".into(),
            ..puller()
        };
        setup.with(t, |cri| {
            let registry = ImageRegistry::start()?;
            let pushed = registry.push("app", "1", TWO);
            let layer = pushed.layers[0].clone();
            let mut stalls = true;
            registry.misbehave(move |request, reply| {
                if request.path.contains(&layer) && std::mem::take(&mut stalls) {
                    reply.stall_after(700, Duration::from_secs(60));
                }
            });
            ensure!(pull(cri, &registry.name("app:1"))? == pushed.config, "the id");
            let requests = registry.requests();
            let last = requests
                .iter()
                .rfind(|request| request.path.contains(&pushed.layers[0]));
            ensure!(
                last.context("no request")?.header("range") == "bytes=700-",
                "{requests:?}"
            );
            Ok(())
        })
    }
);

test!(
    fn a_registry_that_is_busy_is_asked_again_when_it_says(t: &Test) -> Result {
        puller().with(t, |cri| {
            only_ours(t)?;
            let registry = ImageRegistry::start()?;
            let pushed = registry.push("app", "1", TWO);
            let mut refusals = [429, 503, 500, 502].into_iter();
            registry.misbehave(move |request, reply| {
                // In turn for the manifest and for blobs.
                if request.method == "GET"
                    && let Some(status) = refusals.next()
                {
                    reply.become_status(status);
                    reply.header("retry-after", "1");
                }
            });
            ensure!(pull(cri, &registry.name("app:1"))? == pushed.config, "the id");
            registry.misbehave(|_, reply| {
                reply.become_status(429);
                reply.header("retry-after", "86400");
            });
            let result = cri.pull_image(request(&registry.name("app:1")));
            refused(result, Code::Unavailable, &["RegistryUnavailable", "429"])
        })
    }
);

test!(
    fn what_is_no_image_for_us_is_refused_by_name(t: &Test) -> Result {
        puller().with(t, |cri| {
            only_ours(t)?;
            let registry = ImageRegistry::start()?;
            let pushed = registry.push("app", "1", TWO);
            let config = json!({"mediaType": CONFIG, "digest": pushed.config, "size": 1});
            let layer = |kind: &str| json!([{"mediaType": kind, "digest": pushed.layers[0], "size": 2048}]);
            let manifest = |fields: serde_json::Value| {
                let mut all = json!({"schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": layer(LAYER)});
                for (name, value) in fields.as_object().into_iter().flatten() {
                    all[name] = value.clone();
                }
                all
            };
            let foreign = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip";
            let artifact = json!({"mediaType": "application/vnd.cncf.helm.config.v1+json", "digest": pushed.config, "size": 1});
            for (document, code, text) in [
                (json!({"schemaVersion": 1, "fsLayers": []}), Code::FailedPrecondition, "schema 1"),
                (manifest(json!({"config": artifact})), Code::FailedPrecondition, "artifact"),
                (manifest(json!({"layers": layer(foreign)})), Code::FailedPrecondition, foreign),
                (manifest(json!({"manifests": []})), Code::FailedPrecondition, "two ways"),
                (manifest(json!({})), Code::FailedPrecondition, "2 diff_ids for the 1 layers"),
                (json!("nonsense"), Code::FailedPrecondition, "manifest"),
            ] {
                registry.manifest("app", "bad", MANIFEST, document.to_string().as_bytes());
                is_refused(cri, &registry.name("app:bad"), code, &[text])
                    .with_context(|| document.to_string())?;
            }
            is_refused(cri, &registry.name("app:none"), Code::NotFound, &["404", "no such thing"])?;
            let huge = format!("{{\"schemaVersion\": 2, \"x\": \"{}\"}}", "x".repeat(5 << 20));
            registry.manifest("app", "huge", MANIFEST, huge.as_bytes());
            is_refused(cri, &registry.name("app:huge"), Code::FailedPrecondition, &["bytes"])
        })
    }
);

test!(
    fn a_blob_longer_than_its_manifest_says_is_refused(t: &Test) -> Result {
        puller().with(t, |cri| {
            only_ours(t)?;
            let registry = ImageRegistry::start()?;
            let pushed = registry.push("app", "1", TWO);
            registry.misbehave(|request, reply| {
                if request.is_blob() {
                    let more = reply.body.clone();
                    reply.body.extend(more);
                }
            });
            is_refused(
                cri,
                &registry.name("app:1"),
                Code::FailedPrecondition,
                &[&pushed.config],
            )?;
            let layer = pushed.layers[1].clone();
            registry.misbehave(move |request, reply| {
                if request.path.contains(&layer) {
                    reply.body.push(0);
                }
            });
            is_refused(
                cri,
                &registry.name("app:1"),
                Code::FailedPrecondition,
                &["more than"],
            )
        })
    }
);

test!(
    fn names_that_cannot_be_are_refused(t: &Test) -> Result {
        puller().with(t, |cri| {
            only_ours(t)?;
            for name in [
                "",
                "UPPER",
                "a//b",
                "app:",
                "app@sha256:12",
                "https://a.example/app",
                "../../etc/passwd",
            ] {
                let expected = if name.is_empty() { "image.image" } else { name };
                refused(cri.pull_image(request(name)), Code::InvalidArgument, &[expected])?;
            }
            Ok(())
        })
    }
);

test!(
    fn pulls_of_the_same_image_at_once_download_it_once(t: &Test) -> Result {
        puller().with(t, |cri| {
            let registry = ImageRegistry::start()?;
            let pushed = registry.push("app", "1", TWO);
            registry.misbehave(|request, reply| {
                if request.is_blob() {
                    reply.stall_after(1, Duration::from_millis(300));
                }
            });
            let name = registry.name("app:1");
            let clients = (0..5).map(|_| cri.another_client()).collect::<Result<Vec<_>>>()?;
            let ids = std::thread::scope(|scope| {
                let pulls: Vec<_> = clients
                    .into_iter()
                    .map(|client| {
                        scope.spawn({
                            let name = &name;
                            move || client.pull_image(request(name))
                        })
                    })
                    .collect();
                pulls
                    .into_iter()
                    .map(|pull| pull.join().expect("a pull"))
                    .collect::<Vec<_>>()
            });
            for id in ids {
                ensure!(check("PullImage", id)?.image_ref == pushed.config, "the id");
            }
            let requests = registry.requests();
            for digest in pushed.layers.iter().chain([&pushed.config]) {
                ensure!(downloads(&requests, digest) == 1, "{digest}: {requests:?}");
            }
            Ok(())
        })
    }
);

test!(
    fn two_images_at_once_download_a_layer_of_both_once(t: &Test) -> Result {
        puller().with(t, |cri| {
            only_ours(t)?;
            let registry = ImageRegistry::start()?;
            let one = registry.push("one", "1", TWO);
            let two = registry.push("two", "1", &[TWO[0], TWO[1], &[("three", b"3")]]);
            registry.misbehave(|request, reply| {
                if request.is_blob() {
                    reply.stall_after(1, Duration::from_millis(300));
                }
            });
            let names = [registry.name("one:1"), registry.name("two:1")];
            let clients = [cri.another_client()?, cri.another_client()?];
            std::thread::scope(|scope| {
                let pulls: Vec<_> = clients
                    .into_iter()
                    .zip(&names)
                    .map(|(client, name)| {
                        scope.spawn(move || check("PullImage", client.pull_image(request(name))))
                    })
                    .collect();
                pulls
                    .into_iter()
                    .try_for_each(|pull| pull.join().expect("a pull").map(drop))
            })?;
            let requests = registry.requests();
            for digest in &one.layers {
                ensure!(downloads(&requests, digest) == 1, "{digest}: {requests:?}");
            }
            ensure!(downloads(&requests, &two.layers[2]) == 1, "{requests:?}");
            Ok(())
        })
    }
);

test!(
    fn a_pull_that_nobody_waits_for_ends_and_leaves_nothing(t: &Test) -> Result {
        puller().with(t, |cri| {
            only_ours(t)?;
            let registry = ImageRegistry::start()?;
            let pushed = registry.push("app", "1", TWO);
            registry.misbehave(|request, reply| {
                if request.is_blob() && reply.body.len() > 1000 {
                    reply.stall_after(700, Duration::from_secs(100));
                }
            });
            let name = registry.name("app:1");
            let other = cri.another_client()?;
            let asked = other.wait(async {
                let mut client = other.images();
                let pull = client.pull_image(request(&name));
                tokio::time::timeout(Duration::from_secs(2), pull).await
            });
            ensure!(asked.is_err(), "{asked:?}");
            ensure!(layers(cri)? > 0, "nothing was begun");
            other.hang_up();
            wait::until("the pull to end", || Ok((layers(cri)? == 0).then_some(())))?;
            ensure!(listed(cri)?.is_empty(), "an image stays");
            registry.behave();
            ensure!(pull(cri, &name)? == pushed.config, "pulled again");
            Ok(())
        })
    }
);

test!(
    fn an_image_is_whole_after_a_restart_of_the_server(t: &Test) -> Result {
        puller().with(t, |cri| {
            only_ours(t)?;
            let registry = ImageRegistry::start()?;
            let pushed = registry.push("app", "1", TWO);
            let name = registry.name("app:1");
            pull(cri, &name)?;
            cri.signal(nix::sys::signal::Signal::SIGKILL)?;
            cri.start_server()?;
            registry.requests();
            ensure!(pull(cri, &name)? == pushed.config, "the id");
            ensure!(
                !registry.requests().iter().any(Request::is_blob),
                "nothing is downloaded again"
            );
            Ok(())
        })
    }
);

test!(
    fn empty_layers_and_the_same_layer_twice_are_pulled(t: &Test) -> Result {
        puller().with(t, |cri| {
            let registry = ImageRegistry::start()?;
            let pushed = registry.push("app", "1", &[&[], &[("a", b"1")], &[], &[("a", b"1")]]);
            ensure!(
                pushed.layers[0] == image_registry::digest(&image_registry::tar(&[])),
                "the same"
            );
            ensure!(pull(cri, &registry.name("app:1"))? == pushed.config, "the id");
            let none = registry.push("none", "1", &[]);
            if cri.is_ours() {
                ensure!(
                    pull(cri, &registry.name("none:1"))? == none.config,
                    "an image without layers"
                );
            }
            Ok(())
        })
    }
);
