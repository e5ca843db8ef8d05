//! The servers under test, each on the first CPU alone.

use std::fs;
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context as _, Result};
use integration_tests::agent::{Settings, TestAgent};
use integration_tests::netns::NetNs;
use integration_tests::process::Process;
use integration_tests::wait::eventually;
use tempfile::TempDir;

use super::super::process::pmdaemon::PmDaemon;
use super::{Context, LIST, PROCESSES, WEB};

const PATIENCE: Duration = Duration::from_secs(30);
/// Keeps what follows on the first CPU and replaces itself with it.
const ON_FIRST_CPU: [&str; 3] = ["taskset", "--cpu-list", "0"];
const NGINX: &str = "127.0.0.1:8082";
const PMDAEMON_PORT: u16 = 19615;

/// An agent that supervises [`PROCESSES`] sleeping processes.
pub(super) fn agent<'a>(host: &'a NetNs, context: &Context) -> Result<TestAgent<'a>> {
    let processes = format!("[process.worker]\nscript = \"sleep 100000\"\ninstances = {PROCESSES}\n");
    let settings = Settings::new("alpha")?.binary(&context.weft).addresses(&["10.80.0.1/24"]);
    let settings = settings.wireguard("backend = \"userspace\"").table(&processes);
    let mut agent = TestAgent::prepare(host, settings)?;
    agent.launch_under(&ON_FIRST_CPU)?;
    agent.wait_until_ready()?;
    let url = format!("http://{WEB}{LIST}");
    let online = || host.run(&["curl", "-sS", &url]).map(|text| text.matches("\"online\"").count()).unwrap_or(0);
    eventually(PATIENCE, "every process is online", || online() == PROCESSES)?;
    Ok(agent)
}

/// A running nginx with one worker.
pub(super) struct Nginx {
    pub(super) process: Process,
    pub(super) address: String,
    _directory: TempDir,
}

/// PMDaemon's web server over as many processes that it has started.
pub(super) struct PmDaemonWeb {
    pub(super) process: Process,
    pub(super) address: String,
    _started: PmDaemon,
}

pub(super) fn pmdaemon(host: &NetNs, key: &str) -> Result<PmDaemonWeb> {
    let started = PmDaemon::new(PROCESSES)?;
    started.start_all()?;
    let mut command = host.command(ON_FIRST_CPU[0]);
    command.args(&ON_FIRST_CPU[1..]);
    let mut process = started.serve(command, PMDAEMON_PORT, key)?;
    let address = format!("127.0.0.1:{PMDAEMON_PORT}");
    let (header, url) = (format!("X-API-Key: {key}"), format!("http://{address}{LIST}"));
    let online =
        || host.run(&["curl", "-sS", "-H", &header, &url]).map(|text| text.matches("online").count()).unwrap_or(0);
    process.wait_for("PMDaemon lists its processes", PATIENCE, || online() >= PROCESSES)?;
    Ok(PmDaemonWeb { process, address, _started: started })
}

/// An nginx that serves `body` at `path` from a file that it keeps open, with the headers of the agent.
pub(super) fn nginx(host: &NetNs, path: &str, body: &str) -> Result<Nginx> {
    let directory = TempDir::with_prefix("weft-bench-")?;
    let at = directory.path().to_str().context("the path is text")?;
    let file = directory.path().join(path.trim_start_matches('/'));
    fs::create_dir_all(file.parent().context("it has one")?)?;
    fs::write(&file, body)?;
    let headers = [
        "x-content-type-options nosniff",
        "x-frame-options DENY",
        "x-xss-protection \"1; mode=block\"",
        "referrer-policy no-referrer",
        "content-security-policy \"default-src 'none'; frame-ancestors 'none'\"",
        "cross-origin-resource-policy same-origin",
        "cache-control no-store",
    ];
    let headers: String = headers.iter().map(|header| format!("add_header {header}; ")).collect();
    let text = format!(
        "daemon off; master_process off; pid {at}/pid; error_log {at}/error.log;\n\
         events {{ worker_connections 1024; }}\n\
         http {{ access_log off; client_body_temp_path {at}/body; proxy_temp_path {at}/proxy;\n\
         fastcgi_temp_path {at}/fastcgi; uwsgi_temp_path {at}/uwsgi; scgi_temp_path {at}/scgi;\n\
         sendfile on; tcp_nopush on; keepalive_requests 1000000000; open_file_cache max=16; open_file_cache_valid 1h;\n\
         server {{ listen {NGINX}; {headers} location / {{ root {at}; default_type application/json; }} }} }}\n"
    );
    let config = directory.path().join("nginx.conf");
    fs::write(&config, text)?;
    let mut command = host.command(ON_FIRST_CPU[0]);
    command.args(&ON_FIRST_CPU[1..]).arg("nginx").arg("-c").arg(&config).arg("-e").arg(format!("{at}/start.log"));
    let mut process = Process::spawn("nginx", command)?;
    let address: SocketAddr = NGINX.parse()?;
    let accepts = || host.enter(|| TcpStream::connect(address).is_ok()).unwrap_or(false);
    process.wait_for("nginx accepts", PATIENCE, accepts)?;
    Ok(Nginx { process, address: NGINX.to_owned(), _directory: directory })
}
