use std::path::PathBuf;

use super::*;

/// A directory that goes with the test.
struct Directory(PathBuf);

impl Directory {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("rtc-cri-journal-{}-{name}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn file(&self) -> PathBuf {
        self.0.join("pods")
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

type Records = BTreeMap<String, Vec<u32>>;

fn open(path: &Path, durability: Durability) -> (Journal<Vec<u32>>, Records) {
    Journal::open(path, durability).unwrap()
}

fn run<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(future)
}

fn records(all: &[(&str, &[u32])]) -> Records {
    all.iter()
        .map(|(key, value)| ((*key).to_owned(), value.to_vec()))
        .collect()
}

#[test]
fn the_last_record_of_each_key_is_found_again() {
    for durability in [Durability::Plain, Durability::Durable] {
        let directory = Directory::new("last");
        let (journal, found) = open(&directory.file(), durability);
        assert!(found.is_empty());
        run(async {
            journal.put("a", &vec![1]).await.unwrap();
            journal.put("b", &vec![2]).await.unwrap();
            journal.put("a", &vec![3, 4]).await.unwrap();
            journal.put("c", &vec![5]).await.unwrap();
            journal.remove("c").await.unwrap();
            journal.remove("never there").await.unwrap();
        });
        drop(journal);
        let (_, found) = open(&directory.file(), durability);
        assert_eq!(found, records(&[("a", &[3, 4]), ("b", &[2])]));
    }
}

#[test]
fn a_file_cut_anywhere_loses_at_most_the_line_that_was_cut() {
    let directory = Directory::new("cut");
    let path = directory.file();
    let mut states = vec![Records::new()];
    let (journal, _) = open(&path, Durability::Durable);
    let mut ends = vec![std::fs::metadata(&path).unwrap().len()];
    for number in 0..8_u32 {
        let key = format!("k\n\"{}", number % 3);
        let mut state = states.last().unwrap().clone();
        if number == 5 {
            run(journal.remove(&key)).unwrap();
            state.remove(&key);
        } else {
            run(journal.put(&key, &vec![number])).unwrap();
            state.insert(key, vec![number]);
        }
        states.push(state);
        ends.push(std::fs::metadata(&path).unwrap().len());
    }
    drop(journal);
    let whole = std::fs::read(&path).unwrap();
    for length in 0..=whole.len() {
        std::fs::write(&path, &whole[..length]).unwrap();
        let lines = ends.iter().filter(|end| **end <= length as u64).count();
        let (journal, found) = open(&path, Durability::Durable);
        assert_eq!(found, states[lines - 1], "cut at {length}");
        // It goes on as if nothing had been.
        run(journal.put("new", &vec![9])).unwrap();
        drop(journal);
        let (_, again) = open(&path, Durability::Durable);
        assert_eq!(again.len(), found.len() + 1, "cut at {length}");
    }
    assert!(
        !path.with_extension("quarantine").exists(),
        "a torn line is no wonder"
    );
}

#[test]
fn a_line_that_can_t_be_read_is_put_aside_and_the_others_count() {
    let directory = Directory::new("quarantine");
    let path = directory.file();
    let text = b"{\"put\":\"a\",\"record\":[1]}\n\xff\xfe nonsense\n{\"put\":\"b\",\"record\":\"no list\"}\n\
                 {\"put\":\"c\"}\n\0\0\0\n{}\n{\"put\":\"d\",\"record\":[4]}\n\0\0\0\0";
    std::fs::write(&path, text).unwrap();
    let (_, found) = open(&path, Durability::Durable);
    assert_eq!(found, records(&[("a", &[1]), ("d", &[4])]));
    let aside = std::fs::read(path.with_extension("quarantine")).unwrap();
    assert_eq!(aside.iter().filter(|byte| **byte == b'\n').count(), 5);
    let (_, found) = open(&path, Durability::Durable);
    assert_eq!(found.len(), 2);
    let again = std::fs::read(path.with_extension("quarantine")).unwrap();
    assert_eq!(aside, again, "they are put aside once");
}

#[test]
fn what_another_boot_left_is_forgotten() {
    let directory = Directory::new("boot");
    let path = directory.file();
    for first in ["", "{\"boot\":\"0f1e\"}\n", "{\"boot\":17}\n", "x"] {
        std::fs::write(&path, format!("{first}{{\"put\":\"a\",\"record\":[1]}}\n")).unwrap();
        let (journal, found) = open(&path, Durability::Plain);
        assert!(found.is_empty(), "{first}");
        run(journal.put("b", &vec![2])).unwrap();
        drop(journal);
        let (_, found) = open(&path, Durability::Plain);
        assert_eq!(found, records(&[("b", &[2])]));
    }
}

#[test]
fn a_journal_that_is_mostly_old_is_compacted_and_loses_nothing() {
    let directory = Directory::new("compact");
    let path = directory.file();
    let (journal, _) = open(&path, Durability::Plain);
    let large: Vec<u32> = (0..2000).collect();
    run(async {
        journal.put("kept", &vec![7]).await.unwrap();
        for _ in 0..500 {
            journal.put("again", &large).await.unwrap();
        }
        journal.remove("again").await.unwrap();
        journal.put("last", &vec![8]).await.unwrap();
    });
    let length = std::fs::metadata(&path).unwrap().len();
    assert!(length < 1 << 20, "{length}");
    drop(journal);
    let (_, found) = open(&path, Durability::Plain);
    assert_eq!(found, records(&[("kept", &[7]), ("last", &[8])]));
}

#[test]
fn a_start_writes_the_file_anew_only_where_it_must() {
    use std::os::unix::fs::MetadataExt as _;
    for durability in [Durability::Plain, Durability::Durable] {
        let directory = Directory::new("anew");
        let path = directory.file();
        let file = || std::fs::metadata(&path).unwrap().ino();
        let (journal, _) = open(&path, durability);
        let first = file();
        for value in 0..3 {
            run(journal.put("a", &vec![value])).unwrap();
        }
        drop(journal);
        let (journal, found) = open(&path, durability);
        assert_eq!((file(), found), (first, records(&[("a", &[2])])));
        run(journal.put("b", &vec![3])).unwrap();
        drop(journal);
        let torn = [&std::fs::read(&path).unwrap()[..], b"{\"put"].concat();
        std::fs::write(&path, torn).unwrap();
        let (_, found) = open(&path, durability);
        assert_eq!(found, records(&[("a", &[2]), ("b", &[3])]));
        assert_ne!(file(), first, "a line behind half a line would be lost");
    }
}

#[test]
fn where_there_is_no_room_to_compact_there_may_be_for_a_line() {
    let directory = Directory::new("room");
    let path = directory.file();
    let (journal, _) = open(&path, Durability::Plain);
    // Nothing can be written beside it.
    std::fs::create_dir(path.with_extension("new")).unwrap();
    let large: Vec<u32> = (0..2000).collect();
    run(async {
        for _ in 0..500 {
            journal.put("again", &large).await.unwrap();
        }
        journal.put("last", &vec![8]).await.unwrap();
    });
    std::fs::remove_dir(path.with_extension("new")).unwrap();
    run(journal.put("again", &vec![7])).unwrap();
    drop(journal);
    let (_, found) = open(&path, Durability::Plain);
    assert_eq!(found, records(&[("again", &[7]), ("last", &[8])]));
}

#[test]
fn many_at_once_are_all_durable() {
    let directory = Directory::new("many");
    let path = directory.file();
    let (journal, _) = open(&path, Durability::Durable);
    run(async {
        let journal = Arc::new(journal);
        let mut tasks = tokio::task::JoinSet::new();
        for number in 0..200_u32 {
            let journal = Arc::clone(&journal);
            tasks.spawn(async move { journal.put(&number.to_string(), &vec![number]).await.unwrap() });
        }
        tasks.join_all().await;
    });
    let (_, found) = open(&path, Durability::Durable);
    assert_eq!(found.len(), 200);
}

#[test]
fn only_root_reads_it() {
    use std::os::unix::fs::PermissionsExt as _;
    let directory = Directory::new("mode");
    let path = directory.file();
    std::fs::write(&path, "").unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
    let (journal, _) = open(&path, Durability::Durable);
    run(journal.put("a", &vec![1])).unwrap();
    assert_eq!(
        std::fs::metadata(&path).unwrap().permissions().mode() & 0o777,
        0o600
    );
}

#[test]
fn what_is_recorded_is_what_is_true_at_its_turn() {
    let directory = Directory::new("latest");
    let (journal, _) = open(&directory.file(), Durability::Plain);
    run(async {
        journal.put_latest("a", || Some(vec![1])).await.unwrap();
        journal.put_latest("a", || None::<Vec<u32>>).await.unwrap();
        journal.put_latest("b", || None::<Vec<u32>>).await.unwrap();
    });
    let (_, found) = open(&directory.file(), Durability::Plain);
    assert_eq!(found, records(&[("a", &[1])]));
}
