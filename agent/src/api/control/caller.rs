//! Who calls the control socket, and whether they may.

use std::io;

use tokio::net::UnixStream;

use crate::sys::peer;

/// The group whose members may use the control socket.
pub const GROUP: &str = "weft";

/// The caller as the kernel recorded it at `connect()`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caller {
    pub uid: u32,
    pub gid: u32,
    /// Supplementary groups.
    pub groups: Vec<u32>,
    pub pid: Option<i32>,
}

impl Caller {
    /// Reads the record of a connection.
    ///
    /// # Errors
    /// When the kernel has none, which a connected unix stream never gives.
    pub fn of(stream: &UnixStream) -> io::Result<Self> {
        let credentials = stream.peer_cred()?;
        let groups = peer::groups(stream)?;
        Ok(Self { uid: credentials.uid(), gid: credentials.gid(), groups, pid: credentials.pid() })
    }
}

/// What a caller may do: there is no half way on this socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    Granted,
    Refused,
}

/// Who may call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Policy {
    /// The user the agent runs as.
    pub own_uid: u32,
    /// The id of [`GROUP`], where the host has it.
    pub group: Option<u32>,
}

impl Policy {
    /// Root, the agent's own user and members of the group may.
    pub fn access(&self, caller: &Caller) -> Access {
        let is_member = self.group.is_some_and(|group| caller.gid == group || caller.groups.contains(&group));
        if caller.uid == 0 || caller.uid == self.own_uid || is_member { Access::Granted } else { Access::Refused }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const POLICY: Policy = Policy { own_uid: 900, group: Some(950) };

    fn caller(uid: u32, gid: u32, groups: &[u32]) -> Caller {
        Caller { uid, gid, groups: groups.to_vec(), pid: Some(1) }
    }

    #[test]
    fn root_the_own_user_and_members_of_the_group_may() {
        for allowed in [caller(0, 0, &[]), caller(900, 1, &[]), caller(1000, 950, &[]), caller(1000, 1, &[4, 950])] {
            assert_eq!(POLICY.access(&allowed), Access::Granted, "{allowed:?}");
        }
    }

    #[test]
    fn anyone_else_may_not() {
        assert_eq!(POLICY.access(&caller(1000, 1000, &[4, 24])), Access::Refused);
        let without_group = Policy { group: None, ..POLICY };
        assert_eq!(without_group.access(&caller(1000, 950, &[950])), Access::Refused);
    }
}
