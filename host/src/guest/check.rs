//! From a file's bytes to a revision that may run. Whatever is wrong is said in words, with whose move it is.

mod imports;

use std::collections::BTreeSet;
use std::sync::Arc;

use sha2::{Digest, Sha256};
use tidemill_core::lanes::Order;
use wasmtime::component::Component;

use super::engine::Engine;
use super::entry::Entry;
use super::instance::{Setup, StartError};
use super::limits::Limits;
use super::output::Speaker;
use super::revision::Revision;
use super::{Backends, CallError, Reason};
use crate::attempt::Guarantee;
use crate::capability::{Granted, Ungranted};
use crate::config::manifest::{HandlerSpec, Isolation};
use crate::metrics::HandlerMetrics;

/// The largest component that is loaded.
const COMPONENT_BYTES_MAX: usize = 256 << 20;
/// What the contract calls the export of every guest.
const HANDLER_EXPORT: &str = "tidemill:guest/handler@0.1.0";
/// What it may export beside it.
const PACKED_EXPORT: &str = "tidemill:guest/packed-handler@0.1.0";

/// Why a file is not run. What ran before goes on.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The author's move: the file has nothing in it.
    #[error("the file is empty; copy the component to a file beside it and rename that")]
    Empty,
    /// The author's move: the file is enormous.
    #[error("the file has {bytes} bytes and at most {COMPONENT_BYTES_MAX} are loaded; strip it of debug information")]
    TooLarge {
        /// Its size.
        bytes: usize,
    },
    /// The author's move: something else than WebAssembly.
    #[error(
        "the file is not WebAssembly: it begins with `{beginning}`; build a component with `cargo build --release --target wasm32-wasip2`"
    )]
    NotWasm {
        /// Its first bytes, as text.
        beginning: String,
    },
    /// The author's move: a module from before there were components.
    #[error(
        "the file is a core module and the host runs components; build it with `cargo build --release --target wasm32-wasip2`, or convert it with `wasm-tools component new MODULE.wasm --adapt wasi_snapshot_preview1.reactor.wasm -o COMPONENT.wasm`"
    )]
    CoreModule,
    /// The author's move: machine code can't be checked.
    #[error(
        "the file is precompiled machine code, which can't be checked; use the `.wasm` component that it was made from"
    )]
    Precompiled,
    /// The author's move: cut off or damaged.
    #[error("the component is broken or not whole: {0}; build and copy it again")]
    Broken(String),
    /// The author's or the operator's move: it wants what this host does not have.
    #[error("the component imports what this host does not have: {}", .0.join(", "))]
    UnknownImports(Vec<String>),
    /// The operator's move: a grant is missing, or names what is not configured.
    #[error(transparent)]
    Ungranted(#[from] Ungranted),
    /// The author's move: it is no handler.
    #[error("the component does not export `{HANDLER_EXPORT}`{}; implement the handler of the world that it is built from", exports(.0))]
    NoHandler(Vec<String>),
    /// The author's move: built against another contract of the same name.
    #[error("the component does not fit the contract: {0}; build it against this host's `wit/`")]
    Misfit(String),
    /// The guest's word: it read its set-up and won't run.
    #[error("the guest refuses to run: {}: {}", .0.code, .0.detail)]
    Refused(Reason),
    /// The author's move: it fails before its first record.
    #[error("the guest failed in `init`: {0}")]
    InitFailed(CallError),
    /// The host's own trouble.
    #[error("the host could not compile the component: {0}; try again")]
    Host(String),
}

fn exports(names: &[String]) -> String {
    if names.is_empty() { ", nor anything else".to_owned() } else { format!(", only {}", names.join(", ")) }
}

/// The digest of a component's bytes: the name of its revision.
pub(crate) fn digest(bytes: &[u8]) -> String {
    use std::fmt::Write;
    let mut text = String::with_capacity(64);
    for byte in Sha256::digest(bytes) {
        // Writing to a `String` never fails.
        write!(text, "{byte:02x}").ok();
    }
    text
}

/// With what every revision of one handler runs.
#[derive(Debug)]
pub(super) struct Plan {
    handler: Arc<str>,
    group: String,
    guarantee: Guarantee,
    order: Order,
    isolation: Isolation,
    /// What bounds each instance.
    pub(super) limits: Limits,
    granted: Arc<Granted>,
    topics: BTreeSet<Arc<str>>,
    metrics: Arc<HandlerMetrics>,
}

impl Plan {
    /// Resolves the handler's grants; a name that is not configured is refused.
    pub(super) fn new(
        spec: &HandlerSpec,
        backends: &Backends,
        metrics: &Arc<HandlerMetrics>,
    ) -> Result<Self, LoadError> {
        Ok(Self {
            handler: spec.name.as_str().into(),
            group: spec.consumer.subscription.group.clone(),
            guarantee: spec.consumer.guarantee,
            order: spec.consumer.order,
            isolation: spec.isolation,
            limits: Limits { memory_bytes_max: spec.memory_max, ..Limits::default() },
            granted: Arc::new(Granted::resolve(&spec.name, &spec.grants, &spec.config, backends)?),
            topics: spec.grants.produce.iter().map(|topic| topic.as_str().into()).collect(),
            metrics: Arc::clone(metrics),
        })
    }

