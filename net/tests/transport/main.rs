//! The conformance suite of transports, over real sockets and queue pairs: two of them on one thread, or in [two processes](far), or one against a raw socket that behaves badly.
//!
//! The same tests run on TCP and, with the feature `rdma`, on RDMA. These want a device: `COREFS_TEST_RDMA` names those that may be used, by spaces;
//! `ci/guest` runs them so in a guest that has one in software.

#[cfg(feature = "rdma")]
#[global_allocator]
static HEAP: corefs_net::heap::Counting = corefs_net::heap::Counting;

mod far;
mod frames;
mod hostile;
mod lifecycle;
mod pressure;
#[cfg(feature = "rdma")]
mod rdma;
mod silence;
mod world;

/// Each test of each module, once for each transport with both ends in this process, and once with the server in another one.
macro_rules! suite {
    (@on $name:ident, $scene:ident, $transport:ty, $there:expr; $($module:ident: $($test:ident),*;)*) => {
        mod $name {
            suite!(@in $scene, $transport, $there; $($module: $($test),*;)*);
        }
    };
    (@in $scene:ident, $transport:ty, $there:expr; $($module:ident: $($test:ident),*;)*) => {
        $(suite!(@of $module, $scene, $transport, $there; $($test),*);)*
    };
    (@of $module:ident, $scene:ident, $transport:ty, $there:expr; $($test:ident),*) => {
        mod $module {
            $(#[test]
            fn $test() {
                if $there {
                    crate::$module::$test::<crate::world::$scene<$transport>>();
                }
            })*
        }
    };
    ($($tests:tt)*) => {
        suite!(@on on_tcp, Here, corefs_net::Tcp, true; $($tests)*);
        suite!(@on on_tcp_in_two_processes, Apart, corefs_net::Tcp, true; $($tests)*);
        #[cfg(feature = "rdma")]
        suite!(@on on_rdma, Here, corefs_net::Rdma, crate::rdma::is_there(); $($tests)*);
        #[cfg(feature = "rdma")]
        suite!(@on on_rdma_in_two_processes, Apart, corefs_net::Rdma, crate::rdma::is_there(); $($tests)*);
    };
}

suite! {
    frames:
        frames_of_all_sizes_arrive_in_order_and_are_answered,
        payloads_are_sent_from_where_they_are_and_given_back,
        large_data_are_not_copied,
        data_that_nobody_wants_are_read_and_forgotten,
        the_same_over_unix_sockets,
        a_socket_file_left_by_a_dead_process_is_taken_over_but_nothing_else_is,
        what_is_too_long_is_refused_before_it_is_queued;
    hostile:
        violations_before_the_handshake_are_told_and_closed,
        violations_after_the_handshake_end_that_connection_alone,
        peers_that_stop_anywhere_leave_nothing_behind,
        slow_peers_get_through_and_disturb_nobody,
        a_peer_that_never_reads_is_held_back_and_then_refused,
        random_garbage_from_many_peers_harms_nobody;
    lifecycle:
        handshakes_that_must_fail_say_why,
        a_client_that_knows_nothing_is_told,
        with_the_secret_both_are_authenticated,
        listeners_refuse_what_they_must,
        nobody_there_is_said_so,
        a_listener_that_has_rested_for_longer_than_its_patience_lets_peers_in,
        a_peer_that_never_answers_the_handshake_is_given_up,
        closing_sends_what_is_queued_first,
        a_stale_id_is_harmless,
        many_connections_talk_at_once_and_the_bound_holds,
        listening_can_stop_while_connections_stay,
        dropping_everything_in_the_middle_of_it_is_sound;
    pressure:
        without_a_buffer_the_peer_waits_and_nothing_is_lost,
        a_paused_connection_announces_exactly_one_frame_each_time,
        pausing_from_outside_holds_too,
        a_waiting_connection_can_be_closed,
        the_queue_of_a_connection_is_bounded,
        a_buffer_goes_back_when_its_connection_ends_in_the_middle;
}
