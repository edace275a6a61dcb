//! The servers that faults are done to: each is started when it is first needed and serves all rows after that.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use tempfile::TempDir;
use xtask::lab::kafka::{Kafka, Options};
use xtask::lab::port;
use xtask::lab::postgres::Postgres;

use crate::proxy::{Link, Proxy};

/// Clusters and a database.
#[derive(Default)]
pub struct Lab {
    one: Option<Cluster>,
    three: Option<Cluster>,
    small: Option<Cluster>,
    database: Option<Database>,
}

/// A cluster, and proxies before its nodes.
pub struct Cluster {
    /// The nodes.
    pub kafka: Kafka,
    /// A proxy for each, for clients that come through them.
    pub proxies: Vec<Proxy>,
    /// The disk of the lone node, where it is a small one.
    pub disk: Option<Disk>,
}

/// A database server, and a proxy before it.
pub struct Database {
    /// The server.
    pub postgres: Postgres,
    /// The proxy.
    pub proxy: Proxy,
}

/// A file system in memory that can be filled.
pub struct Disk {
    folder: TempDir,
}

/// Which cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Which {
    /// One node.
    One,
    /// Three nodes.
    Three,
    /// One node with a small disk.
    Small,
}

impl Lab {
    /// A cluster, which the first caller starts.
    pub fn cluster(&mut self, which: Which) -> Result<&mut Cluster> {
        let place = match which {
            Which::One => &mut self.one,
            Which::Three => &mut self.three,
            Which::Small => &mut self.small,
        };
        if place.is_none() {
            *place = Some(Cluster::start(which)?);
        }
        place.as_mut().context("it was started")
    }

    /// The database, which the first caller starts.
    pub fn database(&mut self) -> Result<&mut Database> {
        if self.database.is_none() {
            let postgres = Postgres::start_new()?;
            let [port] = port::free::<1>()?;
            let proxy = Proxy::start(port, postgres.port())?;
            self.database = Some(Database { postgres, proxy });
        }
        self.database.as_mut().context("it was started")
    }

    /// Makes every link carry again and every server serve again, whatever was done to them.
    pub fn mend(&mut self) -> Result<()> {
        for cluster in [&mut self.one, &mut self.three, &mut self.small].into_iter().flatten() {
            cluster.proxies.iter().for_each(|proxy| proxy.set(Link::Open));
            if let Some(disk) = &cluster.disk {
                disk.clear()?;
            }
            for node in 1..=u16::try_from(cluster.proxies.len())? {
                cluster.kafka.resume(node)?;
                if cluster.kafka.has_ended(node)? {
                    cluster.kafka.start(node)?;
                }
            }
        }
        if let Some(database) = &mut self.database {
            database.proxy.set(Link::Open);
            if database.postgres.has_ended()? {
                database.postgres.start()?;
            }
        }
        Ok(())
    }

    /// Ends a cluster that is not needed any more.
    pub fn end(&mut self, which: Which) {
        match which {
            Which::One => self.one = None,
            Which::Three => self.three = None,
            Which::Small => self.small = None,
        }
    }
}

impl Cluster {
    fn start(which: Which) -> Result<Cluster> {
        let disk = (which == Which::Small).then(Disk::mount).transpose()?;
        let data = disk.as_ref().map(|disk| disk.path().join("log"));
        let nodes = if which == Which::Three { 3 } else { 1 };
        let kafka = Kafka::start_with(&Options { nodes, data, authorizes: which == Which::One })?;
        let proxies = kafka.fronts().iter().map(|front| Proxy::start(front.port, front.to)).collect::<Result<_>>()?;
        Ok(Cluster { kafka, proxies, disk })
    }
}

impl Disk {
    const SIZE: &str = "size=96m";

    /// Needs the right to mount.
    fn mount() -> Result<Disk> {
        let folder = tempfile::Builder::new().prefix("tidemill-disk-").tempdir()?;
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", Disk::SIZE, "tmpfs"]).arg(folder.path());
        let output = mount.output().context("run `mount`")?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr).trim());
        Ok(Disk { folder })
    }

    /// Whether this process may mount one.
    pub fn is_possible() -> Result<()> {
        Disk::mount().map(drop)
    }

    fn path(&self) -> &Path {
        self.folder.path()
    }

    /// Takes all that is free.
    pub fn fill(&self) -> Result<()> {
        let mut file = fs::File::create(self.path().join("ballast"))?;
        // It ends by the error that the disk is full.
        match std::io::copy(&mut std::io::repeat(0), &mut file) {
            Ok(_) => anyhow::bail!("the disk has no end"),
            Err(error) => ensure!(error.kind() == std::io::ErrorKind::StorageFull, "fill the disk: {error}"),
        }
        Ok(())
    }

    /// Gives it back.
    pub fn clear(&self) -> Result<()> {
        let ballast = self.path().join("ballast");
        if ballast.exists() {
            fs::remove_file(ballast)?;
        }
        Ok(())
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let unmounted = Command::new("umount").arg("--lazy").arg(self.path()).status();
        if !unmounted.as_ref().is_ok_and(std::process::ExitStatus::success) {
            eprintln!("`{}` stays mounted: {unmounted:?}", self.path().display());
        }
    }
}
