//! System calls: the only module with `unsafe`.
