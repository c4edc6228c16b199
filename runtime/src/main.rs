//! `rtc`.
fn main() {}
