#![no_main]

use lease_sharding::fuzz::TARGETS;

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    let named = TARGETS.iter().find(|(name, _)| *name == "protocol");
    named.expect("a target").1(input);
});
