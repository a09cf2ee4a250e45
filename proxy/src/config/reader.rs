//! Reads a TOML file key by key and keeps every fault it meets, with the key and the line, so that a
//! person mends a file once and not once per fault.

use std::{
    collections::BTreeSet,
    fmt,
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    time::Duration,
};

use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

/// One fault of a configuration file.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Problem {
    /// Counted from 1; `None` for what is missing from the file as a whole.
    pub line: Option<usize>,
    /// Dotted, as in `pool.vips`.
    pub key: String,
    pub fault: String,
}

/// Every fault of one file.
#[derive(Debug)]
pub struct Problems {
    pub file: PathBuf,
    pub problems: Vec<Problem>,
}

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (nth, problem) in self.problems.iter().enumerate() {
            if nth > 0 {
                writeln!(f)?;
            }
            write!(f, "{}", self.file.display())?;
            if let Some(line) = problem.line {
                write!(f, ":{line}")?;
            }
            if !problem.key.is_empty() {
                write!(f, ": {}", problem.key)?;
            }
            write!(f, ": {}", problem.fault)?;
        }
        Ok(())
    }
}

impl std::error::Error for Problems {}

/// A file being read.
pub struct Reader {
    file: PathBuf,
    source: String,
    problems: Vec<Problem>,
}

/// A table of the file and which of its keys were asked for.
pub struct Table<'a> {
    name: String,
    line: Option<usize>,
    entries: Option<&'a DeTable<'a>>,
    known: BTreeSet<&'static str>,
}

/// What a value of the file can be turned into.
pub trait FromValue: Sized {
    /// # Errors
    /// What the value should have been.
    fn from_value(value: &DeValue<'_>) -> Result<Self, String>;
}

impl Reader {
    /// # Errors
    /// The file cannot be read.
    pub fn open(file: &Path) -> Result<Self, Problems> {
        let fail = |fault: String| Problems {
            file: file.into(),
            problems: vec![Problem { line: None, key: String::new(), fault }],
        };
        let source = std::fs::read_to_string(file).map_err(|e| fail(format!("cannot be read: {e}")))?;
        Ok(Self { file: file.into(), source, problems: vec![] })
    }

