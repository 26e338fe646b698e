#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| ksm_scale_operator_fuzz::raw_reviews(input));
