//! Names fields, so that whoever knows the text of an object can find the line.

use std::{error, fmt};

/// A field of an object, by the way that leads to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Field(pub Vec<Step>);

/// One step on the way to a field.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Into a mapping.
    Key(String),
    /// Into a list, counted from 0.
    Index(usize),
}

/// Why an object can't be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObjectError {
    /// What is wrong.
    pub field: Field,
    /// Why, as what follows a colon.
    pub reason: String,
}

impl Field {
    /// A field of the object itself.
    pub fn new(key: &str) -> Self {
        Self(vec![Step::Key(key.to_owned())])
    }

    /// A label.
    pub fn label(name: &str) -> Self {
        Self::new("metadata").key("labels").key(name)
    }

    /// An annotation.
    pub fn annotation(name: &str) -> Self {
        Self::new("metadata").key("annotations").key(name)
    }

    /// The field `key` of this one.
    #[must_use]
    pub fn key(mut self, key: &str) -> Self {
        self.0.push(Step::Key(key.to_owned()));
        self
    }

    /// An item of this one.
    #[must_use]
    pub fn index(mut self, index: usize) -> Self {
        self.0.push(Step::Index(index));
        self
    }

    /// Says what is wrong with it.
    pub fn wrong(self, reason: impl Into<String>) -> ObjectError {
        ObjectError { field: self, reason: reason.into() }
    }
}

impl fmt::Display for Field {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (depth, step) in self.0.iter().enumerate() {
            match step {
                Step::Index(index) => write!(f, "[{index}]")?,
                // Names of labels and annotations have dots of their own.
                Step::Key(key) if key.contains(['.', '/']) => write!(f, "[{key:?}]")?,
                Step::Key(key) if depth > 0 => write!(f, ".{key}")?,
                Step::Key(key) => f.write_str(key)?,
            }
        }
        Ok(())
    }
}

impl fmt::Display for ObjectError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.field.0.is_empty() { f.write_str(&self.reason) } else { write!(f, "{}: {}", self.field, self.reason) }
    }
}

impl error::Error for ObjectError {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_field_reads_as_people_write_it() {
        assert_eq!(Field::new("spec").key("ports").index(1).key("port").to_string(), "spec.ports[1].port");
        assert_eq!(Field::label("a.io/b").wrong("missing").to_string(), r#"metadata.labels["a.io/b"]: missing"#);
        assert_eq!(Field(Vec::new()).wrong("not an object").to_string(), "not an object");
    }
}
