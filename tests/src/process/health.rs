//! Health, dependencies, files of definitions, and the methods of pm3 about services.

use super::*;

/// Answers 503 until the file `well` is beside it, then 200.
const SERVER: &str = "#!/usr/bin/env python3
import http.server, os
class Answer(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        well = os.path.exists(os.path.join(os.path.dirname(__file__), 'well'))
        self.send_response(200 if well else 503)
        self.end_headers()
    def log_message(self, *_):
        pass
http.server.HTTPServer(('127.0.0.1', int(os.environ['PORT'])), Answer).serve_forever()
";

#[test]
fn what_depends_on_a_server_starts_when_that_is_healthy() {
    if !gate::root_and(&["wg", "ip", "nsenter", "python3", "curl"]) {
        return;
    }
    let host = NetNs::new().expect("a namespace");
    let agent = start(&host);
    let server = script(&agent, "server.py", SERVER);
    let file = agent.directory().join("apps.yaml");
    let apps = format!(
        "apps:\n  - name: server\n    script: {server}\n    port: 3000\n    health_check:\n      check_type: http\n      \
         url: 'http://127.0.0.1:{{port}}/health'\n      interval: 500ms\n      retries: 2\n  - name: client\n    \
         script: sleep 1000\n    depends_on: [server]\n    vizion: false\n"
    );
    fs::write(&file, apps).expect("written");
    let started = agent.cli(&["start", &file.display().to_string(), "--no-wait"]).expect("it runs");
    assert!(started.status.success(), "{started:?}");
    assert!(String::from_utf8_lossy(&started.stderr).contains("vizion is left out"), "{started:?}");
    eventually(DEADLINE, "a failed check", || item(&agent, "server")["health_error"].is_string()).expect("asked");
    assert_eq!(item(&agent, "server")["status"], "starting");
    assert_eq!(item(&agent, "client")["error"], "it waits for server");
    fs::write(agent.directory().join("well"), "").expect("written");
    eventually(DEADLINE, "both are online", || item(&agent, "client")["status"] == "online").expect("released");
    assert_eq!(item(&agent, "server")["health"], "healthy");
    let pm3 = |words: &[&str]| {
        let words = [&["curl", "-sS", "--max-time", "20", "--resolve", "pm3:80:127.0.3.3"][..], words].concat();
        let text = host.run(&words).expect("answered");
        serde_json::from_str::<Value>(&text).unwrap_or_else(|error| panic!("{error}: {text}"))
    };
    let health = pm3(&["http://pm3/service/health/server"]);
    assert_eq!((&health["status"], &health["healthy"]), (&Value::from("OK"), &Value::from(1)));
    assert_eq!(pm3(&["http://pm3/service/health/nobody"])["status"], "unknown");
    let main = pid(&agent, "server");
    assert_eq!(pm3(&["http://pm3/service/metrics/server"])["processes"][0]["pid"], main);
    assert_eq!(pm3(&["-X", "POST", "http://pm3/service/restart/server"])["count"], 1);
    assert_ne!(pid(&agent, "server"), main);
    fs::remove_file(agent.directory().join("well")).expect("it was there");
    eventually(DEADLINE, "a restart", || item(&agent, "server")["restarts"].as_u64() > Some(1)).expect("unhealthy");
    let checks = item(&agent, "server")["health_checks"].as_array().expect("described").clone();
    let reason = |check: &Value| check["error"].as_str().is_some_and(|why| why.contains("503"));
    assert!(checks.iter().any(|check| check["healthy"] == true && check["error"].is_null()), "{checks:?}");
    assert!(checks.iter().any(|check| check["healthy"] == false && reason(check)), "{checks:?}");
    assert!(agent.cli_text(&["describe", "server"]).expect("described").contains("CHECKED"));
    assert_eq!(pm3(&["-X", "POST", "http://pm3/service/stop/client"])["count"], 1);
    assert_eq!(item(&agent, "client")["status"], "stopped");
    assert_eq!(pm3(&["-X", "POST", "http://pm3/service/stop/nobody"])["code"], "not_found");
    assert_eq!(pm3(&["-X", "POST", "http://pm3/service/start/nobody"])["code"], "not_found");
    assert_eq!(pm3(&["http://pm3/service/start"])["code"], "method_not_allowed", "a page must not start anything");
}

#[test]
fn hooks_run_with_the_rights_of_the_process_and_their_output_is_kept() {
    if !gate::root_and(&["wg", "ip", "nsenter"]) {
        return;
    }
    let host = NetNs::new().expect("a namespace");
    let tables = "[process.job]\nscript = \"sleep 1000\"\nuser = \"nobody\"\ncwd = \"/\"\nautostart = false\n\
                  pre_start = \"sh -c 'id -u; sleep 1000 & exit 0'\"\npost_stop = \"sh -c 'echo over'\"\n\
                  isolation = { no_new_privileges = true }\n";
    let agent = start_with(&host, tables);
    agent.cli_text(&["start", "job"]).expect("started");
    let main = pid(&agent, "job");
    assert_eq!(members(&agent, "job"), [main], "what the hook left behind is gone");
    let status = fs::read_to_string(format!("/proc/{main}/status")).expect("alive");
    assert!(status.contains("NoNewPrivs:\t1"), "{status}");
    agent.cli_text(&["stop", "job"]).expect("stopped");
    let lines = agent.cli_text(&["logs", "job", "--raw"]).expect("kept");
    assert_eq!(lines, "65534\nover\n");
}

#[test]
fn an_ecosystem_file_of_node_is_imported() {
    if !gate::root_and(&["wg", "ip", "nsenter", "node"]) {
        return;
    }
    let host = NetNs::new().expect("a namespace");
    let agent = start(&host);
    let file = agent.directory().join("ecosystem.config.js");
    let module =
        "module.exports = { apps: [{ name: 'web', script: 'app.js', instances: 2, env_production: { A: 'b' } }] };\n";
    fs::write(&file, module).expect("written");
    let text =
        agent.cli_text(&["import", "pm2", &file.display().to_string(), "--env-profile", "production"]).expect("read");
    assert!(text.contains("[process.web]") && text.contains("instances = 2") && text.contains("A = \"b\""), "{text}");
    fs::write(&file, "module.exports = { apps: [{ name: 'web', script: 'app.js', instanses: 2 }] };\n")
        .expect("written");
    let refused = agent.cli(&["import", "pm2", &file.display().to_string()]).expect("it runs");
    let complaint = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success() && complaint.contains("instanses"), "{complaint}");
}
