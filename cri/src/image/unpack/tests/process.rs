//! The unpacker as a process of its own, and the whole way of an image.

/// What `layer.rs` starts instead of `rtc-cri` in tests.
#[test]
#[ignore = "it is the unpacker of other tests"]
fn the_unpacker() {
    let Ok(arguments) = std::env::var("LAYER") else {
        return;
    };
    let arguments = arguments
        .split(' ')
        .map(Into::into)
        .collect::<Vec<std::ffi::OsString>>();
    // The harness's words are over by now.
    let _ = super::super::main(arguments.into_iter());
    std::process::exit(0);
}
