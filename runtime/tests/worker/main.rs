//! Tests of workers: the copies of the shim that make containers and pods for it. The test plays the shim, with one thread; so
//! it has a main of its own, which is that of our programs. Containers need root.
#![no_main]

mod containers;
mod copies;
mod payload;
mod place;
mod pod;

use std::fs;

use anyhow::Result;

use place::Place;

rtc_runtime::entry!(run);

type Test = fn(&Place) -> Result<()>;

const TESTS: &[(&str, Test)] = &[
    (
        "a_worker_has_the_descriptors_it_is_given_and_no_other",
        copies::descriptors,
    ),
    ("a_worker_blocks_no_signal", copies::signals),
    ("a_result_arrives_whole_and_then_the_end", copies::result),
    ("a_failure_and_a_panic_arrive_as_text", copies::failure),
    ("a_worker_runs_no_destructor_of_its_original", copies::destructors),
    ("a_killed_worker_ends_without_a_last_word", copies::killed),
    (
        "a_container_of_a_worker_is_our_child",
        containers::container_is_our_child,
    ),
    (
        "an_exec_of_a_worker_and_its_helper_are_our_children",
        containers::exec_is_our_child,
    ),
    ("an_exec_has_a_cgroup_of_its_own_on_v2", containers::exec_cgroup),
    (
        "an_exec_has_no_cgroup_of_its_own_where_the_container_writes_its_own",
        containers::no_exec_cgroup,
    ),
    (
        "a_watch_for_oom_is_readable_after_a_kill_and_at_the_end",
        containers::oom,
    ),
    ("the_terminal_arrives_as_a_report", containers::terminal),
    ("a_failed_create_leaves_nothing", containers::failed_create),
    ("a_start_hears_why_there_is_no_program", containers::failed_start),
    (
        "a_failed_poststart_hook_deletes_the_container",
        containers::failed_poststart,
    ),
    (
        "an_init_ends_when_its_worker_is_killed",
        containers::init_ends_with_its_worker,
    ),
    (
        "a_half_made_container_ends_with_the_shim",
        containers::ends_with_shim,
    ),
    (
        "a_worker_killed_anywhere_leaves_what_delete_removes",
        containers::killed_anywhere,
    ),
    ("a_pod_has_namespaces_of_its_own", pod::namespaces),
    ("a_pod_joins_a_network_that_was_made_before", pod::joined_network),
    (
        "a_pod_has_the_user_namespace_of_its_network",
        pod::network_with_users,
    ),
    ("a_pod_that_can_not_be_made_leaves_nothing", pod::failure),
    (
        "a_container_in_a_pod_with_all_namespaces_is_our_child",
        pod::container,
    ),
    (
        "a_worker_killed_while_it_makes_a_pod_leaves_nothing",
        pod::killed_anywhere,
    ),
    ("a_pod_init_has_given_up_all_it_had", pod::hardened),
    ("a_container_sees_nothing_of_the_pod_init", pod::nothing_to_see),
    (
        "a_pod_init_reaps_and_is_not_ended_from_inside",
        pod::reaps_and_stays,
    ),
    ("a_pod_init_ends_with_its_shim", pod::ends_with_its_shim),
];

fn run() -> u8 {
    let arguments: Vec<String> = std::env::args().collect();
    if arguments.get(1).is_some_and(|argument| argument == "payload") {
        return payload::run(&arguments[2..]);
    }
    if !nix::unistd::geteuid().is_root() {
        println!("skipped: the tests of workers need root");
        return 0;
    }
    let filter = arguments
        .iter()
        .skip(1)
        .find(|argument| !argument.starts_with('-'));
    let place = Place::new().expect("a place for containers");
    let (mut passed, mut failed) = (0, 0);
    let chosen = TESTS
        .iter()
        .filter(|(name, _)| filter.is_none_or(|filter| name.contains(filter.as_str())));
    for (name, test) in chosen {
        let result = test(&place).and_then(|()| place.nothing_is_left());
        match &result {
            Ok(()) => println!("test {name} ... ok"),
            Err(error) => println!("test {name} ... FAILED: {error:?}"),
        }
        if result.is_ok() {
            passed += 1;
        } else {
            failed += 1;
            // The next one is to start clean.
            let _ = place::end_strays().and_then(|()| place.delete());
        }
    }
    fs::remove_dir_all(&place.directory).expect("remove the directory");
    let verdict = if failed == 0 { "ok" } else { "FAILED" };
    println!("\ntest result: {verdict}. {passed} passed; {failed} failed; 0 ignored");
    u8::from(failed > 0)
}
