//! Missing rights are named. In a process of its own, since limits belong to the process. Needs root, to give rights up.

#![allow(clippy::unwrap_used)]

mod common;

use std::sync::{Mutex, PoisonError};

use caps::{CapSet, Capability};
use common::{as_root, link, steer_for};
use nix::sys::resource::{Resource, setrlimit};
use portcullis_xsk::{
    capability,
    steer::{AttachWish, Steer, SteerError},
    umem::{Umem, UmemError, UmemOptions},
};

/// The limit of locked memory belongs to the process, so the tests take turns.
static TURN: Mutex<()> = Mutex::new(());

#[test]
fn without_sys_admin_a_leftover_is_known_by_its_number() {
    as_root("without_sys_admin_a_leftover_is_known_by_its_number", || {
        let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        let (inside, outside) = (link("in0", "10.0.0.1/24", "10.0.0.2/24"), link("out0", "192.0.2.1/24", "192.0.2.2/24"));
        let ifindex = inside.device.ifindex;
        caps::drop(None, CapSet::Effective, Capability::CAP_SYS_ADMIN).unwrap();
        let mut dead = steer_for(&inside, &outside);
        dead.attach("in0", ifindex, AttachWish::Best).unwrap();
        dead.attach_guard("in0", ifindex).unwrap();
        let id = dead.id();
        drop(dead);
        let mut steer = steer_for(&inside, &outside);
        let refused = steer.attach("in0", ifindex, AttachWish::Best).unwrap_err();
        assert!(matches!(refused, SteerError::Foreign { .. }) && refused.to_string().contains("CAP_SYS_ADMIN"), "{refused}");
        steer.recognise(&[id]);
        steer.attach("in0", ifindex, AttachWish::Best).unwrap();
        steer.attach_guard("in0", ifindex).unwrap();
        steer.detach("in0", ifindex).unwrap();
        caps::raise(None, CapSet::Effective, Capability::CAP_SYS_ADMIN).unwrap();
    });
}

#[test]
fn missing_rights_and_limits_are_named() {
    as_root("missing_rights_and_limits_are_named", || {
        let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        assert!(capability::missing().is_empty());
        // The hard limit can be lowered by the one who may raise it again.
        setrlimit(Resource::RLIMIT_MEMLOCK, 1 << 20, 1 << 20).unwrap();
        let give_up = |right| caps::drop(None, CapSet::Effective, right).unwrap();
        let options = UmemOptions { huge_pages: false, ..UmemOptions::default() };

        give_up(Capability::CAP_SYS_RESOURCE);
        give_up(Capability::CAP_IPC_LOCK);
        assert_eq!(capability::missing(), ["CAP_IPC_LOCK"]);
        let refused = Umem::new(options).unwrap_err();
        assert!(matches!(refused, UmemError::LockedMemory { .. }), "{refused}");
        assert!(refused.to_string().contains("CAP_IPC_LOCK") && refused.to_string().contains("LimitMEMLOCK"), "{refused}");

        give_up(Capability::CAP_NET_RAW);
        let refused = Umem::new(options).unwrap_err();
        assert!(refused.to_string().contains("missing CAP_NET_RAW, CAP_IPC_LOCK"), "{refused}");

        give_up(Capability::CAP_SYS_ADMIN);
        give_up(Capability::CAP_BPF);
        let refused = Steer::load().unwrap_err();
        assert!(refused.to_string().contains("missing CAP_NET_RAW, CAP_BPF, CAP_IPC_LOCK"), "{refused}");
    });
}
