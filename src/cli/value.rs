//! Parses the value of a flag. Each error names the flag.

use std::ffi::{CString, OsString};
use std::path::PathBuf;
use std::time::Duration;

use super::config::{UserAndGroup, UserName};
use super::usage_error::{LAST_ID, UsageError};
use crate::http1::digits;
use crate::http1::field::is_token_byte;
use crate::http1::host::HostKind;
use crate::http1::url::{Scheme, UpstreamUrl};
use crate::oidc::limits;

/// The value of a flag, as it was typed.
pub struct Value {
    /// The name of the flag, without dashes.
    pub flag: &'static str,
    /// The text.
    pub text: OsString,
}

impl Value {
    /// A whole number from `least` to `most`.
    pub fn number(self, least: u64, most: u64) -> Result<u64, UsageError> {
        match digits::decimal(self.text.as_encoded_bytes(), 19) {
            Some(number) if (least..=most).contains(&number) => Ok(number),
            _ => Err(UsageError::Number(self.flag, least, most)),
        }
    }

    /// A whole number of seconds, from `least` to 86,400 (one day).
    pub fn seconds(self, least: u64) -> Result<Duration, UsageError> {
        self.number(least, 86_400).map(Duration::from_secs)
    }

    /// A text in UTF-8.
    pub fn text(self) -> Result<String, UsageError> {
        self.text.into_string().map_err(|_| UsageError::Text(self.flag))
    }

    /// A field name (RFC 9110 §5.1). The name is leaked once, because it lasts as long as the
    /// program.
    pub fn field_name(self) -> Result<&'static [u8], UsageError> {
        let flag = self.flag;
        let name = self.text()?.leak().as_bytes();
        let is_token = !name.is_empty() && name.iter().all(|byte| is_token_byte(*byte));
        if is_token { Ok(name) } else { Err(UsageError::FieldName(flag)) }
    }

    /// A host without a port. The name is leaked once, because it lasts as long as the program.
    pub fn host_name(self) -> Result<&'static [u8], UsageError> {
        let flag = self.flag;
        let name = self.text()?.leak().as_bytes();
        if HostKind::can_be_allowed(name) { Ok(name) } else { Err(UsageError::HostName(flag)) }
    }

    /// A path that is not empty.
    pub fn path(self) -> Result<PathBuf, UsageError> {
        if self.text.is_empty() { Err(UsageError::NoPath(self.flag)) } else { Ok(self.text.into()) }
    }

    /// A user, by number or name.
    pub fn user_name(self) -> Result<UserName, UsageError> {
        let flag = self.flag;
        let text = self.text()?;
        match digits::decimal(text.as_bytes(), 19) {
            Some(id @ 0..=LAST_ID) => Ok(UserName::Id(id as u32)),
            _ if text.bytes().all(|byte| byte.is_ascii_digit()) => Err(UsageError::UserName(flag)),
            _ => CString::new(text).map(UserName::Name).or(Err(UsageError::UserName(flag))),
        }
    }

    /// A user by name or number, optionally followed by a colon and a gid.
    pub fn user(self) -> Result<UserAndGroup, UsageError> {
        let text = self.text()?;
        let id = |text: &str| digits::decimal(text.as_bytes(), 19).filter(|id| *id <= LAST_ID);
        let (user, group) = match text.split_once(':') {
            Some((user, group)) => (user, Some(id(group).ok_or(UsageError::User)? as u32)),
            None => (&*text, None),
        };
        let user = match id(user) {
            Some(uid) => UserName::Id(uid as u32),
            None if user.is_empty() => return Err(UsageError::User),
            None => UserName::Name(CString::new(user).map_err(|_| UsageError::User)?),
        };
        Ok(UserAndGroup { user, group })
    }

    /// A URL to which a token is sent: https, or http to a loopback host.
    pub fn token_url(self) -> Result<UpstreamUrl, UsageError> {
        let flag = self.flag;
        let url =
            UpstreamUrl::parse(&self.text()?).map_err(|error| UsageError::OidcUrl(flag, error))?;
        match url.scheme {
            Scheme::Http if !url.is_loopback() => Err(UsageError::OidcPlaintext(flag)),
            Scheme::Http | Scheme::Https => Ok(url),
        }
    }

    /// A name or number that is sent to a token endpoint.
    pub fn id(self) -> Result<String, UsageError> {
        let flag = self.flag;
        let text = self.text()?;
        match text.len() {
            1..=limits::ID => Ok(text),
            _ => Err(UsageError::OidcId(flag)),
        }
    }
}
