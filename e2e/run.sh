#!/bin/sh
# The end-to-end tests. Two at a time at most, and one where it cordons nodes or ends agents of the lab that they share.
set -eu
cd "$(dirname "$0")/.."
cargo build --quiet --package tideover-e2e --bins
# An error tells its whole chain; a backtrace through the test runner would only bury it.
export RUST_LIB_BACKTRACE=0
exec cargo test --package tideover-e2e --test cluster -- --test-threads=2 "$@"
