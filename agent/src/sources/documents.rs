//! Takes a manifest apart into objects and knows on which line each of them, and each of their fields, stands.
//!
//! A stream is split at its document markers before anything is parsed, so a document that is no YAML spoils nothing but
//! itself. `List`s (what `kubectl get -o yaml` prints) are taken apart too. JSON is read as the YAML that it is. What the
//! objects mean is left to [`super::objects`].

use super::objects::Step;
use serde::{
    Deserialize, Deserializer,
    de::{DeserializeSeed, IgnoredAny, MapAccess, SeqAccess, Visitor},
};
use serde_json::{Map, Value};
use serde_saphyr::{Spanned, UserMessageFormatter};
use std::{cell::Cell, fmt, rc::Rc};

/// Longest stream that is read, in bytes: ten times a dump of 5,000 Services with ten endpoints each.
pub const MAX_BYTES: usize = 256 << 20;
/// Bytes that are parsed once more, per stream, to find the lines of fields; after that the object's line has to do.
const LOCATE_BYTES: usize = 64 << 20;

/// One object of a stream.
#[derive(Debug)]
pub struct Document<'a> {
    /// The line it begins on, counted from 1.
    pub line: usize,
    /// The object: always a mapping.
    pub value: Value,
    chunk: Rc<Chunk<'a>>,
    /// Which item of the chunk's `items`, if the chunk is a list.
    item: Option<usize>,
}

/// A document that could not be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unreadable {
    /// The line on which the reader gave up.
    pub line: usize,
    /// Why.
    pub reason: String,
}

/// A document's text within its stream.
#[derive(Debug)]
struct Chunk<'a> {
    text: &'a str,
    /// The line of the stream that `text` begins on.
    first_line: usize,
    /// What is left of [`LOCATE_BYTES`]; shared by the stream.
    locate_bytes: Rc<Cell<usize>>,
}

/// The objects of `stream`, in their order, and what could not be read. Documents without content are left out.
pub fn documents(stream: &[u8]) -> Vec<Result<Document<'_>, Unreadable>> {
    let text = match text(stream) {
        Ok(text) => text,
        Err(unreadable) => return vec![Err(unreadable)],
    };
    let locate_bytes = Rc::new(Cell::new(LOCATE_BYTES));
    let mut found = Vec::new();
    for (first_line, text) in chunks(text) {
        let chunk = Rc::new(Chunk { text, first_line, locate_bytes: Rc::clone(&locate_bytes) });
        match serde_saphyr::from_str_with_options::<Top>(text, options()) {
            Ok(top) => take_apart(top, &chunk, &mut found),
            Err(error) => found.push(Err(unreadable(&error, first_line))),
        }
    }
    found
}

/// Whether nothing at all is in `stream`: no document and no text that is none. A list without items is something.
pub fn is_blank(stream: &[u8]) -> bool {
    text(stream).is_ok_and(|text| chunks(text).is_empty())
}

impl Document<'_> {
    /// The line on which `field` stands; the nearest one above it that exists if it is missing.
    pub fn line_of(&self, field: &[Step]) -> usize {
        let items = self.item.map(|item| [Step::Key("items".to_owned()), Step::Index(item)]);
        let path: Vec<Step> = items.into_iter().flatten().chain(field.iter().cloned()).collect();
        self.chunk.locate(&path).map_or(self.line, |line| line.max(self.line))
    }
}

fn text(stream: &[u8]) -> Result<&str, Unreadable> {
    if stream.len() > MAX_BYTES {
        let reason = format!("{} bytes are more than the {MAX_BYTES} that are read", stream.len());
        return Err(Unreadable { line: 1, reason });
    }
    let text = str::from_utf8(stream).map_err(|error| {
        let newlines = stream[..error.valid_up_to()].iter().filter(|byte| **byte == b'\n').count();
        Unreadable { line: newlines + 1, reason: "not UTF-8 text".to_owned() }
    })?;
    Ok(text.strip_prefix('\u{feff}').unwrap_or(text))
}

