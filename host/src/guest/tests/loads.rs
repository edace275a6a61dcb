//! What is run, and what is refused with whose move it is.

use expect_test::{Expect, expect};

use super::*;

#[tokio::test]
async fn what_is_no_component_is_refused_with_what_to_build() {
    refused(b"", expect!["the file is empty; copy the component to a file beside it and rename that"]).await;
    refused(
        b"#!/bin/sh\n",
        expect!["the file is not WebAssembly: it begins with `#!/bin/s`; build a component with `cargo build --release --target wasm32-wasip2`"],
    )
    .await;
    refused(
        &wat::parse_str(Odd::default().module()).expect("text"),
        expect!["the file is a core module and the host runs components; build it with `cargo build --release --target wasm32-wasip2`, or convert it with `wasm-tools component new MODULE.wasm --adapt wasi_snapshot_preview1.reactor.wasm -o COMPONENT.wasm`"],
    )
    .await;
    let precompiled = engine().wasm().precompile_component(&Odd::default().build()).expect("it compiles");
    refused(
        &precompiled,
        expect!["the file is precompiled machine code, which can't be checked; use the `.wasm` component that it was made from"],
    )
    .await;
}

#[tokio::test]
async fn a_file_that_is_cut_off_or_damaged_is_refused() {
    let whole = Odd::default().build();
    for length in [4, 9, whole.len() / 2, whole.len() - 1] {
        let error = Test::default().load(whole[..length].to_vec()).await.expect_err("it is cut off");
        assert!(matches!(error, LoadError::Broken(_)), "{length}: {error}");
    }
    let mut damaged = whole;
    let middle = damaged.len() / 2;
    damaged[middle..middle + 16].fill(0xff);
    let error = Test::default().load(damaged).await.expect_err("it is damaged");
    assert!(matches!(error, LoadError::Broken(_)), "{error}");
}

#[tokio::test]
async fn imports_are_refused_by_name_with_what_to_do() {
    let importing = |imports| Odd { imports, ..Odd::default() }.build();
    refused(
        &importing(r#"(import "acme:thing/x@1.0.0" (instance)) (import "wasi:cli/stdout@0.3.0" (instance))"#),
        expect!["the component imports what this host does not have: `acme:thing/x@1.0.0`, `wasi:cli/stdout@0.3.0` (this host has `wasi:cli/stdout@0.2`)"],
    )
    .await;
    refused(
        &importing(r#"(import "tidemill:guest/sql@0.1.0" (instance))"#),
        expect![[r#"the guest imports `tidemill:guest/sql@0.1.0`, but nothing of it is granted; add `sql = ["NAME"]` under `[grants]` in the handler's manifest, or build the guest without the import"#]],
    )
    .await;
    let misfit = importing(r#"(import "wasi:cli/stdout@0.2.0" (instance (export "get-nothing" (func))))"#);
    let error = Test::default().load(misfit).await.expect_err("there is no such function");
    assert!(matches!(error, LoadError::Misfit(_)), "{error}");
}

#[tokio::test]
async fn a_component_that_is_no_handler_is_refused() {
    refused(
        &wat::parse_str("(component)").expect("text"),
        expect!["the component does not export `tidemill:guest/handler@0.1.0`, nor anything else; implement the handler of the world that it is built from"],
    )
    .await;
}

#[tokio::test]
async fn a_guest_that_does_not_get_through_init_is_refused() {
    refused(&prebuilt("refusing"), expect!["the guest refuses to run: refusing: this guest always refuses"]).await;
    let trapping = Odd { init: "unreachable", ..Odd::default() };
    let error = Test::default().load(trapping.build()).await.expect_err("it traps");
    assert!(
        error.to_string().starts_with("the guest failed in `init`: trap: wasm `unreachable` instruction executed"),
        "{error}"
    );
    let looping = Odd { init: "(loop $for_ever (br $for_ever))", ..Odd::default() };
    let limits = Limits { init_deadline: Duration::from_millis(50), ..Limits::default() };
    let error = Test { limits, ..Test::default() }.load(looping.build()).await.expect_err("it loops");
    assert_eq!(error.to_string(), "the guest failed in `init`: deadline: the guest did not return before its deadline");
    let limits = Limits { memory_bytes_max: 1 << 20, ..Limits::default() };
    let error = Test { limits, ..Test::default() }.load(Odd::default().build()).await.expect_err("it needs 17 pages");
    assert!(error.to_string().starts_with("the guest failed in `init`: memory: "), "{error}");
}

#[tokio::test]
async fn a_grant_of_what_is_not_configured_is_refused() {
    let test = Test { manifest: "grants.sql = [\"main\"]", ..Test::default() };
    let error = test.load(Odd::default().build()).await.expect_err("there is no such database");
    expect!["`grants.sql` names `main`, which is not configured; add `[sql.main]` to tidemill.toml"]
        .assert_eq(&error.to_string());
}

async fn refused(bytes: &[u8], expected: Expect) {
    let error = Test::default().load(bytes.to_vec()).await.expect_err("it is refused");
    expected.assert_eq(&error.to_string());
}
