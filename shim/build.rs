//! Sets the entry of the executable: it seals itself before libc starts (`rtc_runtime::sys`, `early`).

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    let of_cargo = |name: &str| std::env::var(name).unwrap_or_default();
    if of_cargo("CARGO_CFG_TARGET_ARCH") == "x86_64" && of_cargo("OPT_LEVEL") != "0" {
        println!("cargo:rustc-link-arg-bins=-Wl,--undefined=shim_entry,-e,shim_entry");
    }
}