/// Splits at lines that begin with `---` or `...`, which YAML allows nowhere inside a document, not even in a block of
/// text; returns what has content, with the line that it begins on.
fn chunks(text: &str) -> Vec<(usize, &str)> {
    let mut chunks = Vec::new();
    let (mut start, mut start_line, mut content_line) = (0, 1, None);
    let mut offset = 0;
    for (index, line) in text.split_inclusive('\n').enumerate() {
        let number = index + 1;
        let begins = marker(line, "---");
        let ends = marker(line, "...");
        if begins || ends {
            push_chunk(&mut chunks, &text[start..offset], start_line, content_line.take());
            // The marker stays with what it begins, which may be on the same line.
            start = if begins { offset } else { offset + line.len() };
            start_line = if begins { number } else { number + 1 };
        }
        let content = if begins { &line[3..] } else { line };
        if content_line.is_none() && !ends && has_content(content) {
            content_line = Some(number);
        }
        offset += line.len();
    }
    push_chunk(&mut chunks, &text[start..], start_line, content_line);
    chunks
}

fn push_chunk<'a>(chunks: &mut Vec<(usize, &'a str)>, text: &'a str, first_line: usize, content: Option<usize>) {
    if content.is_some() {
        chunks.push((first_line, text));
    }
}

fn marker(line: &str, marker: &str) -> bool {
    line.strip_prefix(marker).is_some_and(|rest| rest.is_empty() || rest.starts_with([' ', '\t', '\r', '\n']))
}

/// Neither blank nor a comment nor a directive such as `%YAML 1.2`.
fn has_content(line: &str) -> bool {
    let line = line.trim();
    !line.is_empty() && !line.starts_with(['#', '%'])
}

/// Generous for what people keep in a file, tight for aliases: no manifest needs many, and they multiply.
fn options() -> serde_saphyr::Options {
    serde_saphyr::options! {
        with_snippet: false,
        budget: serde_saphyr::budget! {
            max_events: MAX_BYTES,
            max_nodes: MAX_BYTES,
            max_total_scalar_bytes: MAX_BYTES,
            max_depth: 64,
            max_documents: 1,
        },
        alias_limits: serde_saphyr::alias_limits! { max_total_replayed_events: 100_000 },
        non_finite_float_policy: serde_saphyr::options::NonFiniteFloatPolicy::AsString,
    }
}

fn unreadable(error: &serde_saphyr::Error, first_line: usize) -> Unreadable {
    let message = error.render_with_formatter(&UserMessageFormatter);
    // The line that it names is one of the chunk; the one of the stream stands beside it.
    let reason = message.rfind(" at line ").map_or(message.as_str(), |end| &message[..end]);
    Unreadable { line: line_of(error.location(), first_line), reason: reason.to_owned() }
}

fn line_of(location: Option<serde_saphyr::Location>, first_line: usize) -> usize {
    let within = location.map_or(0, |location| location.line().saturating_sub(1));
    first_line + usize::try_from(within).unwrap_or(0)
}

/// A document: a mapping, with its list of items apart from the other fields.
struct Top {
    line: Option<serde_saphyr::Location>,
    rest: Map<String, Value>,
    items: Option<Vec<Spanned<Value>>>,
}

impl<'de> Deserialize<'de> for Top {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let found = Spanned::<Fields>::deserialize(deserializer)?;
        Ok(Self { line: Some(found.referenced), rest: found.value.rest, items: found.value.items })
    }
}

struct Fields {
    rest: Map<String, Value>,
    items: Option<Vec<Spanned<Value>>>,
}

impl<'de> Deserialize<'de> for Fields {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(FieldsVisitor)
    }
}

struct FieldsVisitor;

impl<'de> Visitor<'de> for FieldsVisitor {
    type Value = Fields;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Fields, A::Error> {
        let mut fields = Fields { rest: Map::new(), items: None };
        while let Some(key) = map.next_key::<String>()? {
            if key == "items" {
                fields.items = map.next_value::<Items>()?.0;
            } else {
                fields.rest.insert(key, map.next_value()?);
            }
        }
        Ok(fields)
    }
}

