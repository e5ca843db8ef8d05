//! Ecosystem files: definitions in JSON, YAML or TOML, with PMDaemon's keys or PM2's. Pure.
//!
//! `{"apps": [ … ]}`, a list, or one definition. Relative paths are meant from the directory of the file. What PM2 knows and
//! means nothing here is left out and named; any other key that is not known is refused. What `pm2 save` writes is read too.

mod dump;

use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::definition::Definition;

/// The largest file.
pub const MOST_BYTES: usize = 10 * 1024 * 1024;

/// How a file is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    Json,
    Yaml,
    Toml,
}

impl Format {
    /// The format by the ending of a name.
    pub fn of(path: &Path) -> Option<Self> {
        match path.extension()?.to_str()? {
            // `dump.pm2` is JSON.
            "json" | "pm2" => Some(Self::Json),
            "yaml" | "yml" => Some(Self::Yaml),
            "toml" => Some(Self::Toml),
            _ => None,
        }
    }
}

/// What a file defines.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Ecosystem {
    pub definitions: Vec<Definition>,
    /// What was left out, a sentence each.
    pub notes: Vec<String>,
}

/// Why a file cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EcosystemError {
    #[error("it is larger than {MOST_BYTES} bytes")]
    TooLarge,
    #[error("it cannot be read: {0}")]
    Parse(String),
    #[error("it is neither {{\"apps\": [ … ]}}, nor a list of definitions, nor one definition")]
    Shape,
    #[error("app {name}: {why}")]
    App { name: String, why: String },
    #[error("two apps are named {0:?}")]
    Twice(String),
}

/// Keys of PM2 that mean nothing here, and why.
const LEFT_OUT: [(&str, &str); 21] = [
    ("vizion", "no version control is looked at"),
    ("pmx", "there is no probe to load"),
    ("trace", "there is no probe to load"),
    ("source_map_support", "set NODE_OPTIONS=--enable-source-maps"),
    ("automation", "there is no probe to load"),
    ("treekill", "everything in the cgroup always ends with a process"),
    ("force", "a definition that is the same changes nothing"),
    ("merge_logs", "`weft logs NAME` merges instances"),
    ("combine_logs", "`weft logs NAME` merges instances"),
    ("time", "every line has its time"),
    ("log_date_format", "times are RFC 3339"),
    ("log_type", "`weft logs --json` writes JSON"),
    ("pid_file", "`weft describe` shows the pid"),
    ("kill_retry_time", "the end of a process is not polled for"),
    ("exp_backoff_restart_max", "the back-off ends at 15 s"),
    ("windowsHide", "this is not Windows"),
    ("username", "set user"),
    ("version", "the version of a package is not kept"),
    ("node_version", "the version of Node.js is not kept"),
    ("watch_options", "directories are watched with inotify, links are not followed"),
    ("disable_trace", "there is no probe to load"),
];

/// Reads `text`, which lies in `directory`. `profile` picks `env_PROFILE` over `env`.
///
/// # Errors
/// The first app that is wrong, by its name.
pub fn read(text: &str, format: Format, directory: &Path, profile: Option<&str>) -> Result<Ecosystem, EcosystemError> {
    if text.len() > MOST_BYTES {
        return Err(EcosystemError::TooLarge);
    }
    let parse = |error: String| EcosystemError::Parse(error);
    let value: Value = match format {
        Format::Json => serde_json::from_str(text).map_err(|error| parse(error.to_string()))?,
        Format::Yaml => serde_saphyr::from_str(text).map_err(|error| parse(error.to_string()))?,
        Format::Toml => toml::from_str(text).map_err(|error| parse(error.to_string()))?,
    };
    let mut ecosystem = Ecosystem::default();
    let mut apps = apps(value)?;
    if dump::is_dump(&apps) {
        apps = dump::apps(apps, &mut ecosystem.notes);
    }
    for app in apps {
        let definition = convert(app, directory, profile, &mut ecosystem.notes)?;
        if ecosystem.definitions.iter().any(|other| other.name == definition.name) {
            return Err(EcosystemError::Twice(definition.name));
        }
        ecosystem.definitions.push(definition);
    }
    Ok(ecosystem)
}

fn apps(value: Value) -> Result<Vec<Map<String, Value>>, EcosystemError> {
    let list = match value {
        Value::Array(list) => list,
        Value::Object(mut object) => match object.remove("apps") {
            Some(Value::Array(list)) => list,
            Some(one @ Value::Object(_)) => vec![one],
            Some(_) => return Err(EcosystemError::Shape),
            None if object.contains_key("script") => vec![Value::Object(object)],
            None => return Err(EcosystemError::Shape),
        },
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => return Err(EcosystemError::Shape),
    };
    let object = |value: Value| value.as_object().cloned().ok_or(EcosystemError::Shape);
    list.into_iter().map(object).collect()
}

