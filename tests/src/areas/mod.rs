//! The tests, one file per area.

mod lifecycle;
