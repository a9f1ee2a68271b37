//! Has the crasher begin with its own instructions instead of the C library's: see `src/crasher.rs`.

fn main() {
    println!("cargo::rustc-link-arg-bin=crasher=-Wl,--entry=first_instruction");
    println!("cargo::rerun-if-changed=build.rs");
}