/// The items of a list; none if a field of that name is something else.
struct Items(Option<Vec<Spanned<Value>>>);

impl<'de> Deserialize<'de> for Items {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct ItemsVisitor;
        impl<'de> Visitor<'de> for ItemsVisitor {
            type Value = Items;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list of objects")
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Items, A::Error> {
                let mut items = Vec::new();
                while let Some(item) = seq.next_element()? {
                    items.push(item);
                }
                Ok(Items(Some(items)))
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Items, A::Error> {
                while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
                Ok(Items(None))
            }
            fn visit_unit<E>(self) -> Result<Items, E> {
                Ok(Items(Some(Vec::new())))
            }
        }
        deserializer.deserialize_any(ItemsVisitor)
    }
}

fn take_apart<'a>(top: Top, chunk: &Rc<Chunk<'a>>, found: &mut Vec<Result<Document<'a>, Unreadable>>) {
    let kind = top.rest.get("kind").and_then(Value::as_str).unwrap_or_default();
    let (Some(items), Some(item_kind)) = (top.items, kind.strip_suffix("List")) else {
        let line = line_of(top.line, chunk.first_line);
        found.push(Ok(Document { line, value: Value::Object(top.rest), chunk: Rc::clone(chunk), item: None }));
        return;
    };
    // The items of a `List` say what they are; those of a `ServiceList`, as the API itself prints it, don't.
    let default_kind = (!item_kind.is_empty()).then(|| Value::from(item_kind));
    let default_version = top.rest.get("apiVersion").cloned();
    for (index, item) in items.into_iter().enumerate() {
        let line = line_of(Some(item.referenced), chunk.first_line);
        let Value::Object(mut object) = item.value else {
            found.push(Err(Unreadable { line, reason: "an item of a list is not an object".to_owned() }));
            continue;
        };
        if let Some(kind) = &default_kind {
            object.entry("kind").or_insert_with(|| kind.clone());
            if let Some(version) = &default_version {
                object.entry("apiVersion").or_insert_with(|| version.clone());
            }
        }
        let value = Value::Object(object);
        found.push(Ok(Document { line, value, chunk: Rc::clone(chunk), item: Some(index) }));
    }
}

impl Chunk<'_> {
    /// The line of the node that `path` leads to, or of the deepest one on the way that exists.
    ///
    /// Parses the chunk again: problems are rare, and keeping a place for every node would cost every good file.
    fn locate(&self, path: &[Step]) -> Option<usize> {
        self.locate_bytes.set(self.locate_bytes.get().checked_sub(self.text.len())?);
        let deepest = Cell::new(None);
        let seed = Locate { path, deepest: &deepest };
        let parsed = serde_saphyr::with_deserializer_from_str_with_options(self.text, options(), |document| {
            seed.deserialize(document)
        });
        // It was parsed before; if it can't be now, the object's own line has to do.
        parsed.ok()?;
        deepest.get().map(|location| line_of(Some(location), self.first_line))
    }
}

/// Follows a path and leaves out all else.
#[derive(Clone, Copy)]
struct Locate<'p> {
    path: &'p [Step],
    deepest: &'p Cell<Option<serde_saphyr::Location>>,
}

impl<'de> DeserializeSeed<'de> for Locate<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        match self.path {
            [] => {
                self.deepest.set(Some(Spanned::<IgnoredAny>::deserialize(deserializer)?.referenced));
                Ok(())
            }
            _ => deserializer.deserialize_any(self),
        }
    }
}

