//! The terminal's size, as clients send it: `{"Width":80,"Height":24}`, one after another.

use super::stream::Input;
use crate::log;
use crate::shim::Shim;

/// What may be unfinished, in bytes: a size is 30.
const REST_MAX: usize = 4096;

/// A size that can be one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Size {
    pub(super) columns: u16,
    pub(super) rows: u16,
}

/// Gives the terminal of a process the sizes that come, to the last of them. `exec_id`: as `Shim::resize`.
pub(super) async fn resize(shim: &Shim, container: &str, exec_id: &str, input: Option<Input>) {
    let Some(input) = input else { return };
    let mut sizes = Sizes::new(input);
    while let Some(size) = sizes.next().await {
        let resized = shim.resize(container, exec_id, size.rows, size.columns);
        if let Err(error) = resized.await {
            log::debug(|| format!("the terminal's size: container {container}: {error}"));
        }
    }
}

/// Takes sizes out of what comes.
#[derive(Debug)]
pub(super) struct Sizes {
    input: Input,
    rest: Vec<u8>,
}

impl Sizes {
    pub(super) fn new(input: Input) -> Self {
        Self {
            input,
            rest: Vec::new(),
        }
    }

    /// The last size of those that have come, or of the next to come. `None`: no more will come, or it was no JSON.
    pub(super) async fn next(&mut self) -> Option<Size> {
        loop {
            let piece = self.input.next().await?;
            self.rest.extend_from_slice(&piece);
            let (last, used) = last(&self.rest)?;
            self.rest.drain(..used);
            if self.rest.len() > REST_MAX {
                return None;
            }
            if last.is_some() {
                return last;
            }
        }
    }
}

/// The last size in a text that may break off, and how long what was read is. `None`: it is no JSON.
fn last(text: &[u8]) -> Option<(Option<Size>, usize)> {
    let mut values = serde_json::Deserializer::from_slice(text).into_iter::<serde_json::Value>();
    let mut last = None;
    let mut used = 0;
    loop {
        match values.next() {
            None => return Some((last, text.len())),
            Some(Err(error)) if error.is_eof() => return Some((last, used)),
            Some(Err(_)) => return None,
            Some(Ok(value)) => {
                used = values.byte_offset();
                // Nonsense leaves it as it is.
                last = size(&value).or(last);
            }
        }
    }
}

fn size(value: &serde_json::Value) -> Option<Size> {
    let field = |name: &str| value.get(name)?.as_u64()?.try_into().ok();
    Some(Size {
        columns: field("Width")?,
        rows: field("Height")?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::streaming::stream::input;

    #[tokio::test]
    async fn the_last_of_several_counts_and_one_in_pieces_is_read() {
        let (feed, input) = input();
        let mut sizes = Sizes::new(input);
        let text = "{\"Width\":80,\"Height\":24}\n{\"Width\":100,\"Height\":30}\n{\"Wid";
        feed.put(text.into()).await.unwrap();
        let size = |columns, rows| Some(Size { columns, rows });
        assert_eq!(sizes.next().await, size(100, 30));
        feed.put("th\":7,\"Hei".into()).await.unwrap();
        feed.put("ght\":8}".into()).await.unwrap();
        assert_eq!(sizes.next().await, size(7, 8));
        drop(feed);
        assert_eq!(sizes.next().await, None);
    }

    #[tokio::test]
    async fn nonsense_is_passed_over_and_what_is_no_json_ends_it() {
        let (feed, input) = input();
        let mut sizes = Sizes::new(input);
        for text in [
            "{\"Width\":-1,\"Height\":24}",
            "{\"Width\":70000,\"Height\":24}",
            "[]7",
            " {\"Width\":1,\"Height\":2}",
        ] {
            feed.put(text.into()).await.unwrap();
        }
        let size = Size { columns: 1, rows: 2 };
        assert_eq!(sizes.next().await, Some(size));
        feed.put("what?".into()).await.unwrap();
        assert_eq!(sizes.next().await, None);
        let (feed, input) = super::super::stream::input();
        let mut sizes = Sizes::new(input);
        feed.put(format!("\"{}", "x".repeat(REST_MAX)).into())
            .await
            .unwrap();
        assert_eq!(sizes.next().await, None, "too long");
    }
}
