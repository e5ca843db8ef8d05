//! The servers: the one under test on the first CPU alone, one behind it on the second.

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
/// Keeps what follows on one CPU and replaces itself with it.
const fn on_cpu(cpu: &str) -> [&str; 3] {
    ["taskset", "--cpu-list", cpu]
}
/// The CPU of the server under test, and the one of everything else.
const TESTED: &str = "0";
const OTHER: &str = "1";

/// An agent called alpha with these tables besides.
pub(super) fn agent<'a>(host: &'a NetNs, context: &Context, tables: &str) -> Result<TestAgent<'a>> {
    let settings = Settings::new("alpha")?.binary(&context.weft).addresses(&["10.80.0.1/24"]);
    let settings = settings.wireguard("backend = \"userspace\"").table(tables);
    let mut agent = TestAgent::prepare(host, settings)?;
    agent.launch_under(&on_cpu(TESTED))?;
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
    nginx(host, "127.0.0.1:8081", TESTED, |directory| (String::new(), of_files(directory)))
}

/// The same as a server behind the one under test, on the CPU of the generator.
pub(super) fn nginx_behind(host: &NetNs) -> Result<Nginx> {
    let cpu = if std::thread::available_parallelism().is_ok_and(|count| count.get() > 1) { OTHER } else { TESTED };
    nginx(host, "127.0.0.1:8082", cpu, |directory| (String::new(), of_files(directory)))
}

/// An nginx that passes requests on to `behind` over connections it keeps.
pub(super) fn nginx_proxy(host: &NetNs, behind: SocketAddr) -> Result<Nginx> {
    nginx(host, "127.0.0.1:8083", TESTED, |_directory| {
        let upstream = format!("upstream behind {{ server {behind}; keepalive 128; keepalive_requests 1000000000; }}");
        let location = "location / { proxy_pass http://behind; proxy_http_version 1.1; proxy_set_header Connection \"\"; \
                        proxy_set_header Host $host; proxy_set_header X-Forwarded-For $remote_addr; }";
        (upstream, location.to_owned())
    })
}

fn of_files(directory: &str) -> String {
    format!("location / {{ root {directory}; default_type \"application/json; charset=utf-8\"; }}")
}

fn nginx(host: &NetNs, listen: &str, cpu: &str, tables: impl FnOnce(&str) -> (String, String)) -> Result<Nginx> {
    let directory = TempDir::with_prefix("weft-bench-")?;
    let at = directory.path().to_str().context("the path is text")?;
    fs::write(directory.path().join("ping"), "\"alpha\"\n")?;
    let (upstream, server) = tables(at);
    let text = format!(
        "daemon off; master_process off; pid {at}/pid; error_log {at}/error.log; worker_rlimit_nofile 16384;\n\
         events {{ worker_connections 12000; }}\n\
         http {{ access_log off; client_body_temp_path {at}/body; proxy_temp_path {at}/proxy;\n\
         fastcgi_temp_path {at}/fastcgi; uwsgi_temp_path {at}/uwsgi; scgi_temp_path {at}/scgi;\n\
         sendfile on; keepalive_requests 1000000000; open_file_cache max=16; open_file_cache_valid 1h; {upstream}\n\
         server {{ listen {listen}; add_header x-content-type-options nosniff; {server} }} }}\n"
    );
    let file = directory.path().join("nginx.conf");
    fs::write(&file, text)?;
    let [program, words @ ..] = on_cpu(cpu);
    let mut command = host.command(program);
    command.args(words).arg("nginx").arg("-c").arg(&file).arg("-e").arg(format!("{at}/start.log"));
    let mut process = Process::spawn("nginx", command)?;
    let address: SocketAddr = listen.parse()?;
    let accepts = || host.enter(|| TcpStream::connect(address).is_ok()).unwrap_or(false);
    process.wait_for("nginx accepts", PATIENCE, accepts)?;
    Ok(Nginx { process, address, _directory: directory })
}
