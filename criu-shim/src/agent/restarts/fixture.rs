//! Records for tests.

use crate::supervised::Identity;
use tideover_init::decide::Rule;
use tideover_init::exit::Cause;
use tideover_init::record::{Line, Outcome};

/// The container `app` of `shop/web-0`.
pub(in crate::agent) fn identity() -> Identity {
    Identity {
        pod_namespace: "shop".into(),
        pod_name: "web-0".into(),
        pod_uid: "u".into(),
        container_name: "app".into(),
        program: "0123456789abcdef0123456789abcdef".into(),
        checkpoints: None,
    }
}

/// Line number `sequence`: given up at the start limit, with exit code 7 after 1.5 s.
pub(in crate::agent) fn exit(sequence: u64) -> Line {
    Line {
        version: 1,
        sequence,
        at_millis: 0,
        cause: Cause::UncleanExitCode,
        code: Some(7),
        signal: None,
        core: false,
        ran_millis: 1500,
        outcome: Outcome::Exit,
        rule: Rule::StartLimit,
        status: None,
        errno: None,
        lost: 0,
    }
}

/// A crash by SIGSEGV that was followed by a run after 100 ms.
pub(in crate::agent) fn crash(sequence: u64) -> Line {
    Line {
        cause: Cause::UncleanSignal,
        code: None,
        signal: Some(11),
        outcome: Outcome::Restart { delay_millis: 100, attempt: 1 },
        rule: Rule::Policy,
        ..exit(sequence)
    }
}

/// The start limit was hit, and the container waits to be moved, for three minutes.
pub(in crate::agent) fn held(sequence: u64) -> Line {
    Line { outcome: Outcome::Migrate { hold_millis: 180_000 }, ..exit(sequence) }
}

/// The stop that kubelet asked for.
pub(in crate::agent) fn stop(sequence: u64) -> Line {
    Line { cause: Cause::Clean, code: Some(0), rule: Rule::StopAsked, ..exit(sequence) }
}
