//! Tests of the source on real folders.

use super::*;
use crate::model::{ClusterName, Model};
use crate::sources::Event;
use std::{fmt::Write as _, io::Write as _, os::unix::fs::symlink, time::Instant};
use tempfile::TempDir;
use tokio::{
    sync::mpsc::{self, Receiver},
    task::JoinHandle,
    time::timeout,
};

#[test]
fn only_what_changed_is_told() {
    let mut folder = Folder::new();
    folder.write("a.yaml", &(shop("one", 80) + &shop("two", 80)));
    assert_eq!(folder.load(), ["one 80", "two 80"]);
    assert_eq!(folder.load(), [""; 0]);
    folder.write("a.yaml", &(shop("two", 81) + &shop("three", 80)));
    assert_eq!(folder.load(), ["one gone", "three 80", "two 81"]);
    folder.remove("a.yaml");
    assert_eq!(folder.load(), ["three gone", "two gone"]);
}

#[test]
fn good_documents_come_through_among_bad_ones() {
    let mut folder = Folder::new();
    folder.write("a.yaml", include_str!("../../../../tests/fixtures/bad-among-good.yaml"));
    assert_eq!(folder.load(), ["first 80", "second 80", "third 80"]);
    let said = folder.problems();
    let expected = [
        "a.yaml:18: Service shop/port-out-of-range: spec.ports[1].port: 70000 is not from 1 to 65535",
        "a.yaml:30: ",
        "a.yaml:42: EndpointSlice shop/bad-address: endpoints[0].addresses[0]: \"10.1.2.300\" is not an IP address",
        "a.yaml:53: Service shop/bad-type: spec.ports[0].port: invalid type: string \"80\", expected i32",
    ];
    assert_eq!(said.len(), expected.len(), "{said:#?}");
    for (said, expected) in said.iter().zip(expected) {
        assert!(said.starts_with(expected), "{said} is not {expected}");
    }
}

#[test]
fn the_last_good_state_of_a_bad_document_stays() {
    let mut folder = Folder::new();
    folder.write("a.yaml", &(shop("one", 80) + &shop("two", 80) + &shop("three", 80)));
    folder.load();
    folder.write("a.yaml", &(shop("one", 81) + &shop("two", 70_000)));
    assert_eq!(folder.load(), ["one 81", "three gone"]);
    assert_eq!(
        folder.problems(),
        ["a.yaml:12: Service shop/two: spec.ports[0].port: 70000 is not from 1 to 65535; its last good state stays"]
    );
    folder.write("a.yaml", &shop("one", 81));
    assert_eq!(folder.load(), ["two gone"]);
    assert_eq!(folder.problems(), [""; 0]);
}

#[test]
fn a_file_that_is_no_yaml_loses_nothing_and_holds_up_no_other() {
    let mut folder = Folder::new();
    folder.write("a.yaml", &(shop("one", 80) + &shop("two", 80)));
    folder.write("b.yaml", &shop("three", 80));
    folder.load();
    folder.write("a.yaml", &(shop("one", 81) + "---\n{{ if }}\n"));
    folder.write("b.yaml", &shop("three", 81));
    assert_eq!(folder.load(), ["one 81", "three 81"]);
    let said = folder.problems();
    assert!(said[0].starts_with("a.yaml:8: ") && said[0].ends_with("lacks now stays"), "{said:?}");
    folder.write("a.yaml", &shop("one", 81));
    assert_eq!(folder.load(), ["two gone"]);
}

#[test]
fn a_list_that_was_cut_off_loses_nothing() {
    let mut folder = Folder::new();
    let list = include_str!("../../../../tests/fixtures/dump-west.yaml");
    folder.write("dump.yaml", list);
    assert_eq!(folder.load().len(), 5);
    let (half, _) = list.split_at(list.find("    name: frontend-federated").unwrap());
    folder.write("dump.yaml", half);
    assert_eq!(folder.load(), [""; 0]);
    assert!(folder.problems()[0].contains("kind: missing"), "{:?}", folder.problems());
}

#[test]
fn an_empty_file_is_one_that_is_not_yet_written() {
    let mut folder = Folder::new();
    folder.write("new.yaml", "");
    assert_eq!(folder.load(), [""; 0]);
    assert_eq!(folder.problems(), [""; 0]);
    folder.write("new.yaml", &shop("one", 80));
    folder.load();
    folder.write("new.yaml", "");
    assert_eq!(folder.load(), [""; 0]);
    assert_eq!(folder.problems(), ["new.yaml:1: nothing is in it; what it held before stays until the file goes"]);
    folder.write("new.yaml", "kind: List\napiVersion: v1\nitems: []\n");
    assert_eq!(folder.load(), ["one gone"]);
}

