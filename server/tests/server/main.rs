//! The real server as a process, with the real daemon, a real broker and a real database.
//!
//! One binary, so that its stories overlap: most of their time is waiting. Some of the stories are told with
//! PostgreSQL too, where it is installed; all of them with
//! `cargo test -p nightlight-server --test server -- --include-ignored`.
#![allow(
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

mod away;
mod hostile;
mod postgres;
mod server;
mod shared;
#[path = "../../../tests/real/stage/mod.rs"]
mod stage;
mod stories;
mod web;

/// Tells each story of a module.
macro_rules! stories {
    ($module:ident, $store:expr; $($name:ident)*) => {
        $(#[test]
        fn $name() {
            crate::$module::$name($store);
        })*
    };
}

mod sqlite {
    use crate::server::Store;

    stories! { web, Store::Sqlite;
        the_page_shows_the_fleet_and_a_device
        what_changes_comes_by_itself
        an_led_is_switched_by_post_with_a_token_from_the_same_origin
        metrics_have_each_device_and_the_server
    }

    stories! { hostile, Store::Sqlite;
        ten_thousand_hostile_names_do_no_harm
    }

    stories! { stories, Store::Sqlite;
        a_reading_is_answered_kept_and_acked
        without_the_server_the_backlog_stays_and_with_it_it_drains
        a_server_killed_again_and_again_during_a_replay_loses_nothing
        a_restart_asks_for_nothing_twice
        one_covered_sensor_does_not_light_the_hall
        what_a_device_gave_up_is_lost_and_nothing_is_missing
        hostile_payloads_are_counted_and_do_nothing
        the_books_are_open_while_it_runs
        what_is_older_than_keep_is_deleted_beside_the_work
        an_led_switched_by_hand_stays_until_told_otherwise
        a_loss_told_by_itself_is_acked_by_its_range
        a_large_message_on_any_topic_ends_nothing
        signals_that_mean_nothing_here_do_no_harm
        it_stops_while_a_name_server_does_not_answer
        the_access_list_of_the_documentation_is_enough_for_all
    }
}

/// Tells each story with PostgreSQL, where there is one.
macro_rules! postgres_stories {
    ($module:ident; $($(#[$attribute:meta])* $name:ident)*) => {
        $(#[test]
        $(#[$attribute])*
        fn $name() {
            if let Some(cluster) = crate::postgres::shared() {
                crate::$module::$name(crate::server::Store::Postgres(cluster));
            }
        })*
    };
}

mod on_postgres {
    postgres_stories! { web;
        the_page_shows_the_fleet_and_a_device
        an_led_is_switched_by_post_with_a_token_from_the_same_origin
        metrics_have_each_device_and_the_server
        #[ignore = "long"]
        what_changes_comes_by_itself
    }

    postgres_stories! { hostile;
        #[ignore = "long"]
        ten_thousand_hostile_names_do_no_harm
    }

    postgres_stories! { stories;
        a_reading_is_answered_kept_and_acked
        hostile_payloads_are_counted_and_do_nothing
        the_books_are_open_while_it_runs
        a_loss_told_by_itself_is_acked_by_its_range
        what_is_older_than_keep_is_deleted_beside_the_work
        an_led_switched_by_hand_stays_until_told_otherwise
        #[ignore = "long"]
        without_the_server_the_backlog_stays_and_with_it_it_drains
        #[ignore = "long"]
        a_server_killed_again_and_again_during_a_replay_loses_nothing
        #[ignore = "long"]
        a_restart_asks_for_nothing_twice
        #[ignore = "long"]
        one_covered_sensor_does_not_light_the_hall
        #[ignore = "long"]
        what_a_device_gave_up_is_lost_and_nothing_is_missing
        #[ignore = "long"]
        a_large_message_on_any_topic_ends_nothing
    }
}
