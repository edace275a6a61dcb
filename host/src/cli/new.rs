//! `tidemill new` and `tidemill build`: from nothing to a component.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail, ensure};

/// The target that makes components.
const TARGET: &str = "wasm32-wasip2";

/// The files of a new project; `{name}`, `{crate}` and `{sdk}` are filled in.
const TEMPLATE: [(&str, &str); 4] = [
    ("Cargo.toml", include_str!("new/Cargo.toml")),
    ("src/lib.rs", include_str!("new/lib.rs")),
    ("handler.toml", include_str!("new/handler.toml")),
    ("README.md", include_str!("new/README.md")),
];

/// Flags of `tidemill new`.
#[derive(Debug, clap::Args)]
pub struct NewArgs {
    /// The handler's name, which is also its folder's.
    name: String,
    /// A checkout of Tidemill whose SDK the project uses; by default the one that this binary was built from.
    #[arg(long)]
    sdk: Option<PathBuf>,
}

/// Flags of `tidemill build`.
#[derive(Debug, clap::Args)]
pub struct BuildArgs {
    /// The handler's project.
    #[arg(default_value = ".")]
    folder: PathBuf,
    /// Where to copy the component, for example a handler's folder; it is renamed into place.
    #[arg(long)]
    into: Option<PathBuf>,
}

/// Writes the project.
pub fn new(args: &NewArgs) -> anyhow::Result<()> {
    let name = &args.name;
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    ensure!(
        name.starts_with(|c: char| c.is_ascii_lowercase()) && name.chars().all(plain),
        "`{name}` can't be a handler's name; use small letters, digits and `-`, beginning with a letter"
    );
    let folder = Path::new(name);
    ensure!(!folder.exists(), "`{name}` exists already; choose another name, or remove it first");
    for (file, template) in TEMPLATE {
        let path = folder.join(file);
        fs::create_dir_all(path.parent().unwrap_or(folder)).with_context(|| format!("can't make `{name}`"))?;
        let text =
            template.replace("{name}", name).replace("{crate}", &name.replace('-', "_")).replace("{sdk}", &sdk(args));
        fs::write(&path, text).with_context(|| format!("can't write `{}`", path.display()))?;
    }
    super::say(&format!(
        "{name}/ is ready:\n  cd {name}\n  cargo test          runs the handler natively, without a broker\n  tidemill build      makes the component"
    ))?;
    Ok(())
}

/// How the project names the SDK in its Cargo.toml.
fn sdk(args: &NewArgs) -> String {
    let checkout = args.sdk.clone().unwrap_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join(".."));
    match checkout.join("guest-sdk").canonicalize() {
        Ok(path) => format!("{{ path = {:?} }}", path.display().to_string()),
        Err(_) => format!("{:?}", env!("CARGO_PKG_VERSION")),
    }
}

/// Builds the component and says where it is.
pub fn build(args: &BuildArgs) -> anyhow::Result<()> {
    let manifest = args.folder.join("Cargo.toml");
    ensure!(
        manifest.is_file(),
        "`{}` is not there; run this in a handler's project, or name its folder",
        manifest.display()
    );
    ensure_target()?;
    let status = Command::new("cargo")
        .args(["build", "--release", "--target", TARGET, "--manifest-path"])
        .arg(&manifest)
        .status()
        .context("can't run cargo; install Rust from https://rustup.rs")?;
    ensure!(status.success(), "the build failed; the compiler's message is above");
    let component = component(&manifest)?;
    let Some(into) = &args.into else {
        super::say(&component.display().to_string())?;
        return Ok(());
    };
    let target = into.join(component.file_name().context("a component has a name")?);
    let half = target.with_extension("wasm.tmp");
    fs::copy(&component, &half)
        .and_then(|_| fs::rename(&half, &target))
        .with_context(|| format!("can't copy to `{}`; is the folder there?", target.display()))?;
    super::say(&target.display().to_string())?;
    Ok(())
}

/// Whether the compiler can build components; otherwise the command that makes it so.
fn ensure_target() -> anyhow::Result<()> {
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let output = Command::new(&rustc).args(["--print", "target-libdir", "--target", TARGET]).output();
    let folder = match output {
        Ok(output) => PathBuf::from(String::from_utf8_lossy(&output.stdout).trim()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            bail!("there is no `rustc`; install Rust from https://rustup.rs")
        }
        Err(error) => return Err(error).context("can't run `rustc`"),
    };
    let has_std = fs::read_dir(&folder)
        .into_iter()
        .flatten()
        .flatten()
        .any(|entry| entry.file_name().to_string_lossy().starts_with("libstd-"));
    ensure!(has_std, "the target {TARGET} is missing; run: rustup target add {TARGET}");
    Ok(())
}

/// The component that cargo built, as its metadata names it.
fn component(manifest: &Path) -> anyhow::Result<PathBuf> {
    let output = Command::new("cargo")
        .args(["metadata", "--no-deps", "--format-version", "1", "--manifest-path"])
        .arg(manifest)
        .output()
        .context("can't run cargo metadata")?;
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout).context("cargo metadata gave no JSON")?;
    let target = metadata["target_directory"].as_str().context("cargo metadata names no target folder")?;
    let wanted = manifest.canonicalize().context("the manifest is gone")?;
    let name = metadata["packages"]
        .as_array()
        .into_iter()
        .flatten()
        .find(|package| package["manifest_path"].as_str().is_some_and(|path| Path::new(path) == wanted))
        .and_then(|package| package["name"].as_str())
        .context("cargo metadata does not name this package")?;
    let file = format!("{}.wasm", name.replace('-', "_"));
    let path = Path::new(target).join(TARGET).join("release").join(file);
    ensure!(path.is_file(), "`{}` was not made; does Cargo.toml say crate-type = [\"cdylib\"]?", path.display());
    Ok(path)
}
