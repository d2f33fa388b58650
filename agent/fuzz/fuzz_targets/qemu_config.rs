#![no_main]

libfuzzer_sys::fuzz_target!(|octets: &[u8]| kvmeter_fuzz::descriptions::run_qemu_config(octets));
