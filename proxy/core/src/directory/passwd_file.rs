//! Dovecot's passwd-file: one user a line, `user:password:uid:gid:gecos:home:shell:extra fields`, of which
//! the user is all that a directory needs. Comments begin with `#`; Dovecot, too, passes over empty lines
//! and takes a line without a colon for a user without a password.

use crate::address::{Address, AddressError};

/// Problems that are kept; further ones are only counted.
pub const MAX_PROBLEMS: usize = 100;

/// What a passwd-file says.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct PasswdFile {
    /// In the order of the file.
    pub users: Vec<Address>,
    /// Users without a domain that no default domain was given for.
    pub bare_names: usize,
    /// The first [`MAX_PROBLEMS`] lines that could not be taken.
    pub problems: Vec<Problem>,
    /// How many lines could not be taken.
    pub problem_count: usize,
}

/// A line that could not be taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {kind}")]
pub struct Problem {
    /// Counted from 1.
    pub line: usize,
    pub kind: ProblemKind,
}

/// Why a line could not be taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ProblemKind {
    #[error("no user before the first colon")]
    NoUser,
    #[error("the user is not UTF-8")]
    NotUtf8,
    #[error("the user is no address: {0}")]
    BadAddress(AddressError),
}

impl PasswdFile {
    /// Reads the content of a file. Bare user names become addresses in `default_domain`.
    #[must_use]
    pub fn parse(content: &[u8], default_domain: Option<&str>) -> Self {
        let mut file = Self::default();
        for (index, line) in content.split(|b| *b == b'\n').enumerate() {
            let line = line.strip_suffix(b"\r").unwrap_or(line);
            if line.starts_with(b"#") || line.iter().all(u8::is_ascii_whitespace) {
                continue;
            }
            match read_user(line, default_domain) {
                Ok(Some(user)) => file.users.push(user),
                Ok(None) => file.bare_names += 1,
                Err(kind) => file.report(Problem { line: index + 1, kind }),
            }
        }
        file
    }

    fn report(&mut self, problem: Problem) {
        self.problem_count += 1;
        if self.problems.len() < MAX_PROBLEMS {
            self.problems.push(problem);
        }
    }
}

/// None: a bare name and no default domain.
fn read_user(line: &[u8], default_domain: Option<&str>) -> Result<Option<Address>, ProblemKind> {
    let user = line.split(|b| *b == b':').next().unwrap_or_default();
    if user.is_empty() {
        return Err(ProblemKind::NoUser);
    }
    let user = std::str::from_utf8(user).map_err(|_error| ProblemKind::NotUtf8)?;
    let parsed = match (user.contains('@'), default_domain) {
        (true, _) => Address::parse(user),
        (false, Some(domain)) => Address::parse(&format!("{user}@{domain}")),
        (false, None) => return Ok(None),
    };
    parsed.map(Some).map_err(ProblemKind::BadAddress)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(file: &PasswdFile) -> Vec<String> {
        file.users.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn reads_users_in_every_form() {
        let content = "# users\n\nalice@a.test:{PLAIN}pw:1000:1000::/home/alice::userdb_quota_rule=*:storage=1G\r\n\
                       Bob@A.test::::::\n   \ncarol@b.test\njörg@b.test:x\nlast@b.test:{SHA512-CRYPT}$6$a:::";
        let file = PasswdFile::parse(content.as_bytes(), None);
        let expected = ["alice@a.test", "Bob@a.test", "carol@b.test", "jörg@b.test", "last@b.test"];
        assert_eq!((names(&file), file.problem_count, file.bare_names), (expected.map(String::from).to_vec(), 0, 0));
    }

    #[test]
    fn bare_names_get_the_default_domain_or_are_counted() {
        let content = b"root:x:0:0::/root:/bin/sh\nalice@a.test:x\n";
        let file = PasswdFile::parse(content, Some("d.test"));
        assert_eq!((names(&file), file.bare_names), (vec!["root@d.test".into(), "alice@a.test".into()], 0));
        let file = PasswdFile::parse(content, None);
        assert_eq!((names(&file), file.bare_names, file.problem_count), (vec!["alice@a.test".into()], 1, 0));
        let file = PasswdFile::parse(content, Some("not a domain"));
        assert_eq!(file.problems, [Problem { line: 1, kind: ProblemKind::BadAddress(AddressError::BadDomain) }]);
    }

    #[test]
    fn says_which_lines_it_could_not_take() {
        let content = b":x\nok@a.test:x\n\xff@a.test:x\ntwo words@a.test:x\na@b@c.test\n@a.test:x\nx@:y\n\0\0@a.test\n";
        let file = PasswdFile::parse(content, None);
        assert_eq!(names(&file), ["ok@a.test"]);
        let lines: Vec<usize> = file.problems.iter().map(|p| p.line).collect();
        assert_eq!(lines, [1, 3, 4, 5, 6, 7, 8]);
        assert_eq!(file.problems[0].to_string(), "line 1: no user before the first colon");
        assert_eq!(file.problems[1].kind, ProblemKind::NotUtf8);
        let file = PasswdFile::parse(&b":\n".repeat(1000), None);
        assert_eq!((file.problem_count, file.problems.len()), (1000, MAX_PROBLEMS));
    }
}
