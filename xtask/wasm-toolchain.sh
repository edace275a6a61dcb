#!/usr/bin/env bash
# Makes a private Rust toolchain with wasm32 targets out of Debian's packages, for machines on which
# `rustup target add wasm32-wasip2` cannot reach its server. Installs nothing: it only unpacks into DIR.
# usage: wasm-toolchain.sh DIR [target...]     (default: wasm32-wasip2)
set -euo pipefail
P=$(mkdir -p "${1:?usage: $0 DIR [target...]}" && cd "$1" && pwd); shift
[ $# -gt 0 ] || set -- wasm32-wasip2
CARGO=${CARGO:-$(rustup which cargo)}; HOST=x86_64-unknown-linux-gnu
VER=$(apt-cache policy rustc-web | awk '/Candidate:/{print $2}')                 # 1.96.0+dfsg1-1~deb12u2
STD=libstd-rust-web-$(echo "$VER" | cut -d. -f1,2)
LLVM=$(apt-cache show "$STD" | grep -oE 'libllvm[0-9]+' | head -1 | tr -dc 0-9)    # 22
mkdir -p "$P/deb" && cd "$P/deb"
apt-get -q download rustc-web "$STD" libstd-rust-web-dev rust-web-src rust-web-llvm "libllvm$LLVM" "lld-$LLVM" wasi-libc >/dev/null 2>&1
for d in *.deb; do dpkg -x "$d" "$P"; done
U=$P/usr; TOOLS=$U/lib/rustlib/$HOST/bin
ln -sfn "../../../../bin/lld-$LLVM" "$TOOLS/rust-lld"
ln -sfn "../../../../../bin/lld-$LLVM" "$TOOLS/gcc-ld/wasm-ld"
mkdir -p "$P/bin"          # a front for rustc that finds its libraries where they were unpacked
printf '#!/bin/sh\nLD_LIBRARY_PATH="%s${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}" exec "%s" "$@"\n' "$U/lib/x86_64-linux-gnu" "$U/bin/rustc" > "$P/bin/rustc"
chmod +x "$P/bin/rustc"; ln -sfn "$CARGO" "$P/bin/cargo"
ln -sfn usr/lib "$P/lib"   # so that `rustup toolchain link NAME DIR` accepts it
mkdir -p "$P/std/src" && cd "$P/std" && : > src/lib.rs
printf '[package]\nname = "mkstd"\nversion = "0.0.0"\nedition = "2021"\n[workspace]\n[profile.release]\npanic = "abort"\n' > Cargo.toml
for t in "$@"; do
  L=$U/lib/rustlib/$t/lib; mkdir -p "$L/self-contained"
  case $t in wasm32-wasi*) cp "$U"/lib/wasm32-wasi/{libc.a,crt1-command.o,crt1-reactor.o} "$L/self-contained/";; esac
  env -u CARGO_TARGET_DIR RUSTC="$P/bin/rustc" RUSTC_BOOTSTRAP=1 \
    RUSTFLAGS="-C embed-bitcode=yes --remap-path-prefix=$U/lib/rustlib/src/rust=/rustc --remap-path-prefix=${CARGO_HOME:-$HOME/.cargo}/registry/src=/registry" \
    "$CARGO" build -q --release -Z build-std=std,panic_abort --target "$t"
  rm -f "$L"/*.rlib; cp "target/$t/release/deps/"*.rlib "$L/"; rm -f "$L"/libmkstd-*.rlib
done
rm -rf "$P/deb" "$P/std/target" "$U/src" "$U/lib/rustlib/src" "$U/share"
"$P/bin/rustc" -V; du -sh "$P"
