//! A journal: the last record of each key, on disk.
//!
//! ```text
//! one file, a JSON line for each change:   {"put":"<key>","record":{...}}   {"drop":"<key>"}
//! open: the last line of each key counts; a line that can't be read is put aside (<file>.quarantine) and said
//! compact: at open, and when most lines are old: written beside it, renamed over it
//! ```
//!
//! With plain `write(2)` it survives the death of its process, not that of the machine: what dies with the machine needs no
//! more. `Durable` adds `fdatasync`, for what outlives it.
