//! Makes Rust of `proto/api.proto` and `proto/rtc_cri.proto`, without `protoc`.

/// Its Debug is written by hand: it has secrets (`src/proto.rs`).
const SECRET: &str = ".runtime.v1.AuthConfig";

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-changed=proto");
    let descriptors = protox::compile(["api.proto"], ["proto"]).expect("proto/api.proto");
    let recorded: Vec<String> = descriptors
        .file
        .iter()
        .flat_map(|file| &file.message_type)
        .map(|message| format!(".runtime.v1.{}", message.name()))
        .filter(|name| name != SECRET && !name.ends_with("Request") && !name.ends_with("Response"))
        .collect();
    let mut generator = tonic_prost_build::configure()
        .build_transport(false)
        .skip_debug([SECRET]);
    // What requests say is kept in records (`src/journal.rs`) and shown by Status.
    for message in &recorded {
        generator = generator
            .message_attribute(message, "#[derive(serde::Serialize, serde::Deserialize)]")
            .message_attribute(message, "#[serde(default)]");
    }
    generator.compile_fds(descriptors).expect("proto/api.proto");
    let ours = protox::compile(["rtc_cri.proto"], ["proto"]).expect("proto/rtc_cri.proto");
    tonic_prost_build::configure()
        .build_transport(false)
        .compile_fds(ours)
        .expect("proto/rtc_cri.proto");
}
