//! Looks up the users that the command line names in the system's user database.

use std::fmt;
use std::io;

use crate::cli::{Config, UpstreamUids, UserAndGroup, UserName};
use crate::http1::url::Scheme;
use crate::process::allowed_users::AllowedUsers;
use crate::process::egress::ConnectRequest;
use crate::process::overflow_uid::overflow_uid;
use crate::process::sys;
use crate::process::upstream_users::{Reach, UpstreamUsers};

/// Why the users of a flag cannot be used.
#[derive(Debug)]
pub enum UserError {
    /// This flag names a user that does not exist: the flag and the name.
    Missing(&'static str, String),
    /// The group of this uid is not known.
    NoGroup(u32),
    /// In this user namespace the uid is the overflow uid, which represents every unmapped user.
    Unmapped(&'static str, u32),
    /// The kernel does not tell which user a client belongs to.
    Clients(io::Error),
    /// The kernel does not tell which user an upstream belongs to.
    Upstream(io::Error),
}

impl fmt::Display for UserError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            UserError::Missing(flag, name) => write!(
                f,
                "{flag}: there is no user named {name}; correct the name, or give the user's number"
            ),
            UserError::NoGroup(uid) => {
                write!(f, "--user: the user database has no group for {uid}; give --user {uid}:GID")
            }
            UserError::Unmapped(flag, uid) => write!(
                f,
                "{flag} {uid}: in this user namespace that number represents every user who is not \
                 mapped (/proc/self/uid_map); map the user and give the number that it has here"
            ),
            UserError::Clients(error) => write!(
                f,
                "--allow-uid: the kernel does not report the user of a connection ({error}); remove \
                 the flag, and require a token with --client-token-file"
            ),
            UserError::Upstream(error) => write!(
                f,
                "--upstream-uid: the kernel does not report the user of the upstream on this machine \
                 ({error}); mount /proc, or trust every local user with --upstream-uid any"
            ),
        }
    }
}

/// The uid and gid of `--user`. A group that the flag does not name comes from the user database.
pub fn with_group(user: &UserAndGroup) -> Result<(u32, u32), UserError> {
    let (uid, group) = match &user.user {
        UserName::Id(uid) => (*uid, user.group.or_else(|| sys::group_of(*uid))),
        UserName::Name(_) => {
            let (uid, group) = find("--user", &user.user)?;
            (uid, user.group.or(group))
        }
    };
    Ok((uid, group.ok_or(UserError::NoGroup(uid))?))
}

/// The uids of users who are recognised by their sockets. The overflow uid is refused.
fn of_sockets(flag: &'static str, names: &[UserName]) -> Result<Vec<u32>, UserError> {
    let unmapped = overflow_uid();
    let uid = |name| match find(flag, name)?.0 {
        uid if Some(uid) == unmapped => Err(UserError::Unmapped(flag, uid)),
        uid => Ok(uid),
    };
    names.iter().map(uid).collect()
}

/// The users of `--allow-uid`; `None` if every user may connect.
pub fn of_clients(config: &Config) -> Result<Option<AllowedUsers>, UserError> {
    match of_sockets("--allow-uid", &config.allow_uids)?.as_slice() {
        [] => Ok(None),
        uids => AllowedUsers::new(uids.to_vec()).map(Some).map_err(UserError::Clients),
    }
}

/// The machines on which the other end may be, if the connection carries a secret in plaintext.
/// `None` if it carries none.
pub fn clear_reach(config: &Config, proxy: Option<&ConnectRequest>) -> Option<Reach> {
    match config.upstream.scheme {
        Scheme::Http if config.allow_plaintext_upstream => Some(Reach::Anywhere),
        Scheme::Http => Some(Reach::Here),
        Scheme::Https => proxy.filter(|proxy| proxy.has_credentials()).map(|_| Reach::Anywhere),
    }
}

/// The users that may own the other end of such a connection. `None` if any user may, or if the
/// connection carries no secret in plaintext.
pub fn of_upstream(
    config: &Config,
    reach: Option<Reach>,
    user: Option<(u32, u32)>,
) -> Result<Option<UpstreamUsers>, UserError> {
    let UpstreamUids::Named(names) = &config.upstream_uids else {
        return Ok(None);
    };
    let named = of_sockets("--upstream-uid", names)?;
    let open = |reach| UpstreamUsers::new(reach, &named, user.map(|(uid, _)| uid));
    reach.map(open).transpose().map_err(UserError::Upstream)
}

/// Finds the uid, and the group if the user was found by name.
fn find(flag: &'static str, name: &UserName) -> Result<(u32, Option<u32>), UserError> {
    match name {
        UserName::Id(uid) => Ok((*uid, None)),
        UserName::Name(name) => {
            let missing =
                || UserError::Missing(flag, name.to_string_lossy().escape_default().collect());
            sys::user_named(name).map(|(uid, group)| (uid, Some(group))).ok_or_else(missing)
        }
    }
}