#[test]
fn of_an_object_in_two_files_the_later_name_holds() {
    let mut folder = Folder::new();
    folder.write("b.yaml", &shop("one", 82));
    assert_eq!(folder.load(), ["one 82"]);
    folder.write("a.yaml", &shop("one", 81));
    assert_eq!(folder.load(), [""; 0]);
    assert_eq!(folder.problems(), ["a.yaml:2: Service shop/one is also in b.yaml:2, which holds"]);
    folder.remove("b.yaml");
    assert_eq!(folder.load(), ["one 81"]);
    assert_eq!(folder.problems(), [""; 0]);
}

#[test]
fn of_an_object_twice_in_a_file_the_later_one_holds() {
    let mut folder = Folder::new();
    folder.write("a.yaml", &(shop("one", 81) + &shop("one", 82)));
    assert_eq!(folder.load(), ["one 82"]);
    assert_eq!(folder.problems(), ["a.yaml:2: Service shop/one is also on line 8, which holds"]);
}

#[test]
fn what_is_wrong_with_an_annotation_is_told_with_its_file() {
    let mut folder = Folder::new();
    let service = shop("one", 80).replace("labels:", "annotations: {tombolo.io/traffic: fast}, labels:");
    folder.write("a.yaml", &service);
    assert_eq!(folder.load(), ["one 80"]);
    assert!(folder.problems()[0].starts_with("a.yaml:2: Service shop/one: annotation tombolo.io/traffic: \"fast\""));
}

#[test]
fn a_folder_that_is_missing_is_an_error_and_takes_nothing_away() {
    let mut folder = Folder::new();
    folder.write("a.yaml", &shop("one", 80));
    folder.load();
    let aside = folder.dir.path().with_extension("aside");
    fs::rename(folder.dir.path(), &aside).unwrap();
    let error = folder.source.load().unwrap_err();
    assert!(format!("{error:#}").starts_with("list manifests in /"), "{error:#}");
    fs::rename(&aside, folder.dir.path()).unwrap();
    assert_eq!(folder.load(), [""; 0]);
}

#[test]
fn a_file_that_can_not_be_read_keeps_what_it_held() {
    let mut folder = Folder::new();
    folder.write("a.yaml", &shop("one", 80));
    folder.load();
    folder.remove("a.yaml");
    let path = folder.dir.path().join("a.yaml");
    symlink(&path, &path).unwrap();
    assert_eq!(folder.load(), [""; 0]);
    let said = folder.problems();
    assert!(said[0].starts_with("a.yaml: read: ") && said[0].ends_with("what it held stays"), "{said:?}");
    folder.remove("a.yaml");
    assert_eq!(folder.load(), ["one gone"]);
}

