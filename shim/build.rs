//! Sets the entry of the executable (it seals itself before libc starts: `rtc_runtime::sys`, `early`), and makes Rust of
//! `proto/`, without `protoc`.

use std::path::Path;
use std::{env, fs};

use ttrpc_codegen::{Codegen, Customize};

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-changed=proto");
    let of_cargo = |name: &str| env::var(name).unwrap_or_default();
    if of_cargo("CARGO_CFG_TARGET_ARCH") == "x86_64" && of_cargo("OPT_LEVEL") != "0" {
        println!("cargo:rustc-link-arg-bins=-Wl,--undefined=shim_entry,-e,shim_entry");
    }
    let out = of_cargo("OUT_DIR");
    for name in ["rtc_shim", "pod_sandbox"] {
        let directory = Path::new(&out).join(name);
        fs::create_dir_all(&directory).expect("a directory below OUT_DIR");
        Codegen::new()
            .input(format!("proto/{name}.proto"))
            .include("proto")
            .rust_protobuf()
            .customize(Customize {
                async_all: true,
                ..Customize::default()
            })
            .out_dir(&directory)
            .run()
            .unwrap_or_else(|error| panic!("proto/{name}.proto: {error}"));
        for file in fs::read_dir(&directory).expect("what was generated").flatten() {
            without_inner_attributes(&file.path());
        }
    }
}

/// `include!` takes no file with attributes of its own.
fn without_inner_attributes(path: &Path) {
    let generated = fs::read_to_string(path).expect("a generated file");
    let lines: Vec<&str> = generated
        .lines()
        .filter(|line| !line.starts_with("#!") && !line.starts_with("//!"))
        .collect();
    fs::write(path, lines.join("\n")).expect("a generated file");
}
