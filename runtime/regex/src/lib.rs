//! [`regex_lite`], by the same authors as `regex` and with the same API, under its name.
//!
//! oci-spec checks `process.execCPUAffinity` by one regular expression, `^(\d+(-\d+)?)(,\d+(-\d+)?)*$`, and for that
//! links all of `regex` into everything that parses a configuration: a static program that does is 2,534 KB with `regex`
//! and 1,521 KB with `regex-lite`. The difference is 40% of what `rtc` may weigh.
//!
//! The patterns here are ASCII. A crate of the workspace that one day needs what `regex-lite` leaves out (`RegexSet`,
//! `bytes`, Unicode classes) does not compile against this, and has to find another way then; prost-build does.

pub use regex_lite::*;