#[test]
fn hidden_files_folders_and_other_files_are_not_read() {
    let mut folder = Folder::new();
    for name in [".hidden.yaml", "a.yaml~", "a.yaml.swp", "README.md", "yaml"] {
        folder.write(name, &shop("one", 80));
    }
    fs::create_dir(folder.dir.path().join("folder.yaml")).unwrap();
    assert_eq!(folder.load(), [""; 0]);
    assert_eq!(folder.problems(), [""; 0]);
    folder.write("a.yml", &shop("two", 80));
    folder.write("a.json", r#"{"kind": "List", "apiVersion": "v1", "items": []}"#);
    assert_eq!(folder.load(), ["two 80"]);
}

#[test]
fn a_file_is_read_again_though_it_was_rewritten_within_one_tick_of_the_clock() {
    let mut folder = Folder::new();
    folder.write("a.yaml", &shop("one", 80));
    let modified = fs::metadata(folder.dir.path().join("a.yaml")).unwrap().modified().unwrap();
    folder.load();
    folder.write("a.yaml", &shop("one", 81));
    let file = fs::File::options().write(true).open(folder.dir.path().join("a.yaml")).unwrap();
    file.set_modified(modified).unwrap();
    assert_eq!(folder.load(), ["one 81"]);
}

#[test]
fn the_links_of_a_config_map_volume_are_followed() {
    let mut folder = Folder::new();
    folder.publish("1", &[("a.yaml", shop("one", 80)), ("b.yaml", shop("two", 80))]);
    assert_eq!(folder.load(), ["one 80", "two 80"]);
    folder.publish("2", &[("a.yaml", shop("one", 81))]);
    assert_eq!(folder.load(), ["one 81", "two gone"]);
}

#[tokio::test]
async fn the_first_full_list_comes_before_synced() {
    let folder = Folder::new();
    folder.write("a.yaml", &shop("one", 80));
    folder.write("b.yaml", "a: [");
    let (mut events, task) = folder.run();
    assert!(matches!(next(&mut events).await, Event::Changes(changes) if changes.len() == 1));
    assert!(matches!(next(&mut events).await, Event::Problems(problems) if problems.len() == 1));
    assert_eq!(next(&mut events).await, Event::Synced { complete: false });
    // What this file held when an agent before us read it is known to that one alone.
    folder.write("b.yaml", "");
    assert_eq!(next(&mut events).await, Event::Problems(vec![]));
    folder.write("b.yaml", &shop("two", 80));
    assert_eq!(words(&changes(&mut events).await), ["two 80"]);
    assert_eq!(next(&mut events).await, Event::Synced { complete: true });
    folder.write("b.yaml", "a: [");
    assert!(matches!(next(&mut events).await, Event::Problems(problems) if problems.len() == 1));
    drop(events);
    task.await.unwrap().unwrap();
}

#[tokio::test]
async fn an_empty_folder_is_synced_and_a_missing_one_is_an_error() {
    let folder = Folder::new();
    let (mut events, task) = folder.run();
    assert_eq!(next(&mut events).await, Event::Synced { complete: true });
    drop(events);
    task.await.unwrap().unwrap();
    let (sender, _events) = mpsc::channel(8);
    let error = ManifestSource::new("/does/not/exist", options()).run(sender).await.unwrap_err();
    assert_eq!(format!("{error:#}"), "list manifests in /does/not/exist: No such file or directory (os error 2)");
}

#[tokio::test]
async fn a_change_is_told_long_before_the_net_would_find_it() {
    let folder = Folder::new();
    let (mut events, task) = folder.run();
    assert_eq!(next(&mut events).await, Event::Synced { complete: true });
    for port in 80..90 {
        let begin = Instant::now();
        folder.write("a.yaml", &shop("one", port));
        assert_eq!(words(&changes(&mut events).await), [format!("one {port}")]);
        // 150 ms on a quiet machine; the net looks every 5 s.
        assert!(begin.elapsed() < Duration::from_secs(1), "{:?}", begin.elapsed());
    }
    drop(events);
    task.await.unwrap().unwrap();
}

#[tokio::test]
async fn a_file_that_is_written_slowly_is_read_when_it_is_closed() {
    let folder = Folder::new();
    folder.write("a.yaml", &(shop("one", 80) + &shop("two", 80)));
    let (mut events, task) = folder.run();
    assert_eq!(changes(&mut events).await.len(), 2);
    assert_eq!(next(&mut events).await, Event::Synced { complete: true });
    let mut file = fs::File::create(folder.dir.path().join("a.yaml")).unwrap();
    file.write_all(shop("one", 81).as_bytes()).unwrap();
    folder.write("b.yaml", &shop("three", 80));
    assert_eq!(words(&changes(&mut events).await), ["three 80"]);
    file.write_all(shop("two", 81).as_bytes()).unwrap();
    drop(file);
    assert_eq!(words(&changes(&mut events).await), ["one 81", "two 81"]);
    drop(events);
    task.await.unwrap().unwrap();
}

#[tokio::test]
async fn a_config_map_that_is_swapped_is_one_change() {
    let folder = Folder::new();
    folder.publish("1", &[("a.yaml", shop("one", 80)), ("b.yaml", shop("two", 80))]);
    let (mut events, task) = folder.run();
    assert_eq!(changes(&mut events).await.len(), 2);
    assert_eq!(next(&mut events).await, Event::Synced { complete: true });
    let begin = Instant::now();
    folder.publish("2", &[("a.yaml", shop("one", 81)), ("b.yaml", shop("two", 81))]);
    assert_eq!(words(&changes(&mut events).await), ["one 81", "two 81"]);
    assert!(begin.elapsed() < Duration::from_secs(1), "{:?}", begin.elapsed());
    drop(events);
    task.await.unwrap().unwrap();
}

#[tokio::test]
async fn a_folder_that_goes_and_comes_back_loses_nothing_and_is_followed_again() {
    let folder = Folder::new();
    folder.write("a.yaml", &shop("one", 80));
    let (mut events, task) = folder.run();
    assert_eq!(changes(&mut events).await.len(), 1);
    assert_eq!(next(&mut events).await, Event::Synced { complete: true });
    fs::remove_dir_all(folder.dir.path()).unwrap();
    let Event::Problems(problems) = next_but_removed_files(&mut events).await else { panic!("not a problem") };
    assert!(problems[0].reason.ends_with("what was read before stays"), "{problems:?}");
    fs::create_dir(folder.dir.path()).unwrap();
    folder.write("b.yaml", &shop("two", 80));
    while !words(&changes(&mut events).await).contains(&"two 80".to_owned()) {}
    let begin = Instant::now();
    folder.write("b.yaml", &shop("two", 81));
    assert_eq!(words(&changes(&mut events).await), ["two 81"]);
    assert!(begin.elapsed() < Duration::from_secs(1), "{:?}", begin.elapsed());
    drop(events);
    task.await.unwrap().unwrap();
}

/// A folder of manifests and a source that reads it.
struct Folder {
    dir: TempDir,
    source: ManifestSource,
    /// What has been told so far.
    model: Model,
    problems: Vec<Problem>,
}

impl Folder {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let source = ManifestSource::new(dir.path(), options());
        Self { dir, source, model: Model::default(), problems: Vec::new() }
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.dir.path().join(name), text).unwrap();
    }

    fn remove(&self, name: &str) {
        fs::remove_file(self.dir.path().join(name)).unwrap();
    }

    /// What a look tells, in words; each of it must be news.
    fn load(&mut self) -> Vec<String> {
        let loaded = self.source.load().unwrap();
        self.problems = loaded.problems;
        let words = words(&loaded.changes);
        assert!(loaded.changes.into_iter().all(|change| self.model.apply(change)));
        words
    }

    /// The problems of the last look, without the folder's name.
    fn problems(&self) -> Vec<String> {
        let folder = format!("{}/", self.dir.path().display());
        self.problems.iter().map(|problem| problem.to_string().replacen(&folder, "", 1)).collect()
    }

    /// Writes files as the kubelet writes those of a ConfigMap: into a folder of their own, which a link is then made to
    /// point at in one step; links in the volume itself lead through that link.
    fn publish(&self, version: &str, files: &[(&str, String)]) {
        let volume = self.dir.path();
        let folder = volume.join(format!("..{version}"));
        fs::create_dir(&folder).unwrap();
        for (name, text) in files {
            fs::write(folder.join(name), text).unwrap();
        }
        symlink(format!("..{version}"), volume.join("..data_tmp")).unwrap();
        fs::rename(volume.join("..data_tmp"), volume.join("..data")).unwrap();
        for (name, _) in files {
            match symlink(Path::new("..data").join(name), volume.join(name)) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                made => made.unwrap(),
            }
        }
    }

    fn run(&self) -> (Receiver<Event>, JoinHandle<anyhow::Result<()>>) {
        let (sender, events) = mpsc::channel(8);
        (events, tokio::spawn(ManifestSource::new(self.dir.path(), options()).run(sender)))
    }
}