fn convert(
    mut app: Map<String, Value>,
    directory: &Path,
    profile: Option<&str>,
    notes: &mut Vec<String>,
) -> Result<Definition, EcosystemError> {
    if !app.contains_key("name") {
        let script = app.get("script").and_then(Value::as_str).unwrap_or_default();
        let stem = Path::new(script).file_stem().map(|stem| stem.to_string_lossy().into_owned());
        app.insert("name".to_owned(), Value::from(stem.unwrap_or_default()));
    }
    let name = app.get("name").and_then(Value::as_str).unwrap_or_default().to_owned();
    let refuse = |why: String| EcosystemError::App { name: name.clone(), why };
    for (key, why) in LEFT_OUT {
        if app.remove(key).is_some() {
            notes.push(format!("{name}: {key} is left out: {why}"));
        }
    }
    take_profile(&mut app, profile).map_err(refuse)?;
    take_old_names(&mut app, &name, notes);
    make_absolute(&mut app, directory);
    let refuse = |error: serde_json::Error| EcosystemError::App { name: name.clone(), why: error.to_string() };
    serde_json::from_value(Value::Object(app)).map_err(refuse)
}

/// `env_PROFILE` over `env`; the other profiles go.
fn take_profile(app: &mut Map<String, Value>, profile: Option<&str>) -> Result<(), String> {
    let of_profiles: Vec<String> =
        app.keys().filter(|key| key.starts_with("env_") && *key != "env_file").cloned().collect();
    let mut found = profile.is_none();
    for key in of_profiles {
        let Some(Value::Object(variables)) = app.remove(&key) else { return Err(format!("{key} is not a table")) };
        if profile.is_some_and(|profile| key["env_".len()..] == *profile) {
            found = true;
            let env = app.entry("env").or_insert_with(|| Value::Object(Map::new()));
            env.as_object_mut().ok_or("env is not a table")?.extend(variables);
        }
    }
    match (found, profile) {
        (false, Some(profile)) => Err(format!("there is no env_{profile}")),
        _ => Ok(()),
    }
}

/// What PM2 writes otherwise.
fn take_old_names(app: &mut Map<String, Value>, name: &str, notes: &mut Vec<String>) {
    // 0 and -1 are all processors but none or one.
    if let Some(count) = app.get("instances").and_then(Value::as_i64).filter(|count| *count <= 0) {
        app.insert("instances".to_owned(), "max".into());
        if count < 0 {
            notes.push(format!("{name}: instances = {count} is taken as \"max\""));
        }
    }
    for key in ["uid", "gid"] {
        if let Some(number) = app.get(key).and_then(Value::as_i64) {
            app.insert(key.to_owned(), number.to_string().into());
        }
    }
    // '0' disables it in PM2.
    if app.get("cron_restart").is_some_and(|cron| cron == "0" || *cron == 0) {
        app.remove("cron_restart");
    }
    if app.get("restart_delay").and_then(Value::as_i64) == Some(0) {
        app.remove("restart_delay");
    }
}

