//! The program at work: real processes in a PID namespace of their own.

#![allow(clippy::unwrap_used, reason = "a test that can't go on says so by panicking")]

#[path = "supervision/container.rs"]
mod container;
#[path = "supervision/helper.rs"]
mod helper;

mod stops {
    use crate::container::Container;
    use std::os::unix::fs::PermissionsExt;
    use tideover_init::decide::Rule;
    use tideover_init::exit::Cause;
    use tideover_init::record::Outcome;

    #[test]
    fn the_applications_own_exit_code_is_the_containers() {
        let mut container = Container::new("{}").shell("exit 42");
        assert_eq!(container.ended(), 42);
        let line = &container.record()[0];
        assert_eq!((line.cause, line.code, line.rule), (Cause::UncleanExitCode, Some(42), Rule::Policy));
    }

    #[test]
    fn a_signal_is_reported_as_128_and_its_number() {
        let mut container = Container::new("{}").shell("kill -KILL $$");
        assert_eq!(container.ended(), 137);
        assert_eq!(container.record()[0].signal, Some(9));
    }

    #[test]
    fn a_core_dump_is_seen() {
        let mut container = Container::new(r#"{"policy":"No"}"#).shell("ulimit -c unlimited; kill -SEGV $$");
        assert_eq!(container.ended(), 139);
        let line = &container.record()[0];
        assert_eq!((line.cause, line.signal), (Cause::UncleanSignal, Some(11)));
        assert_eq!(
            line.core,
            container.path("core").exists(),
            "whether there is one is the node's core_pattern's affair"
        );
    }

    #[test]
    fn a_program_that_does_not_exist_is_127_and_one_that_is_none_126() {
        assert_eq!(Container::new("{}").start(&["/nowhere"]).ended(), 127);
        assert_eq!(Container::new("{}").start(&["/etc/passwd"]).ended(), 126);
    }

    #[test]
    fn a_script_without_a_header_is_given_to_a_shell() {
        let container = Container::new("{}");
        let script = container.path("script");
        std::fs::write(&script, "[ \"$1\" = 'a word' ] && exit 9").unwrap();
        std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755)).unwrap();
        assert_eq!(container.start(&[script.to_str().unwrap(), "a word"]).ended(), 9);
    }

    #[test]
    fn the_application_gets_inits_environment_and_signals_without_what_is_inits_own() {
        let given = [("KEPT", "a b"), ("NOTIFY_SOCKET", "/x"), ("WATCHDOG_USEC", "7"), ("WATCHDOG_PID", "1")];
        let script = "[ \"$KEPT\" = 'a b' ] || exit 3; [ -z \"$NOTIFY_SOCKET$WATCHDOG_USEC$WATCHDOG_PID\" ] || exit 4; \
            set -- $(sed -n 's/^Sig\\(Blk\\|Ign\\):\\t//p' /proc/self/status); \
            [ $((0x$1)) = 0 ] || exit 5; [ $((0x$2 & 0x1000)) = 0 ] || exit 6";
        assert_eq!(Container::new("{}").shell_in(&given, script).ended(), 0);
    }

    #[test]
    fn a_crash_is_followed_by_another_run_in_place() {
        let script = "echo run >> runs; [ $(wc -l < runs) -ge 3 ] && exit 0; kill -KILL $$";
        let mut container = Container::new(r#"{"policy":"OnFailure","delay":0}"#).shell(script);
        assert_eq!(container.ended(), 0);
        let record = container.record();
        let outcomes: Vec<Outcome> = record.iter().map(|line| line.outcome).collect();
        let restart = |attempt| Outcome::Restart { delay_millis: 0, attempt };
        assert_eq!(outcomes, [restart(1), restart(2), Outcome::Exit]);
        assert_eq!(record.last().unwrap().cause, Cause::Clean);
    }

    #[test]
    fn a_crash_loop_gives_up_with_the_true_status() {
        let mut container = Container::new(r#"{"policy":"Always","delay":1}"#).shell("echo run >> runs; exit 7");
        assert_eq!(container.ended(), 7);
        assert_eq!(container.lines("runs"), 5);
        assert_eq!(container.record().last().unwrap().rule, Rule::StartLimit);
    }

    /// A container that has crashed twice, may not do so more often, and waits to be moved.
    fn holding(user: Option<u32>) -> Container {
        let settings = r#"{"policy":"Always","delay":1,"startLimit":{"burst":2,"action":"Migrate"}}"#;
        let mut container = Container::new(settings).movable();
        std::fs::write(container.path("runs"), "").unwrap();
        std::fs::set_permissions(container.path("runs"), std::fs::Permissions::from_mode(0o666)).unwrap();
        if let Some(user) = user {
            container = container.user(user);
        }
        let container = container.shell("echo run >> runs; exit 7");
        container.until("a hold", |container| {
            container.record().last().is_some_and(|line| line.outcome == Outcome::Migrate { hold_millis: 180_000 })
        });
        assert_eq!(container.lines("runs"), 2);
        container
    }

    #[test]
    fn a_crash_loop_goes_on_once_on_another_node() {
        for user in [None, Some(65_534)] {
            let mut container = holding(user);
            // As a freeze: nothing runs while it is carried over.
            container.signal(libc::SIGSTOP);
            container.until("a stopped init", |container| container.state() == 'T');
            container.arrive();
            container.signal(libc::SIGCONT);
            assert_eq!(container.ended(), 7);
            assert_eq!(container.lines("runs"), 4);
            let [third, fourth] = &container.record_there()[..] else { panic!("{:?}", container.record_there()) };
            assert_eq!((third.sequence, third.outcome), (3, Outcome::Restart { delay_millis: 1, attempt: 1 }));
            assert_eq!((fourth.sequence, fourth.outcome, fourth.rule), (4, Outcome::Exit, Rule::StartLimit));
        }
    }

    #[test]
    fn a_stop_ends_the_wait_for_a_move_at_once() {
        let mut container = holding(None);
        container.signal(libc::SIGTERM);
        assert_eq!(container.ended(), 7);
        assert_eq!((container.lines("runs"), container.record().len()), (2, 2));
    }

    #[test]
    fn a_stop_from_outside_is_never_followed_by_a_run() {
        let mut container = Container::new(r#"{"policy":"Always","delay":0}"#)
            .shell("trap 'echo stopping > stopped; exit 5' TERM; touch up; while :; do sleep 0.01; done");
        container.until_there("up");
        container.signal(libc::SIGTERM);
        assert_eq!(container.ended(), 5);
        assert!(container.path("stopped").exists());
        assert_eq!(container.record()[0].rule, Rule::StopAsked);
    }

    #[test]
    fn a_stop_signal_of_the_image_is_a_stop_too() {
        let mut container = Container::new(r#"{"policy":"Always","delay":0}"#)
            .shell("trap 'exit 0' QUIT; touch up; while :; do sleep 0.01; done");
        container.until_there("up");
        container.signal(libc::SIGQUIT);
        assert_eq!(container.ended(), 0);
        assert_eq!(container.record().len(), 1);
    }

    #[test]
    fn a_stop_in_the_delay_ends_at_once_with_the_last_status() {
        let mut container = Container::new(r#"{"policy":"Always","delay":3600000}"#).shell("exit 9");
        container.until("a record", |container| !container.record().is_empty());
        container.signal(libc::SIGTERM);
        assert_eq!(container.ended(), 9);
    }

    #[test]
    fn what_ignores_sigterm_and_what_is_stopped_are_both_ended() {
        let mut container =
            Container::new(r#"{"timeoutStop":100}"#).shell("trap '' TERM; touch up; while :; do sleep 0.01; done");
        container.until_there("up");
        container.signal(libc::SIGTERM);
        assert_eq!(container.ended(), 137);
        assert_eq!(container.record()[0].cause, Cause::Timeout);

        let mut container = Container::new("{}").shell("trap 'exit 0' TERM; touch up; kill -STOP $$; sleep 1000");
        container.until("a stopped application", |container| {
            container.path("up").exists() && container.children().iter().any(|child| child.state == 'T')
        });
        container.signal(libc::SIGTERM);
        assert_eq!(container.ended(), 0);
    }
}

mod processes {
    use crate::container::Container;

    const SERVES: &str = "touch up; while :; do sleep 0.01; done";

    #[test]
    fn orphans_are_reaped() {
        let script =
            "for i in 1 2 3 4 5 6 7 8; do (sh -c 'echo $$ >> orphans; exit 3' &); done; touch up; exec sleep 1000";
        let mut container = Container::new("{}").shell(script);
        container
            .until("all orphans to end", |container| container.path("up").exists() && container.lines("orphans") == 8);
        container.until("no zombie", |container| {
            let children = container.children();
            children.len() == 1 && children[0].state != 'Z'
        });
        container.signal(libc::SIGTERM);
        assert_eq!(container.ended(), 143);
    }

    #[test]
    fn what_outlives_the_main_process_is_ended_before_the_next_run() {
        // Out of its session and its process group, and deaf to SIGTERM.
        let stray = "setsid sh -c 'trap \"\" TERM; echo $$ > stray; while :; do sleep 0.01; done' &";
        let script =
            format!("if [ -e stray ]; then exit 0; fi; {stray} while [ ! -s stray ]; do sleep 0.01; done; exit 1");
        let settings = r#"{"policy":"OnFailure","delay":0,"timeoutStop":100}"#;
        let mut container = Container::new(settings).shell(&script);
        assert_eq!(container.ended(), 0);
        let [first, second] = &container.record()[..] else { panic!("{:?}", container.record()) };
        assert_eq!((first.code, second.code), (Some(1), Some(0)));
    }

    #[test]
    fn others_live_on_with_kill_mode_process() {
        let script = "[ -e again ] && { kill -0 $(cat stray) && exit 20; exit 21; }; \
                      setsid sleep 1000 & echo $! > stray; touch again; exit 1";
        let settings = r#"{"policy":"OnFailure","killMode":"Process","delay":0,"restartPreventExitStatus":[20,21]}"#;
        assert_eq!(Container::new(settings).shell(script).ended(), 20);
    }

    #[test]
    fn what_was_put_beside_the_application_is_left_alone() {
        let container = Container::new(r#"{"policy":"Always","delay":0}"#)
            .shell("echo run >> runs; while [ ! -e crash ]; do sleep 0.01; done; rm crash; kill -KILL $$");
        container.until_there("runs");
        let mut beside = container.exec(&["sh", "-c", "touch beside; exec sleep 1000"]);
        container.until_there("beside");
        std::fs::write(container.path("crash"), "").unwrap();
        container.until("another run", |container| container.lines("runs") == 2);
        assert!(beside.try_wait().unwrap().is_none(), "the process beside the application was ended");
        beside.kill().unwrap();
        beside.wait().unwrap();
    }

    #[test]
    fn signals_from_inside_reach_the_application() {
        let mut container =
            Container::new(r#"{"policy":"No"}"#).shell("trap 'exit 33' USR1; touch up; while :; do sleep 0.01; done");
        container.until_there("up");
        assert!(container.exec(&["kill", "-USR1", "1"]).wait().unwrap().success());
        assert_eq!(container.ended(), 33);
    }

    #[test]
    fn nobody_inside_can_kill_or_stop_init() {
        let mut container = Container::new("{}").shell(&format!("kill -KILL 1; kill -STOP 1; {SERVES}"));
        container.until_there("up");
        container.until("init at rest", |container| container.state() == 'S');
        assert!(
            std::fs::read_to_string(format!("/proc/{}/status", container.init())).unwrap().contains("Threads:\t1\n")
        );
        container.signal(libc::SIGTERM);
        assert_eq!(container.ended(), 143);
    }

    #[test]
    fn it_works_as_any_user_who_can_not_look_into_it() {
        let mut container =
            Container::new(r#"{"policy":"OnFailure","delay":0,"notifyAccess":"All"}"#).user(65_534).shell(
                "[ -S $NOTIFY_SOCKET ] || exit 3; [ $(id -u) = 65534 ] || exit 4; \
                    cat /proc/1/environ && exit 5; [ -e x/again ] && exit 0; touch x/again; kill -KILL $$",
            );
        assert_eq!(container.ended(), 0);
        assert_eq!(container.record().len(), 2);
    }

    #[test]
    fn without_a_pid_namespace_it_adopts_orphans_and_its_end_is_the_applications() {
        let mut container = Container::new("{}")
            .beside_others()
            .shell("(sh -c 'echo $PPID > first; sleep 0.05; cut -d\" \" -f4 /proc/$$/stat > parent' &); touch up; exec sleep 1000");
        container.until("the orphan's new parent", |container| container.lines("parent") == 1);
        let parent = std::fs::read_to_string(container.path("parent")).unwrap();
        assert_eq!(parent.trim(), container.init().to_string());
        let application = container.children()[0].pid;
        container.signal(libc::SIGKILL);
        container.reap();
        container.until("the application's end", |_| !std::path::Path::new(&format!("/proc/{application}")).exists());
    }

    #[test]
    fn with_a_terminal_each_run_is_in_the_foreground() {
        let script = "set -- $(cat /proc/$$/stat); [ $5 = $8 ] || exit 6; [ -e again ] && exit 0; touch again; exit 1";
        let mut container = Container::new(r#"{"policy":"OnFailure","delay":0,"restartPreventExitStatus":[6]}"#)
            .with_terminal()
            .shell(script);
        assert_eq!(container.ended(), 0);
    }

    #[test]
    fn without_a_terminal_each_run_leads_a_session() {
        let script = "set -- $(cat /proc/$$/stat); [ $6 = $$ ] && [ $5 = $$ ] || exit 6; exit 0";
        assert_eq!(Container::new("{}").shell(script).ended(), 0);
    }
}

mod shortages {
    use crate::container::{Cgroup, Container};
    use tideover_init::exit::Cause;

    #[test]
    fn where_there_is_no_room_for_a_process_init_waits_for_it() {
        let cgroup = Cgroup::new("pids");
        // unshare and init.
        cgroup.set("pids.max", "2");
        let mut container = Container::new("{}").within(&cgroup).start(&["true"]);
        container.until("a fork that failed", |_| !cgroup.get("pids.events").contains("max 0"));
        cgroup.set("pids.max", "10");
        assert_eq!(container.ended(), 0);
        assert_eq!(container.record().len(), 1);
    }

    #[test]
    fn an_oom_kill_is_told_apart_from_a_sigkill() {
        let cgroup = Cgroup::new("memory");
        cgroup.set("memory.limit_in_bytes", "33554432");
        let settings = r#"{"policy":"OnFailure","delay":0}"#;
        let script = "[ -e second ] && exit 0; [ -e first ] && { touch second; kill -KILL $$; }; touch first; exec tail /dev/zero";
        let mut container = Container::new(settings).within(&cgroup).shell(script);
        assert_eq!(container.ended(), 0);
        let causes: Vec<Cause> = container.record().iter().map(|line| line.cause).collect();
        assert_eq!(causes, [Cause::OomKill, Cause::UncleanSignal, Cause::Clean]);
    }
}

mod messages {
    use crate::container::Container;
    use tideover_init::exit::Cause;

    #[test]
    fn a_hang_is_caught_by_the_watchdog() {
        let settings = r#"{"policy":"OnWatchdog","delay":0,"watchdog":200,"timeoutAbort":100}"#;
        let script = "[ -e again ] && exit 0; touch again; trap '' ABRT; while :; do sleep 0.01; done";
        let mut container = Container::new(settings).shell(script);
        assert_eq!(container.ended(), 0);
        let line = &container.record()[0];
        assert_eq!((line.cause, line.signal), (Cause::Watchdog, Some(9)));
    }

    #[test]
    fn an_application_that_pings_and_then_hangs_is_caught_after_its_last_ping() {
        let settings = r#"{"type":"Notify","watchdog":500}"#;
        let mut container = Container::new(settings).helper("pings-then-hangs");
        assert_eq!(container.ended(), 134);
        let line = &container.record()[0];
        assert_eq!((line.cause, line.status.as_deref(), line.errno), (Cause::Watchdog, Some("three pings"), Some(5)));
    }

    #[test]
    fn a_barrier_is_answered_when_all_before_it_is_heard() {
        let mut container = Container::new(r#"{"type":"Notify"}"#).helper("barrier");
        assert_eq!(container.ended(), 0);
    }

    #[test]
    fn one_that_is_not_ready_in_time_has_timed_out() {
        let mut container = Container::new(r#"{"type":"Notify","timeoutStart":100}"#).start(&["sleep", "1000"]);
        assert_eq!(container.ended(), 143);
        assert_eq!(container.record()[0].cause, Cause::Timeout);
    }

    #[test]
    fn the_main_process_may_be_another_whose_status_counts_then() {
        let mut container = Container::new(r#"{"notifyAccess":"Main"}"#).helper("hands-over");
        assert_eq!(container.ended(), 44);
    }

    #[test]
    fn a_main_process_that_another_reaps_counts_as_clean() {
        let mut container = Container::new(r#"{"notifyAccess":"Main"}"#).helper("names-a-grandchild");
        assert_eq!(container.ended(), 0);
        let line = &container.record()[0];
        assert_eq!((line.cause, line.code, line.signal), (Cause::Clean, None, None));
    }

    #[test]
    fn who_may_not_speak_is_not_heard() {
        for (access, cause) in [("Main", Cause::UncleanExitCode), ("All", Cause::Watchdog)] {
            let settings = format!(r#"{{"notifyAccess":"{access}","timeoutAbort":100}}"#);
            let mut container = Container::new(&settings).helper("child-triggers-the-watchdog");
            container.ended();
            assert_eq!(container.record()[0].cause, cause, "{access}");
        }
    }
}