/// A federated Service of six lines: the marker, its object from the second line on, its port on the last.
fn shop(name: &str, port: u32) -> String {
    let mut text = "---\napiVersion: v1\nkind: Service\n".to_owned();
    writeln!(text, "metadata: {{name: {name}, namespace: shop, labels: {{istio.io/global: \"true\"}}}}").unwrap();
    writeln!(text, "spec: {{clusterIP: 10.104.0.9, selector: {{app: {name}}}, ports: [\n  {{port: {port}}}]}}")
        .unwrap();
    text
}

/// Changes as `name port`, `name gone`; of slices only that there are some.
fn words(changes: &[Change]) -> Vec<String> {
    let word = |change: &Change| match change {
        Change::Service(name, Some(service)) => format!("{} {}", name.object.name, service.ports[0].port),
        Change::Service(name, None) => format!("{} gone", name.object.name),
        Change::Slice(name, slice) => format!("slice {name} {}", if slice.is_some() { "written" } else { "gone" }),
        Change::Pod(uid, _) => format!("pod {uid}"),
    };
    let mut words: Vec<_> = changes.iter().map(word).collect();
    words.sort();
    words
}

async fn next(events: &mut Receiver<Event>) -> Event {
    timeout(Duration::from_secs(20), events.recv()).await.expect("an event in time").expect("the source runs")
}

async fn changes(events: &mut Receiver<Event>) -> Vec<Change> {
    loop {
        if let Event::Changes(changes) = next(events).await {
            return changes;
        }
    }
}

/// A folder is removed file by file, and a look between is right to take a file for gone.
async fn next_but_removed_files(events: &mut Receiver<Event>) -> Event {
    loop {
        match next(events).await {
            Event::Changes(_) => {}
            event => return event,
        }
    }
}

fn options() -> Options {
    Options { cluster: ClusterName("west".to_owned()), node: "west-1".to_owned(), all_services: false }
}
