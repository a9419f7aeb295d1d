//! Objects that can't be read as a whole: what of them can be read nevertheless.

use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

/// An object that can't be read as a whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unread<T> {
    /// Why, with the field.
    pub reason: String,
    /// Its metadata, its status, and those fields of its spec that can be read each by itself. What is missing here may have been
    /// said: nothing must be let in because of that.
    pub part: Box<T>,
}

/// An object, whole if that can be.
///
/// # Errors
///
/// It can't, and this is what there is of it.
pub fn read<T: DeserializeOwned + Default>(value: Value) -> Result<T, Unread<T>> {
    let reason = match serde_path_to_error::deserialize(&value) {
        Ok(whole) => return Ok(whole),
        Err(error) => format!("{}: {}", error.path(), error.inner()),
    };
    let can_be_read = |object: &Map<String, Value>| T::deserialize(Value::Object(object.clone())).is_ok();
    let mut part = Map::new();
    for field in ["metadata", "status"] {
        let Some(said) = value.get(field) else { continue };
        part.insert(field.to_owned(), said.clone());
        if !can_be_read(&part) {
            part.remove(field);
        }
    }
    let mut spec = Map::new();
    for (field, said) in value.get("spec").and_then(Value::as_object).into_iter().flatten() {
        spec.insert(field.clone(), said.clone());
        part.insert("spec".to_owned(), Value::Object(spec.clone()));
        if !can_be_read(&part) {
            spec.remove(field);
        }
    }
    part.insert("spec".to_owned(), Value::Object(spec));
    Err(Unread { reason, part: Box::new(T::deserialize(Value::Object(part)).unwrap_or_default()) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mirror::links::object::LinkObject;
    use serde_json::json;

    #[test]
    fn what_can_be_read_by_itself_is_read_whatever_is_beside_it() {
        let spec = json!({
            "mode": "Sideways", "cluster": "e1", "podRanges": 7, "credentials": {"secretName": "s"},
        });
        let object = json!({"metadata": {"name": "east", "generation": 3}, "spec": spec, "status": {"cluster": "e1"}});
        let unread = read::<LinkObject>(object).unwrap_err();
        assert!(unread.reason.contains("Sideways"), "{}", unread.reason);
        let LinkObject { metadata, spec, status } = *unread.part;
        assert_eq!((metadata.generation, status), (Some(3), Some(json!({"cluster": "e1"}))));
        assert_eq!(spec.cluster.as_deref(), Some("e1"));
        assert_eq!(spec.credentials.secret_name.as_deref(), Some("s"));
        assert!(spec.pod_ranges.is_empty());
    }

    #[test]
    fn of_what_is_no_object_at_all_nothing_is_read() {
        for nonsense in [json!(7), json!({"metadata": 1, "spec": 2, "status": 3})] {
            assert_eq!(read::<LinkObject>(nonsense).unwrap_err().part.spec.cluster, None);
        }
    }
}
