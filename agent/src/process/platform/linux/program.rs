//! Which program a definition means, and whose rights it runs with.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use nix::unistd::{Group, Uid, User, getgrouplist};

use crate::process::definition::Definition;
use crate::process::platform::StartError;
use crate::process::quantity;
use crate::sys::spawn::Identity;

/// What runs a script, by the ending of its name.
const INTERPRETERS: [(&str, &str); 10] = [
    ("js", "node"),
    ("cjs", "node"),
    ("mjs", "node"),
    ("ts", "bun"),
    ("py", "python3"),
    ("sh", "bash"),
    ("rb", "ruby"),
    ("pl", "perl"),
    ("php", "php"),
    ("lua", "lua"),
];

/// What execve gets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Program {
    pub(super) path: PathBuf,
    /// With the program's own name first.
    pub(super) arguments: Vec<String>,
}

/// The account a process runs as.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Account {
    pub(super) name: String,
    pub(super) home: String,
    pub(super) shell: String,
    identity: Option<Identity>,
}

impl Account {
    /// What has to be taken on; `None`: the agent's own.
    pub(super) fn identity(&self) -> Option<Identity> {
        self.identity.clone()
    }
}

fn refuse<T>(why: String) -> Result<T, StartError> {
    Err(StartError { why, permanent: true })
}

/// The account that `user` and `group` name.
pub(super) fn account(definition: &Definition) -> Result<Account, StartError> {
    let failed =
        |error: nix::Error| StartError { why: format!("failed to look up the user: {error}"), permanent: false };
    let user = match &definition.user {
        None => User::from_uid(Uid::effective()).map_err(failed)?,
        Some(name) => {
            let found = match name.parse::<u32>() {
                Ok(uid) => User::from_uid(Uid::from_raw(uid)),
                Err(_name) => User::from_name(name),
            };
            match found.map_err(failed)? {
                Some(user) => Some(user),
                None => return refuse(format!("user: there is no {name:?} on this host")),
            }
        }
    };
    let group = match &definition.group {
        None => None,
        Some(name) => {
            let found = match name.parse::<u32>() {
                Ok(gid) => Group::from_gid(nix::unistd::Gid::from_raw(gid)),
                Err(_name) => Group::from_name(name),
            };
            match found.map_err(failed)? {
                Some(group) => Some(group.gid.as_raw()),
                None => return refuse(format!("group: there is no {name:?} on this host")),
            }
        }
    };
    let Some(user) = user else {
        return Ok(Account {
            name: "root".to_owned(),
            home: "/".to_owned(),
            shell: "/bin/sh".to_owned(),
            identity: None,
        });
    };
    let identity = match (&definition.user, group) {
        (None, None) => None,
        (_, group) => Some(identity(&user, group)?),
    };
    let (home, shell) = (user.dir.display().to_string(), user.shell.display().to_string());
    Ok(Account { name: user.name, home, shell, identity })
}

fn identity(user: &User, group: Option<u32>) -> Result<Identity, StartError> {
    let gid = group.unwrap_or(user.gid.as_raw());
    let name = super::text(user.name.as_bytes())?;
    let groups = getgrouplist(&name, nix::unistd::Gid::from_raw(gid)).map_err(|error| StartError {
        why: format!("failed to look up the groups of {}: {error}", user.name),
        permanent: false,
    })?;
    Ok(Identity { uid: user.uid.as_raw(), gid, groups: groups.iter().map(|gid| gid.as_raw()).collect() })
}

/// The program and its arguments.
///
/// # Errors
/// There is no such file, or it is not a program and nothing is known to run it.
pub(super) fn resolve(definition: &Definition, path: &str) -> Result<Program, StartError> {
    let directory = definition.cwd.as_deref().unwrap_or(Path::new("/"));
    if !directory.is_dir() {
        return refuse(format!("cwd: there is no directory {}", directory.display()));
    }
    match find(&definition.script, directory, path) {
        Some(script) => with_interpreter(definition, script, Vec::new(), directory, path),
        None => {
            // PMDaemon's documents write `"node server.js"`.
            let words = quantity::split(&definition.script)
                .map_err(|why| StartError { why: format!("script: {why}"), permanent: true })?;
            let (first, rest) = match words.split_first() {
                Some((first, rest)) if !rest.is_empty() => (first, rest.to_vec()),
                Some(_) | None => return missing(&definition.script, directory, path),
            };
            match find(first, directory, path) {
                Some(script) => with_interpreter(definition, script, rest, directory, path),
                None => missing(first, directory, path),
            }
        }
    }
}

fn missing<T>(script: &str, directory: &Path, path: &str) -> Result<T, StartError> {
    let why = if script.contains('/') {
        format!("script: there is no file {}", directory.join(script).display())
    } else {
        format!("script: {script:?} is neither a file in {} nor a program in {path}", directory.display())
    };
    refuse(why)
}

