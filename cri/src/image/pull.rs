//! PullImage.
//!
//! ```text
//! reference -> what it stands for (HEAD where it may be here: the tag is asked for anew each time)
//!   -> index -> manifest for this machine -> configuration
//!   -> layers, several at once: registry -> digest -> unpacker
//!   -> committed: durable, and seen from here on
//! ```

use std::sync::Arc;
use std::time::{Duration, Instant};

use oci_spec::image::{Descriptor, Digest, ImageManifest};
use tokio::task::JoinSet;

use super::progress::Progress;
use super::pulls::Key;
use super::reference::Reference;
use super::registry::auth::Given;
use super::registry::fetch::Registry;
use super::registry::manifest::{self, Document, Machine};
use super::registry::proxy::Proxies;
use super::{Configuration, Pulled, Wanted};
use crate::error::{Error, Kind, Result};
use crate::log;
use crate::node::Node;
use crate::proto::*;

/// An index of indexes of indexes.
const MAX_DEPTH: u32 = 3;

/// PullImage: answers the id of the image. The pull ends early when its last caller goes.
///
/// # Errors
///
/// `InvalidArgument`, `PermissionDenied`, `NotFound`, `Unavailable`: each host that was asked, and its cause.
pub(crate) async fn pull(node: &Arc<Node>, request: PullImageRequest) -> Result<PullImageResponse> {
    let name = request.image.unwrap_or_default().image;
    if name.is_empty() {
        return Err(Error::invalid("image.image: is empty"));
    }
    let reference = Reference::parse(&name)?;
    let given = Given::read(request.auth.as_ref())?;
    let key = Key {
        reference: reference.to_string(),
        given: given.clone(),
    };
    let work = |progress| {
        let node = Arc::clone(node);
        async move {
            let outcome = whole(&node, &reference, given, &progress).await;
            if let Err(error) = &outcome {
                log::warn(format_args!("PullImage: {error}"));
            }
            outcome
        }
    };
    let image_ref = node.pulls.join(key, work).await?;
    Ok(PullImageResponse { image_ref })
}

async fn whole(
    node: &Arc<Node>,
    reference: &Reference,
    given: Given,
    progress: &Arc<Progress>,
) -> Result<String> {
    let begun = Instant::now();
    let config = &node.config.images;
    let stall = Duration::from_secs(config.stall_timeout.get());
    let registry = Registry::open(
        reference,
        &config.certs_dir,
        given,
        Proxies::of_environment(),
        stall,
    )
    .await?;
    let here = node.images.find(&reference.to_string());
    let resolved = registry.resolve(here.is_some()).await?;
    let digested = reference.digested(resolved.digest.as_ref());
    if let Some(image) = here.filter(|image| image.digests.contains(&digested)) {
        log::debug(|| format!("{reference} is here: {}", image.id));
        return Ok(image.id.clone());
    }
    let content = match resolved.content {
        Some(content) => content,
        None => registry.manifest(&resolved.digest).await?,
    };
    let manifest = for_this_machine(&registry, content).await?;
    let json = registry.configuration(manifest.config().digest()).await?;
    let configuration = Configuration::parse(&json)?;
    check(reference, &manifest, &configuration)?;
    let wanted = node.images.layers(&configuration.diff_ids)?;
    progress.begin(manifest.layers().iter().map(Descriptor::size));
    let source = Arc::new((registry, Arc::clone(progress)));
    let layers = bring(
        &source,
        manifest.layers(),
        wanted,
        config.max_parallel_downloads.get(),
    )
    .await?;
    let sizes = manifest.layers().iter().map(Descriptor::size);
    let pulled = Pulled {
        id: manifest.config().digest().to_string(),
        size: sizes.fold(json.len() as u64, u64::saturating_add),
        json,
        tag: reference.tagged(),
        digest: Some(digested),
    };
    let size = pulled.size;
    // Whoever cancels the pull now is too late.
    let committing = Arc::clone(node);
    let committed = tokio::spawn(async move { committing.images.commit(pulled, layers).await });
    let image = committed
        .await
        .map_err(|error| Error::new(Kind::Unknown, error))??;
    let seconds = begun.elapsed().as_secs_f32();
    log::info(format_args!(
        "pulled {reference}: {} ({size} bytes in {seconds:.1} s)",
        image.id
    ));
    Ok(image.id.clone())
}

/// Down the indexes to the manifest.
async fn for_this_machine(registry: &Registry, mut content: Vec<u8>) -> Result<ImageManifest> {
    let machine = Machine::this();
    for _ in 0..=MAX_DEPTH {
        let digest: Digest = match Document::read(&content).map_err(|failure| registry.wrong(failure))? {
            Document::Manifest(manifest) => {
                manifest::check(&manifest).map_err(|failure| registry.wrong(failure))?;
                return Ok(*manifest);
            }
            Document::Index(index) => {
                let chosen = manifest::choose(&index, machine).map_err(|failure| registry.wrong(failure))?;
                chosen.digest().clone()
            }
        };
        content = registry.manifest(&digest).await?;
    }
    Err(Error::text(
        Kind::FailedPrecondition,
        format_args!("index: more than {MAX_DEPTH} in each other"),
    ))
}

fn check(reference: &Reference, manifest: &ImageManifest, configuration: &Configuration) -> Result<()> {
    let wrong = |why: std::fmt::Arguments<'_>| {
        Err(Error::text(
            Kind::FailedPrecondition,
            format_args!("image {reference}: configuration: {why}"),
        ))
    };
    let (layers, diff_ids) = (manifest.layers().len(), configuration.diff_ids.len());
    if layers != diff_ids {
        return wrong(format_args!(
            "{diff_ids} diff_ids for the {layers} layers of the manifest"
        ));
    }
    if configuration.os != "linux" {
        return wrong(format_args!("os {:?}: this is linux", configuration.os));
    }
    Ok(())
}

/// All layers, the lowest first and so many at once: each waits in the end for those below it.
async fn bring(
    source: &Arc<(Registry, Arc<Progress>)>,
    descriptors: &[Descriptor],
    wanted: Vec<Wanted>,
    at_once: usize,
) -> Result<Vec<Wanted>> {
    let count = wanted.len();
    let mut waiting = descriptors.iter().cloned().zip(wanted).enumerate();
    let mut brought: Vec<Option<Wanted>> = (0..count).map(|_| None).collect();
    // Dropped: what runs is aborted.
    let mut running = JoinSet::new();
    loop {
        while running.len() < at_once
            && let Some((at, (descriptor, wanted))) = waiting.next()
        {
            let source = Arc::clone(source);
            running.spawn(async move {
                let (registry, progress) = &*source;
                registry.layer(&descriptor, &wanted, progress).await?;
                Ok::<_, Error>((at, wanted))
            });
        }
        let Some(ended) = running.join_next().await else {
            break;
        };
        let (at, wanted) = ended.map_err(|error| Error::new(Kind::Unknown, error))??;
        brought[at] = Some(wanted);
    }
    Ok(brought.into_iter().flatten().collect())
}
