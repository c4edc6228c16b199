//! A client of SPDY that is an enemy: whatever it sends, the server's end is a clean one, and what it answers is SPDY.
//!
//! The verb is an echo, so that bytes come back: each stream's are the beginning of what was sent on it.

#![no_main]
#![allow(dead_code, reason = "what the server uses of these modules")]

use std::collections::BTreeMap;
use std::time::Duration;

use libfuzzer_sys::fuzz_target;

#[path = "streaming/mod.rs"]
mod streaming;

fuzz_target!(|bytes: &[u8]| {
    let Some((how, rest)) = bytes.split_first() else {
        return;
    };
    let (sent, echo) = match how & 1 {
        0 => script(rest),
        _ => (rest.to_vec(), None),
    };
    let paired = how & 2 != 0;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .expect("a runtime");
    let done = runtime.block_on(async {
        tokio::time::timeout(Duration::from_secs(4), streaming::talk(sent, paired)).await
    });
    let received = done.expect("an end");
    // An error stream of a pair may have a text.
    check(&received, echo.as_ref().filter(|_| !paired));
});

/// What was sent on each stream.
type Sent = BTreeMap<u32, Vec<u8>>;

/// Makes frames of what the fuzzer says: (what, length, bytes) again and again. Headers go through as a fuzzer can't pack them.
fn script(mut rest: &[u8]) -> (Vec<u8>, Option<Sent>) {
    let (mut out, mut sent, mut next, mut packed) = (Vec::new(), Sent::new(), 1_u32, false);
    let mut raw = false;
    while let Some(([what, length], tail)) = rest.split_first_chunk() {
        let (payload, tail) = tail.split_at(tail.len().min(usize::from(*length)));
        rest = tail;
        let stream = |byte: Option<&u8>| byte.map_or(1, |byte| u32::from(byte % 16) * 2 + 1);
        match what % 8 {
            0 => {
                let block = stored(payload, &mut packed);
                control(&mut out, 1, what >> 6, &[&next.to_be_bytes(), &[0; 6], &block]);
                next += 2;
            }
            1 | 2 => {
                let id = stream(payload.first());
                let data = payload.get(1..).unwrap_or_default();
                // Of one that is not open yet, it goes nowhere.
                if id < next {
                    sent.entry(id).or_default().extend(data);
                }
                out.extend(id.to_be_bytes());
                out.extend([u8::from(what % 8 == 2), 0, 0, data.len() as u8]);
                out.extend(data);
            }
            3 => {
                let id = stream(payload.first());
                control(&mut out, 3, 0, &[&id.to_be_bytes(), &5_u32.to_be_bytes()]);
            }
            4 => control(&mut out, 6, 0, &[&u32::from(*length).to_be_bytes()]),
            5 => {
                let block = stored(payload, &mut packed);
                control(&mut out, 8, what >> 6, &[&1_u32.to_be_bytes(), &block]);
            }
            6 => control(&mut out, what >> 3, 0, &[payload]),
            _ => {
                raw = true;
                out.extend(payload);
            }
        }
    }
    // Raw bytes may be data of any stream.
    (out, (!raw).then_some(sent))
}

fn control(out: &mut Vec<u8>, kind: u8, flags: u8, parts: &[&[u8]]) {
    let payload = parts.concat();
    out.extend([0x80, 3, 0, kind, flags, 0]);
    out.extend((payload.len() as u16).to_be_bytes());
    out.extend(payload);
}

/// A block that is stored, as zlib reads it.
fn stored(plain: &[u8], packed: &mut bool) -> Vec<u8> {
    let mut block = Vec::new();
    if !std::mem::replace(packed, true) {
        block.extend([0x78, 0x20, 0xe3, 0xc6, 0xa7, 0xc2]);
    }
    let length = plain.len() as u16;
    block.push(0);
    block.extend(length.to_le_bytes());
    block.extend((!length).to_le_bytes());
    block.extend(plain);
    block
}

/// Whole frames, of streams that were replied to and have not ended; what comes back is what was sent.
fn check(mut received: &[u8], sent: Option<&Sent>) {
    // Whether it is open, and what has come.
    let mut streams = BTreeMap::<u32, (bool, Vec<u8>)>::new();
    while !received.is_empty() {
        let (head, rest) = received.split_first_chunk::<8>().expect("a whole head");
        let first = u32::from_be_bytes([head[0], head[1], head[2], head[3]]);
        let length = u32::from_be_bytes([0, head[5], head[6], head[7]]) as usize;
        let (payload, rest) = rest.split_at_checked(length).expect("a whole frame");
        received = rest;
        if first >> 31 == 0 {
            let (open, data) = streams.get_mut(&first).expect("a reply before data");
            assert!(*open, "data after the end of {first}");
            data.extend(payload);
            *open = head[4] & 1 == 0;
            continue;
        }
        let word = |at: usize| u32::from_be_bytes(payload[at..at + 4].try_into().expect("a word"));
        match first {
            0x8003_0002 => {
                let before = streams.insert(word(0), (true, Vec::new()));
                assert!(before.is_none(), "two replies");
            }
            0x8003_0003 => {
                assert_eq!(length, 8);
                if let Some((open, _)) = streams.get_mut(&word(0)) {
                    *open = false;
                }
            }
            0x8003_0006 => assert_eq!(length, 4),
            0x8003_0007 => {
                assert_eq!(length, 8);
                assert!(received.is_empty(), "something after GOAWAY");
            }
            other => panic!("a frame of type {other:x}"),
        }
    }
    let Some(sent) = sent else { return };
    for (id, (_, data)) in streams {
        let sent = sent.get(&id).map(Vec::as_slice).unwrap_or_default();
        assert!(sent.starts_with(&data), "another echo of {id}");
    }
}