/// A file by its path or in the working directory, else a program in `path`.
fn find(name: &str, directory: &Path, path: &str) -> Option<PathBuf> {
    let file = directory.join(name);
    if !name.is_empty() && file.is_file() {
        return Some(file);
    }
    if name.contains('/') || name.is_empty() {
        return None;
    }
    path.split(':').filter(|part| !part.is_empty()).map(|part| Path::new(part).join(name)).find(|file| is_program(file))
}

fn is_program(path: &Path) -> bool {
    path.metadata().is_ok_and(|metadata| metadata.is_file() && metadata.permissions().mode() & 0o111 != 0)
}

fn with_interpreter(
    definition: &Definition,
    script: PathBuf,
    more: Vec<String>,
    directory: &Path,
    path: &str,
) -> Result<Program, StartError> {
    let arguments = more.into_iter().chain(definition.args.0.iter().cloned());
    let known = script.extension().and_then(|ending| ending.to_str()).and_then(|ending| {
        INTERPRETERS.iter().find(|(known, _)| *known == ending).map(|(_, interpreter)| *interpreter)
    });
    let interpreter = match definition.interpreter.as_deref() {
        Some("none") => None,
        Some(named) => Some(named),
        // A program with a #! line says itself what runs it.
        None if is_program(&script) => None,
        None => known,
    };
    let Some(interpreter) = interpreter else {
        if !is_program(&script) {
            let path = script.display();
            return refuse(format!("script: {path} is not executable; `chmod +x {path}` or set interpreter"));
        }
        let first = script.display().to_string();
        return Ok(Program { path: script, arguments: [first].into_iter().chain(arguments).collect() });
    };
    let Some(found) = find(interpreter, directory, path).filter(|file| is_program(file)) else {
        return refuse(format!("interpreter: there is no program {interpreter:?} in {path}"));
    };
    let first = [found.display().to_string()].into_iter();
    let before = first.chain(definition.interpreter_args.0.iter().cloned()).chain([script.display().to_string()]);
    Ok(Program { arguments: before.chain(arguments).collect(), path: found })
}

/// The capabilities that a process may hold, as a mask; `None`: all that its user has.
pub(super) fn capabilities(definition: &Definition) -> Option<u64> {
    let names = definition.isolation.capabilities.as_ref()?;
    // Each was read when the definition was checked.
    let known = names.iter().filter_map(|name| name.parse::<caps::Capability>().ok());
    Some(known.fold(0, |mask, capability| mask | 1 << capability.index()))
}

/// Whether `port` can be bound on every address.
pub(super) fn is_port_free(port: u16) -> bool {
    let any = |address: SocketAddr| match TcpListener::bind(address) {
        Ok(_listener) => true,
        // A host without IPv6 has no port in use there.
        Err(error) => error.kind() != std::io::ErrorKind::AddrInUse,
    };
    any((Ipv4Addr::UNSPECIFIED, port).into()) && any((Ipv6Addr::UNSPECIFIED, port).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(change: impl FnOnce(&mut Definition)) -> Result<Vec<String>, String> {
        let mut definition = Definition::new("x", "/bin/true");
        change(&mut definition);
        resolve(&definition, "/usr/bin:/bin").map(|program| program.arguments).map_err(|error| error.why)
    }

    #[test]
    fn a_line_a_program_in_the_path_and_a_script_are_all_understood() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        std::fs::write(directory.path().join("app.sh"), "true\n").expect("written");
        let line = words(|definition| definition.script = "sh -c 'exit 3'".to_owned()).expect("a line");
        assert!(line[0].ends_with("/sh") && line[1..] == ["-c", "exit 3"], "{line:?}");
        let script = words(|definition| {
            definition.script = "app.sh".to_owned();
            definition.cwd = Some(directory.path().to_owned());
            definition.args.0 = vec!["one".to_owned()];
        });
        let script = script.expect("bash runs it");
        assert!(script[0].ends_with("/bash") && script[1].ends_with("/app.sh") && script[2] == "one", "{script:?}");
    }

    #[test]
    fn what_cannot_be_run_is_named() {
        let error = |change: fn(&mut Definition)| words(change).expect_err("refused");
        assert!(error(|definition| definition.script = "/nonexistent/x".to_owned()).contains("no file /nonexistent/x"));
        assert!(error(|definition| definition.script = "no-such-program".to_owned()).contains("no-such-program"));
        let plain = tempfile::NamedTempFile::new().expect("a temporary file").into_temp_path();
        let not_executable = words(|definition| definition.script = plain.display().to_string()).expect_err("refused");
        assert!(not_executable.contains("not executable"), "{not_executable}");
        assert!(error(|definition| definition.interpreter = Some("no-such".to_owned())).contains("interpreter"));
        assert!(error(|definition| definition.cwd = Some("/nonexistent".into())).contains("cwd"));
        let mut definition = Definition::new("x", "/bin/true");
        definition.user = Some("no-such-user".to_owned());
        assert!(account(&definition).expect_err("refused").why.contains("no-such-user"));
    }

    #[test]
    fn a_port_that_somebody_listens_on_is_not_free() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        assert!(!is_port_free(listener.local_addr().expect("bound").port()));
    }
}
