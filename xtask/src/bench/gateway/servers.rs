//! The servers under test, each on the first CPU alone.

use std::fs;
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context as _, Result};
use integration_tests::agent::{Settings, TestAgent};
use integration_tests::netns::NetNs;
use integration_tests::process::Process;
use tempfile::TempDir;

use super::Context;

const PATIENCE: Duration = Duration::from_secs(20);
/// Keeps what follows on the first CPU and replaces itself with it.
const ON_FIRST_CPU: [&str; 3] = ["taskset", "--cpu-list", "0"];

/// An agent called alpha with these tables besides.
pub(super) fn agent<'a>(host: &'a NetNs, context: &Context, tables: &str) -> Result<TestAgent<'a>> {
    let settings = Settings::new("alpha")?.binary(&context.weft).addresses(&["10.80.0.1/24"]);
    let settings = settings.wireguard("backend = \"userspace\"").table(tables);
    let mut agent = TestAgent::prepare(host, settings)?;
    agent.launch_under(&ON_FIRST_CPU)?;
    agent.wait_until_ready()?;
    Ok(agent)
}

/// A running nginx with one worker.
pub(super) struct Nginx {
    process: Process,
    pub(super) address: SocketAddr,
    _directory: TempDir,
}

impl Nginx {
    pub(super) fn pid(&self) -> u32 {
        self.process.pid()
    }
}

/// An nginx that serves what `/ping` answers from a file it keeps open.
pub(super) fn nginx_static(host: &NetNs) -> Result<Nginx> {
    nginx(host, "127.0.0.1:8081", |directory| {
        format!("location / {{ root {directory}; default_type \"application/json; charset=utf-8\"; }}")
    })
}

fn nginx(host: &NetNs, listen: &str, server: impl FnOnce(&str) -> String) -> Result<Nginx> {
    let directory = TempDir::with_prefix("weft-bench-")?;
    let at = directory.path().to_str().context("the path is text")?;
    fs::write(directory.path().join("ping"), "\"alpha\"\n")?;
    let server = server(at);
    let text = format!(
        "daemon off; master_process off; pid {at}/pid; error_log {at}/error.log; worker_rlimit_nofile 16384;\n\
         events {{ worker_connections 12000; }}\n\
         http {{ access_log off; client_body_temp_path {at}/body; proxy_temp_path {at}/proxy;\n\
         fastcgi_temp_path {at}/fastcgi; uwsgi_temp_path {at}/uwsgi; scgi_temp_path {at}/scgi;\n\
         sendfile on; tcp_nopush on; keepalive_requests 1000000000; open_file_cache max=16; open_file_cache_valid 1h;\n\
         server {{ listen {listen}; add_header x-content-type-options nosniff; {server} }} }}\n"
    );
    let file = directory.path().join("nginx.conf");
    fs::write(&file, text)?;
    let mut command = host.command(ON_FIRST_CPU[0]);
    command.args(&ON_FIRST_CPU[1..]).arg("nginx").arg("-c").arg(&file).arg("-e").arg(format!("{at}/start.log"));
    let mut process = Process::spawn("nginx", command)?;
    let address: SocketAddr = listen.parse()?;
    let accepts = || host.enter(|| TcpStream::connect(address).is_ok()).unwrap_or(false);
    process.wait_for("nginx accepts", PATIENCE, accepts)?;
    Ok(Nginx { process, address, _directory: directory })
}
