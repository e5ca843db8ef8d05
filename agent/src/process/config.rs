//! The `[supervisor]` table, and `[process.NAME]` as `weft.toml` has it.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::definition::Definition;
use super::quantity::{Size, Span};
use super::spec::{Spec, SpecError, cycle};

/// `[supervisor]`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    pub enabled: bool,
    /// A log file that would grow beyond this is rotated.
    pub log_max_size: Size,
    /// A log file whose first line is older than this is rotated.
    pub log_max_age: Span,
    /// Rotated files that stay of each output.
    pub log_keep: u32,
    /// Rotated files are compressed.
    pub log_compress: bool,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            enabled: true,
            log_max_size: Size(10 << 20),
            log_max_age: Span::millis(7 * 86_400_000),
            log_keep: 5,
            log_compress: true,
        }
    }
}

/// Why `[supervisor]` or a `[process.NAME]` cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    #[error("supervisor.log_max_size is {0} bytes; 65536 is the least")]
    LogSize(u64),
    #[error("[process.{name}] cannot be used")]
    Process {
        name: String,
        #[source]
        source: SpecError,
    },
    #[error("[process.{name}] name = {given:?} is not the name of its table; leave the key away")]
    Name { name: String, given: String },
    #[error("{first:?} and {second:?} both have an instance named {instance:?}; rename one")]
    Clash { first: String, second: String, instance: String },
    #[error("depends_on goes in a circle: {}", .0.join(" waits for "))]
    Circle(Vec<String>),
}

impl Config {
    /// Checks the table in itself.
    ///
    /// # Errors
    /// The first value that is wrong.
    pub fn validate(&self) -> Result<(), ConfigError> {
        if self.log_max_size.0 < 65536 { Err(ConfigError::LogSize(self.log_max_size.0)) } else { Ok(()) }
    }
}

/// Checks every `[process.NAME]`.
///
/// # Errors
/// The first that is wrong, by its name and key.
pub fn check_processes(processes: &BTreeMap<String, Definition>) -> Result<Vec<Spec>, ConfigError> {
    let mut specs = Vec::new();
    let mut owners: BTreeMap<String, String> = BTreeMap::new();
    for (name, definition) in processes {
        if !definition.name.is_empty() && definition.name != *name {
            return Err(ConfigError::Name { name: name.clone(), given: definition.name.clone() });
        }
        let named = Definition { name: name.clone(), ..definition.clone() };
        let refuse = |source| ConfigError::Process { name: name.clone(), source };
        let spec = named.validate(processors()).map_err(refuse)?;
        for index in 0..spec.instances {
            for instance in [spec.instance_name(index), spec.log_name(index)] {
                match owners.insert(instance.clone(), name.clone()) {
                    Some(first) if first != *name => {
                        return Err(ConfigError::Clash { first, second: name.clone(), instance });
                    }
                    Some(_) | None => {}
                }
            }
        }
        specs.push(spec);
    }
    let waits = |name: &str| {
        let spec = specs.iter().find(|spec| spec.definition.name == name);
        spec.map(|spec| spec.definition.depends_on.iter().map(String::as_str).collect()).unwrap_or_default()
    };
    match specs.iter().find_map(|spec| cycle(waits, &spec.definition.name)) {
        Some(circle) => Err(ConfigError::Circle(circle.into_iter().map(str::to_owned).collect())),
        None => Ok(specs),
    }
}

/// What `instances = "max"` stands for on this host.
pub fn processors() -> u32 {
    std::thread::available_parallelism().map_or(1, |count| u32::try_from(count.get()).unwrap_or(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str) -> Result<usize, String> {
        let tables: BTreeMap<String, Definition> = toml::from_str(text).map_err(|error| error.to_string())?;
        check_processes(&tables).map(|specs| specs.len()).map_err(|error| error.to_string())
    }

    #[test]
    fn a_table_has_the_name_of_its_process() {
        assert_eq!(check("[web]\nscript = 'node server.js'\nport = 3000\n[job]\nscript = '/bin/true'\n"), Ok(2));
        assert!(
            check("[web]\nname = 'other'\nscript = 'x'\n").is_err_and(|error| error.contains("leave the key away"))
        );
        assert!(check("[web]\nscript = ''\n").is_err_and(|error| error.contains("[process.web]")));
    }

    #[test]
    fn a_circle_is_shown() {
        let text = "[a]\nscript = 'x'\ndepends_on = ['b']\n[b]\nscript = 'x'\ndepends_on = ['a']\n";
        assert_eq!(check(text), Err("depends_on goes in a circle: a waits for b waits for a".to_owned()));
    }

    #[test]
    fn two_processes_never_share_the_name_of_an_instance() {
        let text = "[web]\nscript = 'x'\ninstances = 2\n[web-1]\nscript = 'x'\n";
        assert!(check(text).is_err_and(|error| error.contains("\"web-1\"")));
    }
}
