//! CRI's messages, as cri/build.rs makes them, without services: the server's crates would have to be built for them.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-changed=../cri/proto");
    let descriptors = protox::compile(["api.proto"], ["../cri/proto"]).expect("api.proto");
    prost_build::Config::new()
        .message_attribute(".", "#[derive(serde::Serialize, serde::Deserialize)]")
        .message_attribute(".", "#[serde(default)]")
        .compile_fds(descriptors)
        .expect("api.proto");
}