fn make_absolute(app: &mut Map<String, Value>, directory: &Path) {
    let cwd = app.get("cwd").and_then(Value::as_str).map_or_else(PathBuf::new, PathBuf::from);
    let cwd = directory.join(cwd);
    app.insert("cwd".to_owned(), cwd.display().to_string().into());
    for key in ["env_file", "out_file", "error_file", "out_log", "err_log", "err_file"] {
        if let Some(path) = app.get(key).and_then(Value::as_str) {
            let path = cwd.join(path).display().to_string();
            app.insert(key.to_owned(), path.into());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process::quantity::{Count, Patterns, Ports, Span, Watch};

    fn read_in(text: &str, format: Format) -> Result<Ecosystem, String> {
        read(text, format, Path::new("/srv/app"), None).map_err(|error| error.to_string())
    }

    #[test]
    fn the_same_apps_in_every_format() {
        let json = r#"{"apps":[{"name":"web","script":"server.js","instances":2,"port":"3000-3001","env":{"A":1}}]}"#;
        let yaml = "apps:\n  - name: web\n    script: server.js\n    instances: 2\n    port: 3000-3001\n    env:\n      A: 1\n";
        let toml =
            "[[apps]]\nname = \"web\"\nscript = \"server.js\"\ninstances = 2\nport = \"3000-3001\"\nenv = { A = 1 }\n";
        let first = read_in(json, Format::Json).expect("JSON");
        assert_eq!(first.definitions[0].cwd.as_deref(), Some(Path::new("/srv/app")));
        assert_eq!(first.definitions[0].port, Some(Ports::Range { first: 3000, last: 3001 }));
        assert_eq!(read_in(yaml, Format::Yaml).as_ref(), Ok(&first));
        assert_eq!(read_in(toml, Format::Toml).as_ref(), Ok(&first));
    }

    #[test]
    fn a_file_of_pm2_is_understood_and_what_means_nothing_is_named() {
        let text = r#"{"apps":{"script":"./app.js","instances":0,"exec_mode":"cluster","args":"--a 'b c'","vizion":false,
            "max_memory_restart":"300M","cron_restart":"0 3 * * *","out_file":"logs/out.log","uid":33,"env":{"A":"1"},"env_production":{"A":"2"}}}"#;
        let found = read(text, Format::Json, Path::new("/srv"), Some("production")).expect("PM2's");
        let app = &found.definitions[0];
        assert_eq!((app.name.as_str(), app.instances, app.env["A"].0.as_str()), ("app", Count::Processors, "2"));
        assert_eq!(
            (app.args.0.as_slice(), app.user.as_deref()),
            (&["--a".to_owned(), "b c".to_owned()][..], Some("33"))
        );
        assert_eq!(app.out_file.as_deref(), Some(Path::new("/srv/logs/out.log")));
        assert_eq!(app.cron_restart.as_deref(), Some("0 3 * * *"));
        assert_eq!(found.notes, ["app: vizion is left out: no version control is looked at"]);
        let none = read(text, Format::Json, Path::new("/srv"), Some("staging")).expect_err("no such profile");
        assert!(none.to_string().contains("env_staging"), "{none}");
    }

    #[test]
    fn what_pm2_saved_is_read_without_its_own_state_and_the_shell_of_its_user() {
        let item = |instance: u32| {
            format!(
                r#"{{"name":"web","namespace":"default","pm_exec_path":"/srv/web/app.js","pm_cwd":"/srv/web","args":["-p","1"],
                "node_args":[],"exec_interpreter":"node","exec_mode":"cluster_mode","instances":2,"autorestart":false,
                "watch":false,"cron_restart":null,"uid":33,"kill_timeout":1600,"pm_id":{instance},"status":"stopped",
                "pm_uptime":1,"axm_actions":[],"PATH":"/bin","SSH_TTY":"/dev/pts/0","NODE_APP_INSTANCE":{instance},
                "env":{{"A":"b","N":1,"PWD":"/srv","web":{{}},"unique_id":"{instance}","NODE_APP_INSTANCE":{instance}}}}}"#
            )
        };
        let text = format!("[{},{}]", item(0), item(1));
        let found = read(&text, Format::Json, Path::new("/srv/.pm2"), None).expect("PM2's");
        let [web] = &found.definitions[..] else { panic!("one app: {:?}", found.definitions) };
        assert_eq!(
            (web.name.as_str(), web.script.as_str(), web.instances),
            ("web", "/srv/web/app.js", Count::Exactly(2))
        );
        assert_eq!((web.cwd.as_deref(), web.user.as_deref()), (Some(Path::new("/srv/web")), Some("33")));
        assert_eq!((web.autorestart, web.autostart), (false, false));
        assert_eq!(web.env.keys().collect::<Vec<_>>(), ["A", "N"]);
        assert!(found.notes.iter().any(|note| note.starts_with("web: env holds")), "{:?}", found.notes);
        let written = r#""watch":["lib"],"ignore_watch":["*.log"],"watch_delay":1000"#;
        let watching = item(0).replace(r#""watch":false"#, written);
        let found = read(&format!("[{watching}]"), Format::Json, Path::new("/"), None).expect("PM2's");
        let app = &found.definitions[0];
        assert_eq!((&app.watch, app.watch_delay), (&Watch::Paths(vec!["lib".into()]), Span::millis(1000)));
        assert_eq!(app.ignore_watch, Some(Patterns(vec!["*.log".to_owned()])));
        assert_eq!(Format::of(Path::new("/srv/.pm2/dump.pm2")), Some(Format::Json));
    }

    #[test]
    fn what_is_wrong_is_named() {
        let refused = |text: &str, expected: &str| {
            let error = read_in(text, Format::Json).expect_err("refused");
            assert!(error.contains(expected), "{error}");
        };
        refused(r#"{"apps":[{"name":"web","script":"x","instanses":2}]}"#, "app web: unknown field `instanses`");
        refused(r#"[{"name":"a","script":"x"},{"name":"a","script":"y"}]"#, "two apps are named \"a\"");
        refused(r#"{"processes":[]}"#, "apps");
        refused("{", "cannot be read");
        refused(r#"[{"name":"a"}]"#, "missing field `script`");
    }
}
