//! A message of Kubernetes' channel protocols from an enemy: an error for the close frame, or what is meant, for a channel that
//! there is. What is written is read again.

#![no_main]
#![allow(dead_code, reason = "what the server uses of it")]

use libfuzzer_sys::fuzz_target;

#[path = "../../cri/src/streaming/websocket/channel.rs"]
mod channel;

use channel::{Codec, Incoming, Violation};

fuzz_target!(|bytes: &[u8]| {
    let Some(([how, channels], message)) = bytes.split_first_chunk() else {
        return;
    };
    let codec = if how & 1 == 0 { Codec::Binary } else { Codec::Base64 };
    let closes = how & 2 != 0;
    match channel::parse(message, codec, closes, *channels) {
        Ok(Incoming::Nothing) => {}
        Ok(Incoming::End(channel)) => assert!(closes && channel < *channels),
        Ok(Incoming::Data(channel, data)) => {
            assert!(channel < *channels);
            assert!(data.len() < message.len());
            // Of base64 there are several ways to write the same; ours is one of them.
            let again = channel::message(channel, &data, codec);
            if codec == Codec::Binary {
                assert_eq!(again, message);
            }
            if channel < 79 {
                let read = channel::parse(&again, codec, closes, *channels);
                assert_eq!(read, Ok(Incoming::Data(channel, data)));
            }
        }
        // A close frame has room for 123 bytes.
        Err(Violation(why)) => assert!((1..=123).contains(&why.len())),
    }
});