impl<'de> Visitor<'de> for Locate<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("anything")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some(key) = map.next_key::<Spanned<String>>()? {
            match self.path {
                [Step::Key(wanted), rest @ ..] if *wanted == key.value => {
                    // The key's line, not the value's: a block begins on the line after.
                    self.deepest.set(Some(key.referenced));
                    match rest {
                        [] => drop(map.next_value::<IgnoredAny>()?),
                        _ => map.next_value_seed(Self { path: rest, ..self })?,
                    }
                }
                _ => drop(map.next_value::<IgnoredAny>()?),
            }
        }
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        for index in 0.. {
            let more = match self.path {
                [Step::Index(wanted), rest @ ..] if *wanted == index => {
                    seq.next_element_seed(Self { path: rest, ..self })?
                }
                _ => seq.next_element::<IgnoredAny>()?.map(drop),
            };
            if more.is_none() {
                break;
            }
        }
        Ok(())
    }

    // A scalar where the path goes on: what is deepest stays.
    fn visit_bool<E>(self, _: bool) -> Result<(), E> {
        Ok(())
    }
    fn visit_i64<E>(self, _: i64) -> Result<(), E> {
        Ok(())
    }
    fn visit_u64<E>(self, _: u64) -> Result<(), E> {
        Ok(())
    }
    fn visit_f64<E>(self, _: f64) -> Result<(), E> {
        Ok(())
    }
    fn visit_str<E>(self, _: &str) -> Result<(), E> {
        Ok(())
    }
    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    #[test]
    fn every_document_of_a_stream_knows_its_line() {
        let stream = "# a comment\n---\n\na: 1\n---\n# nothing here\n--- # a marker with a comment\nb: 2\n...\n%YAML 1.2\n---\nc: 3\n";
        assert_eq!(lines(stream), [(4, json!({"a": 1})), (8, json!({"b": 2})), (12, json!({"c": 3}))]);
    }

    #[test]
    fn a_marker_inside_a_line_or_a_block_of_text_splits_nothing() {
        let stream = "text: |\n  ---\n  more\ndashes: a---b\n---x: 1\n";
        assert_eq!(lines(stream), [(1, json!({"text": "---\nmore\n", "dashes": "a---b", "---x": 1}))]);
    }

    #[test]
    fn a_document_that_is_no_yaml_spoils_only_itself() {
        let found = documents(b"a: 1\n---\nb: [1\nc: 2\n---\nd: 3\n");
        let lines: Vec<_> = found.iter().map(|found| found.as_ref().map(|document| document.line)).collect();
        assert_eq!(lines[0], Ok(1));
        assert_eq!(lines[1].unwrap_err().line, 4);
        assert!(!lines[1].unwrap_err().reason.contains("line"), "{:?}", lines[1]);
        assert_eq!(lines[2], Ok(6));
    }

    #[test]
    fn a_list_is_taken_apart_with_the_line_of_each_item() {
        let stream = "apiVersion: v1\nitems:\n- a: 1\n  b: 2\n\n- a: 3\nkind: List\n";
        assert_eq!(lines(stream), [(3, json!({"a": 1, "b": 2})), (6, json!({"a": 3}))]);
    }

    #[test]
    fn the_items_of_a_typed_list_get_its_kind_and_version() {
        let stream = r#"{"kind": "ServiceList", "apiVersion": "v1", "items": [{"metadata": {"name": "a"}}]}"#;
        assert_eq!(lines(stream), [(1, json!({"kind": "Service", "apiVersion": "v1", "metadata": {"name": "a"}}))]);
    }

    #[test]
    fn a_list_that_was_cut_off_is_not_a_shorter_list() {
        // `kubectl` writes the kind after the items.
        assert_eq!(lines("apiVersion: v1\nitems:\n- a: 1\n"), [(1, json!({"apiVersion": "v1"}))]);
    }

    #[test]
    fn an_empty_list_is_not_blank_but_a_comment_is() {
        assert!(!is_blank(b"kind: List\nitems: []\n"));
        assert!(documents(b"kind: List\nitems: []\n").is_empty());
        assert!(is_blank(b"# later\n---\n"));
        assert!(is_blank(b""));
    }

    #[test]
    fn json_is_read_with_tabs_and_escapes() {
        let stream = "{\n\t\"a\": \"\\u003cb\\u003e \\ud83d\\ude00 \\/\",\n\t\"n\": [1, true, null]\n}\n";
        assert_eq!(lines(stream), [(1, json!({"a": "<b> \u{1f600} /", "n": [1, true, null]}))]);
    }

    #[test]
    fn quoted_scalars_stay_text_and_a_byte_order_mark_is_no_key() {
        let stream = "\u{feff}a: \"true\"\nb: '8080'\nc: 10.0.0.1\nd: None\n";
        assert_eq!(lines(stream), [(1, json!({"a": "true", "b": "8080", "c": "10.0.0.1", "d": "None"}))]);
    }

    #[test]
    fn the_line_of_a_field_is_found_in_documents_and_in_items() {
        let single = "x: 1\n---\nspec:\n  ports:\n  - port: 1\n    name: a\n  - name: b\n    port: 2\n";
        let list = "kind: List\nitems:\n- {}\n- spec:\n    ports:\n    - port: 1\n    - port: 2\n";
        let path = [key("spec"), key("ports"), Step::Index(1), key("port")];
        assert_eq!(documents(single.as_bytes())[1].as_ref().unwrap().line_of(&path), 8);
        assert_eq!(documents(list.as_bytes())[1].as_ref().unwrap().line_of(&path), 7);
    }

    #[test]
    fn the_line_of_a_missing_field_is_that_of_what_should_hold_it() {
        let found = documents(b"a: 1\nspec:\n  ports: []\n");
        let document = found[0].as_ref().unwrap();
        assert_eq!(document.line_of(&[key("spec"), key("clusterIP")]), 2);
        assert_eq!(document.line_of(&[key("metadata"), key("name")]), 1);
        assert_eq!(document.line_of(&[]), 1);
    }

    #[test]
    fn aliases_that_multiply_are_refused() {
        let mut bomb = "a0: &a0 [x,x,x,x,x,x,x,x,x,x]\n".to_owned();
        for level in 1..9 {
            let aliases = vec![format!("*a{}", level - 1); 10].join(",");
            bomb += &format!("a{level}: &a{level} [{aliases}]\n");
        }
        let refused = documents(bomb.as_bytes()).pop().unwrap().unwrap_err();
        assert!(refused.reason.contains("too large or too complex"), "{refused:?}");
    }

    #[test]
    fn depth_that_would_cost_the_stack_is_refused() {
        let deep = "[".repeat(100_000);
        assert!(documents(format!("a: {deep}").as_bytes())[0].is_err());
        let nested: String = (0..200).map(|depth| format!("{}k:\n", " ".repeat(depth))).collect();
        assert!(documents(nested.as_bytes())[0].is_err());
    }

    #[test]
    fn what_is_not_utf_8_is_named_with_its_line() {
        let unreadable = documents(b"a: 1\nb: \xff\n").pop().unwrap().unwrap_err();
        assert_eq!(unreadable, Unreadable { line: 2, reason: "not UTF-8 text".to_owned() });
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            read_all(&bytes);
        }

        #[test]
        fn no_heap_of_yaml_panics(parts in proptest::collection::vec(proptest::sample::select(YAML), 0..60)) {
            read_all(parts.concat().as_bytes());
        }
    }

    /// Pieces that make documents of all sorts, and mostly bad ones.
    const YAML: &[&str] = &[
        "---",
        "...",
        "\n",
        "\r\n",
        " ",
        "\t",
        "a",
        ": ",
        "- ",
        "[",
        "]",
        "{",
        "}",
        ",",
        "items:",
        "kind: List",
        "|",
        ">-",
        "&x",
        "*x",
        "<<: ",
        "!!str",
        "? ",
        "\"",
        "'",
        "#",
        "%YAML 1.2",
        "~",
        "0x",
        "1e999",
        ".nan",
        "\\",
        "\u{feff}",
        "\u{85}",
    ];

    fn read_all(bytes: &[u8]) {
        for document in documents(bytes).into_iter().flatten() {
            assert!(document.value.is_object());
            assert!(document.line_of(&[key("a"), Step::Index(0)]) >= document.line);
        }
    }

    fn lines(stream: &str) -> Vec<(usize, Value)> {
        documents(stream.as_bytes())
            .into_iter()
            .map(|found| found.map(|document| (document.line, document.value)).unwrap())
            .collect()
    }

    fn key(name: &str) -> Step {
        Step::Key(name.to_owned())
    }
}
