//! `send`: input for processes whose standard input is a pipe.

use std::sync::Arc;

use super::{Done, Platform, Supervisor};
use crate::process::definition::stdin::Stdin;
use crate::process::error::Error;
use crate::process::handle::{Reply, Target};
use crate::process::platform::Place;

/// An instance that reads.
struct Reader {
    id: u32,
    name: Arc<str>,
    place: Place,
}

impl<P: Platform> Supervisor<P> {
    /// Writes `input` to what is meant, one instance after the other; nothing is written if one of them reads nothing.
    pub(super) fn send(&mut self, target: &Target, input: Vec<u8>, reply: Reply<Vec<u32>>) {
        let readers = match self.readers(target) {
            Ok(readers) => readers,
            Err(error) => return self.answer(reply, Err(error)),
        };
        let platform = Arc::clone(&self.platform);
        self.pending.push(Box::pin(async move {
            for reader in &readers {
                if let Err(why) = platform.send(&reader.place, input.clone()).await {
                    return Done::Sent(Err(Error::NoInput { name: reader.name.to_string(), why }), reply);
                }
            }
            Done::Sent(Ok(readers.iter().map(|reader| reader.id).collect()), reply)
        }));
    }

    /// The instances that are meant.
    fn readers(&self, target: &Target) -> Result<Vec<Reader>, Error> {
        let mut readers = Vec::new();
        for instance in self.find(target)?.iter().filter_map(|id| self.instances.get(id)) {
            let Some(process) = self.processes.get(&instance.process) else { continue };
            let no_input = |why: &str| Error::NoInput { name: instance.name.to_string(), why: why.to_owned() };
            if process.spec.definition.stdin != Stdin::Pipe {
                return Err(no_input("its stdin is no pipe; define it with stdin = \"pipe\""));
            }
            if instance.pid.is_none() {
                return Err(no_input("it does not run"));
            }
            readers.push(Reader { id: instance.id, name: Arc::clone(&instance.name), place: instance.place() });
        }
        Ok(readers)
    }
}