    /// Parses the file and lets `read` ask for its keys; faults of both kinds come together.
    ///
    /// # Errors
    /// Every fault, in the order of the file.
    pub fn read<T>(mut self, read: impl FnOnce(&mut Self, &mut Table<'_>) -> Option<T>) -> Result<T, Problems> {
        let source = std::mem::take(&mut self.source);
        let (root, errors) = DeTable::parse_recoverable(&source);
        self.source.clone_from(&source);
        for error in errors {
            let line = error.span().map(|span| self.line(span.start));
            self.problems.push(Problem { line, key: String::new(), fault: error.message().to_owned() });
        }
        let mut table =
            Table { name: String::new(), line: None, entries: Some(root.get_ref()), known: BTreeSet::new() };
        let value = read(&mut self, &mut table);
        self.close(table);
        self.problems.sort();
        match value {
            Some(value) if self.problems.is_empty() => Ok(value),
            _ => Err(Problems { file: self.file, problems: self.problems }),
        }
    }

    /// The directory that relative paths of the file start from.
    #[must_use]
    pub fn directory(&self) -> &Path {
        self.file.parent().unwrap_or(Path::new("."))
    }

    /// A sub-table; absent ones read as empty.
    pub fn table<'a>(&mut self, parent: &mut Table<'a>, key: &'static str) -> Table<'a> {
        parent.known.insert(key);
        let mut table = Table { name: parent.path(key), line: parent.line, entries: None, known: BTreeSet::new() };
        let Some(value) = parent.entries.and_then(|entries| entries.get(key)) else { return table };
        table.line = Some(self.line(value.span().start));
        if let DeValue::Table(entries) = value.get_ref() {
            table.entries = Some(entries);
        } else {
            let fault = format!("should be a table, not {}", kind(value.get_ref()));
            self.problem(table.line, table.name.clone(), fault);
        }
        table
    }

    /// True if the file has this key.
    #[must_use]
    pub fn has(&self, table: &Table<'_>, key: &str) -> bool {
        table.entries.is_some_and(|entries| entries.get(key).is_some())
    }

    /// A value, if the key is there and holds one.
    pub fn optional<T: FromValue>(&mut self, table: &mut Table<'_>, key: &'static str) -> Option<T> {
        table.known.insert(key);
        let value = table.entries?.get(key)?;
        match T::from_value(value.get_ref()) {
            Ok(value) => Some(value),
            Err(fault) => {
                let line = self.line(value.span().start);
                self.problem(Some(line), table.path(key), fault);
                None
            }
        }
    }

    /// A value that must be there.
    pub fn required<T: FromValue>(&mut self, table: &mut Table<'_>, key: &'static str) -> Option<T> {
        if !self.has(table, key) {
            table.known.insert(key);
            self.problem(table.line, table.path(key), "is missing".into());
            return None;
        }
        self.optional(table, key)
    }

    /// A value, or its default.
    pub fn or<T: FromValue>(&mut self, table: &mut Table<'_>, key: &'static str, default: T) -> T {
        self.optional(table, key).unwrap_or(default)
    }

    /// A path, seen from the file's directory.
    pub fn path(&mut self, table: &mut Table<'_>, key: &'static str) -> Option<PathBuf> {
        let path: PathBuf = self.required(table, key)?;
        Some(self.directory().join(path))
    }

    /// Reports a fault of a key's value that only its reader can see.
    pub fn fault(&mut self, table: &Table<'_>, key: &str, fault: impl Into<String>) {
        let line = table.entries.and_then(|entries| entries.get(key)).map(|value| self.line(value.span().start));
        self.problem(line.or(table.line), table.path(key), fault.into());
    }

    /// Ends a table: keys nobody asked for are faults.
    pub fn close(&mut self, table: Table<'_>) {
        let Some(entries) = table.entries else { return };
        for (key, _) in entries.iter() {
            if !table.known.contains(&**key.get_ref()) {
                let line = self.line(key.span().start);
                let known: Vec<_> = table.known.iter().copied().collect();
                let fault = format!("unknown key; known here: {}", known.join(", "));
                self.problem(Some(line), table.path(key.get_ref()), fault);
            }
        }
    }

    fn problem(&mut self, line: Option<usize>, key: String, fault: String) {
        self.problems.push(Problem { line, key, fault });
    }

    fn line(&self, offset: usize) -> usize {
        self.source.bytes().take(offset).filter(|b| *b == b'\n').count() + 1
    }
}

impl Table<'_> {
    fn path(&self, key: &str) -> String {
        if self.name.is_empty() { key.to_owned() } else { format!("{}.{key}", self.name) }
    }
}

fn kind(value: &DeValue<'_>) -> &'static str {
    match value {
        DeValue::String(_) => "a string",
        DeValue::Integer(_) => "a number",
        DeValue::Float(_) => "a decimal number",
        DeValue::Boolean(_) => "true or false",
        DeValue::Datetime(_) => "a date",
        DeValue::Array(_) => "a list",
        DeValue::Table(_) => "a table",
    }
}

impl FromValue for String {
    fn from_value(value: &DeValue<'_>) -> Result<Self, String> {
        let DeValue::String(text) = value else { return Err(format!("should be a string, not {}", kind(value))) };
        Ok(text.clone().into_owned())
    }
}

impl FromValue for PathBuf {
    fn from_value(value: &DeValue<'_>) -> Result<Self, String> {
        String::from_value(value).map(Self::from)
    }
}

impl FromValue for bool {
    fn from_value(value: &DeValue<'_>) -> Result<Self, String> {
        let DeValue::Boolean(value) = value else {
            return Err(format!("should be true or false, not {}", kind(value)));
        };
        Ok(*value)
    }
}

impl FromValue for u64 {
    fn from_value(value: &DeValue<'_>) -> Result<Self, String> {
        let DeValue::Integer(number) = value else {
            return Err(format!("should be a number, not {}", kind(value)));
        };
        Self::from_str_radix(number.as_str(), number.radix())
            .map_err(|e| format!("{} is no number of the right size: {e}", number.as_str()))
    }
}

macro_rules! small_numbers {
    ($($number:ty),+) => {$(
        impl FromValue for $number {
            fn from_value(value: &DeValue<'_>) -> Result<Self, String> {
                let wide = u64::from_value(value)?;
                Self::try_from(wide).map_err(|_e| format!("{wide} is too large: at most {}", Self::MAX))
            }
        }
    )+};
}
small_numbers!(u16, u32, usize);

/// Seconds, with decimals if need be.
impl FromValue for Duration {
    fn from_value(value: &DeValue<'_>) -> Result<Self, String> {
        let text = if let DeValue::Integer(number) = value {
            number.as_str()
        } else if let DeValue::Float(number) = value {
            number.as_str()
        } else {
            return Err(format!("should be a number of seconds, not {}", kind(value)));
        };
        let seconds = text.parse::<f64>().ok();
        seconds
            .and_then(|seconds| Self::try_from_secs_f64(seconds).ok())
            .ok_or_else(|| "is no number of seconds".to_owned())
    }
}

impl FromValue for IpAddr {
    fn from_value(value: &DeValue<'_>) -> Result<Self, String> {
        let text = String::from_value(value)?;
        text.parse().map_err(|_e| format!("{text:?} is no IP address"))
    }
}

impl FromValue for SocketAddr {
    fn from_value(value: &DeValue<'_>) -> Result<Self, String> {
        let text = String::from_value(value)?;
        text.parse().map_err(|_e| format!("{text:?} is no IP address with a port (192.0.2.1:7400, [2001:db8::1]:7400)"))
    }
}

impl<T: FromValue> FromValue for Vec<T> {
    fn from_value(value: &DeValue<'_>) -> Result<Self, String> {
        let DeValue::Array(items) = value else {
            return Err(format!("should be a list, not {}", kind(value)));
        };
        items.iter().map(|item: &Spanned<DeValue<'_>>| T::from_value(item.get_ref())).collect()
    }
}

/// What may be one value or a list of such.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OneOrMore<T>(pub Vec<T>);

impl<T: FromValue> FromValue for OneOrMore<T> {
    fn from_value(value: &DeValue<'_>) -> Result<Self, String> {
        if let DeValue::Array(_) = value {
            Vec::from_value(value).map(Self)
        } else {
            Ok(Self(vec![T::from_value(value)?]))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<(u16, Vec<IpAddr>), Problems> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        Reader::open(file.path()).unwrap().read(|reader, root| {
            let mut section = reader.table(root, "section");
            let port = reader.required(&mut section, "port");
            let list = reader.required(&mut section, "list");
            reader.close(section);
            Some((port?, list?))
        })
    }

    #[test]
    fn every_fault_is_told_with_key_and_line() {
        let told = |text: &str| {
            let problems = read(text).unwrap_err().problems;
            problems.into_iter().map(|p| (p.line, p.key)).collect::<Vec<_>>()
        };
        assert_eq!(
            told("other = 1\n[section]\nport = 70000\nlist = [\"::1\", \"1.2.3\"]\nporr = 3\n"),
            [
                (Some(1), "other".into()),
                (Some(3), "section.port".into()),
                (Some(4), "section.list".into()),
                (Some(5), "section.porr".into())
            ]
        );
        assert_eq!(told(""), [(None, "section.list".into()), (None, "section.port".into())]);
        assert_eq!(told("section = 3\n")[0], (Some(1), "section".into()));
        assert_eq!(told("[section]\nport = 1\nlist = []\n[section\n")[0].0, Some(4));
    }

    #[test]
    fn good_files_read() {
        assert_eq!(read("[section]\nport = 25\nlist = [\"::1\"]").unwrap(), (25, vec!["::1".parse().unwrap()]));
    }
}