    fn setup(&self, revision: Arc<str>) -> Setup {
        let speaker = Arc::new(Speaker::new(Arc::clone(&self.handler), Arc::clone(&revision), &self.limits));
        Setup {
            handler: Arc::clone(&self.handler),
            group: self.group.clone(),
            revision,
            guarantee: self.guarantee,
            order: self.order,
            limits: self.limits.clone(),
            speaker,
            granted: Arc::clone(&self.granted),
            topics: self.topics.clone(),
            metrics: Arc::clone(&self.metrics),
        }
    }
}

/// Checks, compiles, links and tries out a component with this digest.
pub(super) async fn load(
    engine: &Arc<Engine>,
    plan: &Plan,
    digest: Arc<str>,
    bytes: Vec<u8>,
) -> Result<Arc<Revision>, LoadError> {
    check_form(&bytes)?;
    let compiled =
        engine.compile(Arc::clone(&digest), bytes).await.map_err(|error| LoadError::Host(error.to_string()))?;
    take(engine, plan, digest, compiled.map_err(|error| LoadError::Broken(one_line(&error)))?).await
}

/// The same with a component of which only what it was compiled to is kept; `None` if it is not.
pub(super) async fn load_kept(
    engine: &Arc<Engine>,
    plan: &Plan,
    digest: Arc<str>,
) -> Result<Option<Arc<Revision>>, LoadError> {
    match engine.kept(&digest) {
        Some(component) => take(engine, plan, digest, component).await.map(Some),
        None => Ok(None),
    }
}

async fn take(
    engine: &Arc<Engine>,
    plan: &Plan,
    digest: Arc<str>,
    component: Component,
) -> Result<Arc<Revision>, LoadError> {
    let imports = check_imports(engine, &component, &plan.granted)?;
    let packs = check_exports(engine, &component)?;
    let linked = engine.linker().instantiate_pre(&component).and_then(|pre| Entry::new(pre, packs));
    let guest = linked.map_err(|error| LoadError::Misfit(one_line(&error)))?;
    let revision = Revision::new(engine, guest, plan.setup(digest), plan.isolation, imports);
    match revision.try_out().await {
        Ok(()) => Ok(revision),
        Err(StartError::Refused(reason)) => Err(LoadError::Refused(reason)),
        Err(StartError::Failed(error)) => Err(LoadError::InitFailed(error)),
    }
}

/// What can be told from the first bytes.
fn check_form(bytes: &[u8]) -> Result<(), LoadError> {
    const MAGIC: &[u8] = b"\0asm";
    const CORE_MODULE: &[u8] = &[1, 0, 0, 0];
    if bytes.is_empty() {
        return Err(LoadError::Empty);
    }
    if bytes.len() > COMPONENT_BYTES_MAX {
        return Err(LoadError::TooLarge { bytes: bytes.len() });
    }
    if wasmtime::Engine::detect_precompiled(bytes).is_some() {
        return Err(LoadError::Precompiled);
    }
    match bytes.strip_prefix(MAGIC) {
        Some(rest) if rest.starts_with(CORE_MODULE) => Err(LoadError::CoreModule),
        Some(_) => Ok(()),
        None => {
            let beginning = bytes[..bytes.len().min(8)].escape_ascii().to_string();
            Err(LoadError::NotWasm { beginning })
        }
    }
}

/// Every import is known, and what needs a grant has one. Done before linking, whose own words nobody understands.
fn check_imports(engine: &Engine, component: &Component, granted: &Granted) -> Result<Vec<String>, LoadError> {
    let component_type = component.component_type();
    let names: Vec<String> = component_type.imports(engine.wasm()).map(|(name, _)| name.to_owned()).collect();
    let unknown: Vec<String> = names.iter().filter_map(|name| imports::unknown(name)).collect();
    if !unknown.is_empty() {
        return Err(LoadError::UnknownImports(unknown));
    }
    granted.demands(names.iter().map(String::as_str))?;
    Ok(names)
}

/// It is a handler; and whether it takes batches in one buffer.
fn check_exports(engine: &Engine, component: &Component) -> Result<bool, LoadError> {
    let component_type = component.component_type();
    let names: Vec<String> = component_type.exports(engine.wasm()).map(|(name, _)| name.to_owned()).collect();
    let has = |export: &str| names.iter().any(|name| name == export);
    if has(HANDLER_EXPORT) { Ok(has(PACKED_EXPORT)) } else { Err(LoadError::NoHandler(names)) }
}

fn one_line(error: &wasmtime::Error) -> String {
    error.chain().map(|cause| cause.to_string().replace('\n', " ")).collect::<Vec<_>>().join(": ")
}
