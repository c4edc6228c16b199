//! Names as Kubernetes allows them (k8s.io/apimachinery, `validation`).

use anyhow::Result;

use super::field::Field;

/// A DNS label: `web-1`.
pub(super) fn label<'a>(field: &Field<'a>) -> Result<&'a str> {
    let text = field.text()?;
    if text.len() <= 63 && is_label(text) {
        return Ok(text);
    }
    Err(field.wrong("must be 1 to 63 lower case letters, digits and '-', not '-' at an end"))
}

/// Labels with dots between: `web.example`.
pub(super) fn subdomain<'a>(field: &Field<'a>) -> Result<&'a str> {
    let text = field.text()?;
    if text.len() <= 253 && text.split('.').all(is_label) {
        return Ok(text);
    }
    Err(field.wrong(
        "must be at most 253 lower case letters, digits, '-' and '.', with a letter or digit at each end and beside each '.'",
    ))
}

fn is_label(text: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    !text.is_empty() && text.bytes().all(plain) && !text.starts_with('-') && !text.ends_with('-')
}

/// A path that is absolute and leads nowhere back: `/srv/data`.
pub(super) fn path<'a>(field: &Field<'a>) -> Result<&'a str> {
    let text = field.word()?;
    if !text.starts_with('/') {
        return Err(field.wrong("must be an absolute path"));
    }
    if text.split('/').any(|part| part == "..") {
        return Err(field.wrong("must have no \"..\""));
    }
    Ok(text)
}
