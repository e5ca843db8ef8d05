//! `dump.pm2`, what `pm2 save` writes: one object for each process that ran, its state and the environment of a shell mixed
//! into what its user wrote. What the user wrote is taken out; the rest is PM2's own. Pure.

use serde_json::{Map, Value};

/// The key that only such an object has: the script as a path.
const MARK: &str = "pm_exec_path";

/// What PM2 keeps as the user wrote it, and the key it has in a definition.
const KEPT: [(&str, &str); 23] = [
    ("name", "name"),
    ("namespace", "namespace"),
    (MARK, "script"),
    ("pm_cwd", "cwd"),
    ("args", "args"),
    ("exec_interpreter", "interpreter"),
    ("node_args", "interpreter_args"),
    ("exec_mode", "exec_mode"),
    ("env", "env"),
    ("autorestart", "autorestart"),
    ("max_restarts", "max_restarts"),
    ("min_uptime", "min_uptime"),
    ("restart_delay", "restart_delay"),
    ("exp_backoff_restart_delay", "exp_backoff_restart_delay"),
    ("stop_exit_codes", "stop_exit_codes"),
    ("kill_timeout", "kill_timeout"),
    ("max_memory_restart", "max_memory_restart"),
    ("uid", "user"),
    ("gid", "group"),
    ("cron_restart", "cron_restart"),
    ("watch", "watch"),
    ("ignore_watch", "ignore_watch"),
    ("watch_delay", "watch_delay"),
];

/// Variables of a session or of PM2 that no program is meant to get.
const OF_THE_SHELL: [&str; 22] = [
    "_",
    "PWD",
    "OLDPWD",
    "SHLVL",
    "SHELL",
    "TERM",
    "HOME",
    "USER",
    "LOGNAME",
    "MAIL",
    "PS1",
    "LS_COLORS",
    "COLORTERM",
    "SSH_CLIENT",
    "SSH_CONNECTION",
    "SSH_TTY",
    "SSH_AUTH_SOCK",
    "DBUS_SESSION_BUS_ADDRESS",
    "PM2_HOME",
    "PM2_USAGE",
    "NODE_APP_INSTANCE",
    "unique_id",
];

/// Whether `list` is what `pm2 save` writes.
pub(super) fn is_dump(list: &[Map<String, Value>]) -> bool {
    !list.is_empty() && list.iter().all(|item| item.contains_key(MARK))
}

/// The apps of a dump, as an ecosystem file would have them: instances of one name are one app.
pub(super) fn apps(list: Vec<Map<String, Value>>, notes: &mut Vec<String>) -> Vec<Map<String, Value>> {
    let mut apps: Vec<Map<String, Value>> = Vec::new();
    for item in list {
        let app = app(&item);
        // Its own number is in the environment and nowhere else.
        let same = apps.iter_mut().find(|other| other.get("name") == app.get("name") && is_same(other, &app));
        match same {
            Some(other) => {
                let instances = other.get("instances").and_then(Value::as_u64).unwrap_or(1) + 1;
                other.insert("instances".to_owned(), instances.into());
            }
            None => apps.push(app),
        }
    }
    for name in apps.iter().filter_map(|app| app.get("name")?.as_str()) {
        notes
            .push(format!("{name}: env holds what the shell had that ran `pm2 start`: take out what it does not need"));
        notes.push(format!("{name}: its log files are left out: `weft logs {name}` shows the new ones"));
    }
    apps
}

fn app(item: &Map<String, Value>) -> Map<String, Value> {
    let is_set = |value: &&Value| !matches!(value, Value::Null | Value::Bool(false));
    let is_false_of = |key: &str| key == "autorestart";
    let mut app = Map::new();
    for (theirs, ours) in KEPT {
        if let Some(value) = item.get(theirs).filter(|value| is_set(value) || is_false_of(theirs)) {
            app.insert(ours.to_owned(), value.clone());
        }
    }
    if let Some(Value::Object(env)) = app.get_mut("env") {
        let is_of_pm2 = |name: &str| OF_THE_SHELL.contains(&name) || name.starts_with("XDG_");
        env.retain(|name, value| !is_of_pm2(name) && !value.is_object() && !value.is_array() && !value.is_null());
    }
    for key in ["user", "group"] {
        if let Some(number) = app.get(key).and_then(Value::as_u64) {
            app.insert(key.to_owned(), number.to_string().into());
        }
    }
    if item.get("status").is_some_and(|status| status == "stopped") {
        app.insert("autostart".to_owned(), false.into());
    }
    app
}

/// Whether two are instances of one app.
fn is_same(one: &Map<String, Value>, other: &Map<String, Value>) -> bool {
    let without_count = |app: &Map<String, Value>| {
        let mut app = app.clone();
        app.remove("instances");
        app
    };
    without_count(one) == without_count(other)
}
