//! Measures the engines that could carry the pool's membership, side by side on this machine: five
//! processes on loopback each. `cargo run --release -- --engine all --json FILE`; `--builds` adds the
//! build times (minutes).

mod builds;
mod cluster;
mod engine;
mod measure;
mod pki;
mod relay;
mod report;

use std::path::PathBuf;

use clap::Parser;

use crate::report::Row;

#[derive(Debug, Parser)]
struct Options {
    /// foca, chitchat, zenoh or all; may be repeated.
    #[arg(long, default_value = "all")]
    engine: Vec<String>,
    /// Writes the figures there.
    #[arg(long)]
    json: Option<PathBuf>,
    /// Measures clean builds as well.
    #[arg(long)]
    builds: bool,
    /// Kills and silences, each so often.
    #[arg(long, default_value_t = 20)]
    runs: usize,
    /// How long the bad network lasts, in seconds.
    #[arg(long, default_value_t = 25)]
    lossy_seconds: u64,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let options = Options::parse();
    let engines = engine::select(&options.engine)?;
    let pki = pki::Pki::new()?;
    let mut rows = Vec::new();
    for engine in engines {
        builds::build(engine)?;
        eprintln!("{}: measuring", engine.name);
        let plan = measure::Plan { engine, pki: pki.path(), runs: options.runs, lossy_seconds: options.lossy_seconds };
        let figures = measure::all(&plan).await?;
        let build = options.builds.then(|| builds::clean(engine)).transpose()?;
        let packages = builds::packages(engine)?;
        rows.push(Row { engine: engine.name, facts: engine.facts(), figures, build, packages });
    }
    println!("{}", report::table(&rows));
    if let Some(path) = options.json {
        std::fs::write(path, serde_json::to_string_pretty(&rows)?)?;
    }
    Ok(())
}
