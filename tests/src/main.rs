//! The outside tests.
fn main() {}
