//! A configuration: defaults, a TOML file and the environment in, checked values out.
//!
//! A program names its keys in a [`Schema`]; what a value may be and what fits together is its own
//! business, in words that a [`Layers`] collects. Every problem of all layers is found in one go.
//!
//! - [`layers`]: which layer a value comes from, the problems
//! - [`unknown`]: names that do not exist, and what was probably meant
//! - [`values`]: whether a value is of the right kind
//! - [`broker`], [`url`]: how to reach a broker, which both programs ask in the same keys

pub mod broker;
pub mod layers;
pub mod unknown;
pub mod url;
pub mod values;

pub use broker::{Broker, Scheme, Speak};
pub use layers::Layers;

/// A key and what it is when nobody sets it.
#[derive(Debug, PartialEq)]
pub struct Key {
    /// `section.name`.
    pub path: &'static str,
    /// The default.
    pub default: Default,
}

/// A default; also says of which kind the key's values are.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Default {
    /// A text; also a duration, a path, a word.
    Text(&'static str),
    /// A whole number.
    Whole(i64),
    /// A number.
    Number(f64),
    /// True or false.
    Flag(bool),
}

/// The keys of a program.
#[derive(Debug)]
pub struct Schema {
    /// Variables `PREFIX_SECTION__KEY` set keys.
    pub prefix: &'static str,
    /// Beginnings of variables with that prefix which are no keys.
    pub not_keys: &'static [&'static str],
    /// Every key, in the order of the shipped file.
    pub keys: &'static [&'static Key],
    /// Sections whose keys a person names, each with a list of texts.
    pub lists: &'static [&'static str],
}

impl Key {
    /// The part before the dot.
    pub fn section(&self) -> &'static str {
        self.path.split_once('.').map_or("", |(section, _)| section)
    }

    /// The part after the dot.
    pub fn name(&self) -> &'static str {
        self.path
            .split_once('.')
            .map_or(self.path, |(_, name)| name)
    }
}

impl Schema {
    /// The environment variable that sets `path`, `section.name`.
    pub fn variable(&self, path: &str) -> String {
        let path = path.replace('.', "__").to_uppercase();
        format!("{}_{path}", self.prefix)
    }
}

/// Makes a static for each key, and `ALL` of them: `NAME = "section.name", Kind(default);`.
#[macro_export]
macro_rules! keys {
    ($($name:ident = $path:literal, $kind:ident($default:expr);)*) => {
        $(pub(super) static $name: $crate::config::Key = $crate::config::Key {
            path: $path,
            default: $crate::config::Default::$kind($default),
        };)*
        /// All of them.
        pub(super) static ALL: &[&$crate::config::Key] = &[$(&$name),*];
    };
}

/// What people write may hold line breaks and escape sequences; a problem is one line of text.
pub fn on_one_line(line: &str) -> String {
    line.chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect()
}
